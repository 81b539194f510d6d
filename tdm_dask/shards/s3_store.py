"""A zarr store on S3, or on any server that speaks its protocol; credentials and endpoint are the environment's.

s3fs makes the requests, for it finds credentials, profiles and endpoints as botocore and every other S3 program does. A
store object holds its address alone: what is pickled into a graph or printed has no credentials, and every process
connects with those of its own environment.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import mimetypes
import os
from collections.abc import AsyncIterator, Awaitable, Iterable
from functools import cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

import s3fs
from aiohttp import ClientError as TransportError
from botocore import exceptions as botocore
from botocore.parsers import ResponseParserError
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest

from ..errors import StoreError, UnreachableStoreError
from .zarr_core import Buffer, BufferPrototype, sync

T = TypeVar("T")

CONNECT_SECONDS = 10.0
# Without a byte from the server for so long, a request is made again.
READ_SECONDS = 30.0
# The longest that all attempts at one request may take, and so much more for each byte that it moves.
REQUEST_SECONDS = 120.0
SECONDS_PER_BYTE = 1 / 500e3
# What an object whose size is not known before it is read may have.
OBJECT_BYTES = 128 * 2**20
# Objects up to this size are sent whole, in one request: they are there or not, and nothing is left of an upload that
# was cut short. S3 takes no larger ones.
PUT_BYTES = 5 * 2**30
CONNECTIONS = 64
# Attempts at a request, and at the answer that it began, beside those of botocore (AWS_MAX_ATTEMPTS).
ATTEMPTS = 3

_CREDENTIALS = (
    botocore.NoCredentialsError,
    botocore.PartialCredentialsError,
    botocore.CredentialRetrievalError,
    botocore.ProfileNotFound,
    botocore.SSOError,
)
_BEYOND_THE_END = ("InvalidRange", "416")
_FAILURES = (OSError, botocore.BotoCoreError, botocore.ClientError, ResponseParserError, TransportError, ValueError)


class S3Store(Store):
    """Objects under one address, such as s3://bucket/scan.zarr; picklable, and safe to use after a fork.

    Every method raises StoreError or UnreachableStoreError, of one sentence, where the server does not do as asked.
    """

    supports_writes = True
    supports_deletes = True
    supports_listing = True
    # Ranges of one shard that a task asks for beforehand, for every answer takes its time to begin.
    ahead = 4

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self.path = url.partition("://")[2].rstrip("/")
        self.url = f"s3://{self.path}"

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"S3Store({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, S3Store) and self.url == other.url

    def with_read_only(self, read_only: bool = False) -> S3Store:
        return S3Store(self.url, read_only=read_only)

    @property
    def fs(self) -> Any:
        return _connected(os.getpid(), _environment())

    def _place(self, key: str) -> str:
        return f"{self.path}/{key.strip('/')}".rstrip("/")

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        start: int | None = None
        end: int | None = None
        nbytes = OBJECT_BYTES
        if isinstance(byte_range, RangeByteRequest):
            start, end = byte_range.start, byte_range.end
            nbytes = end - start
        elif isinstance(byte_range, OffsetByteRequest):
            start = byte_range.offset
        elif isinstance(byte_range, SuffixByteRequest):
            start, nbytes = -byte_range.suffix, byte_range.suffix
        try:
            data = await self._answer(self._bytes(key, start, end), "read", nbytes)
        except FileNotFoundError:
            return None
        return prototype.buffer.from_bytes(data)

    async def _bytes(self, key: str, start: int | None, end: int | None) -> bytes:
        try:
            return await self.fs._cat_file(self._place(key), start=start, end=end)
        except OSError as error:
            if _code(error) in _BEYOND_THE_END:
                return b""
            raise

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def getsize(self, key: str) -> int:
        return int((await self._answer(self.fs._info(self._place(key)), "read"))["size"])

    async def exists(self, key: str) -> bool:
        try:
            await self.getsize(key)
        except FileNotFoundError:
            return False
        return True

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        # So that a browser shows a report, and does not save it.
        kind = mimetypes.guess_type(key)[0]
        options = {} if kind is None else {"ContentType": kind}
        data = value.to_bytes()
        sent = self.fs._pipe_file(self._place(key), data, chunksize=PUT_BYTES, **options)
        await self._answer(sent, "written", len(data))

    async def delete(self, key: str) -> None:
        self._check_writable()
        # One by one: an answer to many at once may name failures that nobody looks at.
        await self._answer(self.fs._rm_file(self._place(key)), "deleted")

    async def delete_dir(self, prefix: str) -> None:
        self._check_writable()
        keys = [key async for key in self.list_prefix(prefix)]
        for first in range(0, len(keys), CONNECTIONS):
            await asyncio.gather(*map(self.delete, keys[first : first + CONNECTIONS]))

    async def list(self) -> AsyncIterator[str]:
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for found in await self._answer(self.fs._lsdir(self._place(prefix), delimiter=""), "listed"):
            yield found["name"].removeprefix(f"{self.path}/")

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        place = self._place(prefix)
        for found in await self._answer(self.fs._lsdir(place), "listed"):
            yield found["name"].removeprefix(f"{place}/")

    async def _answer(self, request: Awaitable[T], done: str, nbytes: int = 0) -> T:
        """What a request gives, in bounded time; FileNotFoundError where there is no such object."""
        try:
            return await asyncio.wait_for(request, REQUEST_SECONDS + nbytes * SECONDS_PER_BYTE)
        except FileNotFoundError as error:
            if _code(error) == "NoSuchBucket":
                raise self._failure(error, done) from None
            raise
        except _FAILURES as error:
            # Without its cause: messages of a server or an endpoint's address may hold credentials.
            raise self._failure(error, done) from None

    def _failure(self, error: Exception, done: str) -> StoreError:
        code = _code(error)
        server = f"the server {self._endpoint()}"
        if code == "NoSuchBucket":
            bucket = self.path.split("/")[0]
            return StoreError(f"There is no bucket {bucket} on {server}; make it first, or correct {self.url}.")
        if isinstance(error, PermissionError) and error.errno is None:  # with a number: a method it does not know
            return StoreError(
                f"{self.url} cannot be {done}: {server} refused it ({code}); check the credentials in the environment "
                "(AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) and that they may read, write, list "
                "and delete objects there."
            )
        if isinstance(error, _CREDENTIALS):
            return StoreError(
                f"{self.url} cannot be {done} without credentials ({_kind(error)}); set AWS_PROFILE, or "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, in the environment of every process that computes."
            )
        if isinstance(error, ValueError) and not isinstance(error, OSError):
            return StoreError(
                f"{self.url} cannot be {done}: its bucket or the endpoint has no valid name; expected s3://bucket/name "
                "and AWS_ENDPOINT_URL such as https://host:9000."
            )
        if code:
            return StoreError(
                f"{self.url} cannot be {done}: {server} answered {code}; check bucket, AWS_REGION and "
                "AWS_ENDPOINT_URL, and repeat the call."
            )
        return UnreachableStoreError(
            f"{self.url} cannot be {done}: {server} cannot be reached or does not answer ({_kind(error)}); check the "
            "network and AWS_ENDPOINT_URL, and repeat the call, which goes on from what was finished."
        )

    def _endpoint(self) -> str:
        client = self.fs._s3
        address = urlsplit("" if client is None else client.meta.endpoint_url)
        port = f":{address.port}" if address.port else ""
        return f"{address.scheme}://{address.hostname}{port}" if address.hostname else "of S3"


def _code(error: Exception) -> str:
    """The server's own word for what went wrong; empty where it gave no answer."""
    response = getattr(error if isinstance(error, botocore.ClientError) else error.__cause__, "response", None)
    if isinstance(error, PermissionError | FileNotFoundError) and not isinstance(response, dict):
        return "403" if isinstance(error, PermissionError) else "404"
    return str(response["Error"].get("Code", "")) if isinstance(response, dict) else ""


def _kind(error: Exception) -> str:
    return type(error).__name__.removesuffix("Error")


def _environment() -> int:
    """Changes when credentials or the endpoint do, as in a notebook where they were wrong at first."""
    return hash(tuple(item for item in os.environ.items() if item[0].startswith("AWS_")))


@cache
def _connected(process: int, environment: int) -> Any:
    """Connections of one process, that all its stores and threads share."""
    # Servers other than Amazon's may not know the newer checksums; every shard has its own, and is read back.
    names = ("request_checksum_calculation", "response_checksum_validation")
    checksums = {name: "when_required" for name in names if f"AWS_{name.upper()}" not in os.environ}
    limits = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS, "max_pool_connections": CONNECTIONS}
    fs = s3fs.S3FileSystem(
        asynchronous=True,
        skip_instance_cache=True,
        use_listings_cache=False,
        max_concurrency=1,  # else every whole object is asked for its size first
        config_kwargs={**limits, **checksums},
    )

    fs.retries = ATTEMPTS

    def close() -> None:
        if os.getpid() == process and fs._s3 is not None:
            with contextlib.suppress(Exception):
                sync(fs._s3.close(), timeout=1)

    atexit.register(close)
    return fs
