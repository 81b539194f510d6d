"""Objects of a zarr store: where they are, how they are written so that nothing is lost, and errors on the way."""

from __future__ import annotations

import errno
import io
import os
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from zarr.abc.store import RangeByteRequest, Store, SuffixByteRequest
from zarr.storage import LocalStore

from ..errors import DiskFullError, InputError, StoreError, TdmError
from .mapped_files import mapped
from .zarr_core import default_buffer_prototype, sync

T = TypeVar("T")

# Requests for ranges of an object that are under way while another is used; a store may name more of its own.
AHEAD = 1

StoreLike = str | os.PathLike[str] | Store


def resolve(store: StoreLike, *, read_only: bool = True) -> Store:
    """A zarr store object from a path, a URL such as s3://bucket/scan.zarr, or such an object itself."""
    if isinstance(store, Store):
        return store
    text = os.fspath(store)
    if "://" in text:
        check_address(text)
        try:
            if text.startswith(("s3://", "s3a://")):
                from .s3_store import S3Store

                return S3Store(text, read_only=read_only)
            from zarr.storage import FsspecStore

            return FsspecStore.from_url(text, read_only=read_only)
        except ImportError as error:
            raise StoreError(
                f'{text} needs a package that is not installed ({error}); install "tdm-dask[s3]".'
            ) from None
    return LocalStore(Path(text), read_only=read_only)


def check_address(url: str) -> None:
    """Raise InputError for the address of a store that holds credentials, or is none; the message repeats neither.

    Examples
    --------
    >>> check_address("s3://bucket/scan.zarr")
    """
    scheme, _, rest = url.partition("://")
    host, colon, port = rest.split("/")[0].partition(":")
    on_s3 = scheme in ("s3", "s3a")
    # A secret may hold slashes: then what is before the first one looks like a bucket or host with a port.
    if "@" in host + port or (colon and (on_s3 or not port.isdigit())) or (on_s3 and "?" in rest):
        raise InputError(
            f"An address that begins with {scheme}:// holds credentials or options; give them in the environment "
            "(AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; AWS_ENDPOINT_URL), and the bare address."
        )
    if on_s3 and not host:
        raise InputError("The address names no bucket; expected one such as s3://bucket/scan.zarr.")


@contextmanager
def writing(name: str) -> Iterator[None]:
    """Turn an operating system's error while a store is written into one sentence."""
    try:
        yield
    except OSError as error:
        lost_contact = error.errno is None and (
            isinstance(error, TimeoutError) or type(error).__module__.startswith("distributed")
        )
        if isinstance(error, TdmError) or lost_contact:
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"The disk of {name} is full ({error.strerror}); what was written is kept: free space and repeat "
                "the call, which goes on where it stopped."
            ) from error
        raise StoreError(
            f"{name} cannot be written ({reason_of(error)}); check the path and its permissions."
        ) from error


def reason_of(error: OSError) -> str:
    """What an operating system's error says, as part of a sentence."""
    reason = error.strerror or " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return f"{reason}: {error.filename}" if error.strerror and error.filename else reason


def get(store: Store, key: str, byte_range: Any = None) -> np.ndarray | None:
    """Bytes of an object of the store (uint8), or None where there is no such object; those of a range may be fewer."""
    if type(store) is LocalStore and isinstance(byte_range, RangeByteRequest | SuffixByteRequest):
        with _opened(Path(store.root) / key) as file:
            return None if file is None else _Range.of(file, byte_range)()
    buffer = sync(store.get(key, default_buffer_prototype(), byte_range))
    return None if buffer is None else buffer.as_numpy_array().view(np.uint8)


def read_ranges(store: Store, key: str, byte_ranges: Sequence[RangeByteRequest]) -> Generator[np.ndarray | None]:
    """The same for several ranges of one object, in order; the next is under way while one is used."""
    if type(store) is LocalStore:
        with _opened(Path(store.root) / key) as file:
            calls = [] if file is None else [_Range.of(file, byte_range) for byte_range in byte_ranges]
            yield from [None] * len(byte_ranges) if file is None else ahead(calls, AHEAD, _Range.in_memory)
    else:
        requests = [partial(get, store, key, byte_range) for byte_range in byte_ranges]
        yield from ahead(requests, getattr(store, "ahead", AHEAD))


def ahead(
    calls: Iterable[Callable[[], T]], number: int, takes_no_time: Callable[[Any], bool] = lambda _: False
) -> Iterator[T]:
    """What each call gives, in order; so many of the next are under way while a result is used.

    Those of which it is said that they take no time are made when it is their turn: another thread would take more.
    """
    with ThreadPoolExecutor(number) as executor:
        coming: deque[Callable[[], T]] = deque()
        for call in calls:
            coming.append(call if takes_no_time(call) else executor.submit(call).result)
            if len(coming) > number:
                yield coming.popleft()()
        while coming:
            yield coming.popleft()()


@contextmanager
def _opened(path: Path) -> Iterator[io.FileIO | None]:
    try:
        file = io.FileIO(path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        yield None
        return
    with file:
        yield file


@dataclass(frozen=True)
class _Range:
    """Bytes `start` to `stop` of an open file; a call reads them, without a copy where the system can do that."""

    path: Path
    descriptor: int
    start: int
    stop: int

    @classmethod
    def of(cls, file: io.FileIO, byte_range: RangeByteRequest | SuffixByteRequest) -> _Range:
        opened, size = (Path(str(file.name)), file.fileno()), os.fstat(file.fileno()).st_size
        if isinstance(byte_range, SuffixByteRequest):
            return cls(*opened, max(size - byte_range.suffix, 0), size)
        return cls(*opened, byte_range.start, min(byte_range.end, size))

    def __call__(self) -> np.ndarray:
        if self.stop <= self.start:
            return np.empty(0, np.uint8)
        data = mapped(self.descriptor, self.start, self.stop, [(self.start, self.stop)])
        if data is None:
            with io.FileIO(self.path) as file:  # whose position no other thread moves
                file.seek(self.start)
                data = np.frombuffer(file.read(self.stop - self.start), np.uint8)
        return data

    def in_memory(self) -> bool:
        """Whether the system seems to hold these bytes, so that no disk is waited for."""
        try:
            return all(
                os.preadv(self.descriptor, [bytearray(1)], place, os.RWF_NOWAIT)
                for place in (self.start, self.stop - 1)
            )
        except (OSError, AttributeError):
            return False


def put(store: Store, key: str, *pieces: bytes) -> None:
    """Write one object of the store, whole or not at all, from pieces that follow each other."""
    if not isinstance(store, LocalStore):
        buffer = default_buffer_prototype().buffer.from_bytes(b"".join(pieces))
        sync(store.set(key, buffer))
        return
    # Not joined before: a shard is large, and several are written at a time.
    path = Path(store.root) / key
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with temporary.open("wb") as file:
            file.writelines(pieces)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def delete(store: Store, key: str) -> None:
    """Remove one object of the store; nothing happens where there is none."""
    sync(store.delete(key))


def delete_folder(store: Store, prefix: str) -> None:
    """Remove every object under a prefix."""
    sync(store.delete_dir(prefix))


def flush(store: Store, key: str) -> None:
    """Make sure that a written object survives a power cut."""
    if isinstance(store, LocalStore):
        descriptor = os.open(Path(store.root) / key, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def list_keys(store: Store, prefix: str) -> list[str]:
    """Keys of the objects under a prefix."""

    async def collect() -> list[str]:
        return [key async for key in store.list_prefix(prefix)]

    return sync(collect())


def object_size(store: Store, key: str) -> int | None:
    """Bytes of an object, or None where there is none."""
    try:
        return sync(store.getsize(key))
    except FileNotFoundError:
        return None


def path_in(folder: str | Path, name: str) -> str | Path:
    """The place of a file or store in a folder, or under an address.

    Examples
    --------
    >>> path_in("s3://bucket/results", "report.html")
    's3://bucket/results/report.html'
    """
    return folder / name if isinstance(folder, Path) else f"{folder}/{name}"


def to_json(value: Any) -> Any:
    """A value as plain JSON: NumPy scalars, tuples, bytes and paths included."""
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [to_json(v) for v in value]
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, np.generic):
        return to_json(value.item())
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


def name_of(store: StoreLike) -> str:
    return str(store) if isinstance(store, Store) else os.fspath(store)
