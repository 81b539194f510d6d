"""Shards of a zarr 3 array: which inner chunks there are, where their bytes lie, how they are encoded and decoded.

A shard is one object of the store: its inner chunks one after another, then an index (offset and length of each
inner chunk, little-endian uint64, in C order of the inner grid) and the index's crc32c. This module reads and writes
that format directly, through zarr's store interface, for the codec chains of `codec`. A pass then decodes each inner
chunk into one small reused buffer, where stock pipelines fill whole arrays at a quarter of the codec's speed. Any other
chain is zarr's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import chain, product
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import RangeByteRequest, Store, SuffixByteRequest

from ..errors import CorruptStoreError
from ..kernels.copying import copy_tiles
from ..kernels.pixel_order import Tile
from .codec import CRC, Codec, checksum, is_sealed
from .decoding import Decoder
from .encoding import Encoder
from .layout import array_layout
from .objects import get, read_ranges
from .zarr_core import metadata_of

Place = tuple[slice, slice, slice, slice]

# Ranges of one shard that are read in one request: neighbours are joined, up to this much at a time.
RANGE_BYTES = 4 * 2**20
# Bytes read in vain are cheaper than a further request, up to this many.
GAP_BYTES = 64 * 2**10

# Chunks that are given to compiled code at a time: what is made for a run is then little, and a chunk that is refused
# costs no more than so many.
LONGEST_RUN = 16

# Both numbers of an inner chunk that is not stored, and the largest of one that is.
EMPTY = np.uint64(2**64 - 1)
LARGEST_FILE = np.uint64(2**62)


@dataclass(frozen=True)
class InnerChunk:
    """One inner chunk as it is written: where its counts lie in the array, and the counts (a reused buffer)."""

    y: slice
    x: slice
    ky: slice
    kx: slice
    counts: np.ndarray


class StoredChunk:
    """One inner chunk as it is read: where its counts lie in the array, and the counts, decoded as they are asked for.

    What is decoded lies in memory that the next chunk uses again. Thousands of these are made in a second: for each,
    as little as can be is called, for what is not in the processor's cache any more takes longest.

    Attributes
    ----------
    y, x, ky, kx : slice
        Where its counts lie, without what overhangs the array.
    tile : Tile
        The same of the detector, where the counts are interleaved.
    """

    def __init__(
        self, array: ShardedArray, shard: Sequence[int], chunk: Sequence[int], place: Place, tile: Tile,
        data: np.ndarray | None, decoder: Decoder,
    ) -> None:  # fmt: skip
        self.y, self.x, self.ky, self.kx = place
        self.tile = tile
        self._array, self._shard, self._chunk = array, shard, chunk
        self._data, self._decoder = data, decoder
        # Asked for often: no cached properties, which take a lock each time.
        self._counts: np.ndarray | None = None
        self._interleaved: np.ndarray | None = None
        self._tried = False

    @property
    def patterns(self) -> tuple[int, int]:
        """Patterns along y and x, with those that overhang the array."""
        return self._decoder.inner[:2]

    @property
    def counts(self) -> np.ndarray:
        """Counts (y, x, ky, kx); CorruptStoreError if they cannot be decoded."""
        if self._counts is None:
            try:
                counts = self._decoder.in_order(self._data)
            except ValueError as error:
                raise self._array.damaged_chunk(self._shard, self._chunk, str(error)) from None
            self._counts = counts[tuple(slice(0, s.stop - s.start) for s in (self.y, self.x, self.ky, self.kx))]
        return self._counts

    @property
    def interleaved(self) -> np.ndarray | None:
        """Narrow counts (patterns, columns of the tile); None where these are not to be had.

        The patterns are those of a whole inner chunk, with what overhangs the array.
        """
        if not self._tried:
            self._tried = True
            self._interleaved = self._decoder.interleaved(self._data)
        return self._interleaved


class StoredRun(list[StoredChunk]):
    """Inner chunks of one tile of the detector whose bytes follow each other in a shard; each is valid until the next.

    Attributes
    ----------
    data : ndarray of uint8 or None
        Their bytes; None of chunks that are not stored.
    places : ndarray of int64, shape (chunks, 2)
        Where each of them begins and ends in the data, without its checksum.
    """

    def __init__(self, chunks: list[StoredChunk], decoder: Decoder, data: np.ndarray | None, places: list[Any]) -> None:
        super().__init__(chunks)
        self.data, self.places = data, np.array(places, np.int64).reshape(-1, 2)
        self._decoder = decoder

    @property
    def feeds(self) -> bool:
        """Whether `feed` can be called."""
        return self.data is not None and self._decoder.feeds

    def feed(self, function: Callable[..., tuple[int, int]], first: int, *arguments: Any) -> int:
        """As `Decoder.feed`: the number of the first chunk that has not been added."""
        assert self.data is not None
        return self._decoder.feed(function, self.data, self.places, first, *arguments)


@dataclass(frozen=True)
class ShardedArray:
    """A sharded 4D array of a store, with a codec chain that this module decodes itself. Picklable."""

    store: Store
    path: str
    shape: tuple[int, int, int, int]
    dtype: np.dtype
    inner: tuple[int, int, int, int]
    shard: tuple[int, int, int, int]
    codec: Codec
    fill_value: float = 0

    @cached_property
    def grid(self) -> tuple[int, ...]:
        """Number of shards along each axis."""
        return tuple(-(-n // s) for n, s in zip(self.shape, self.shard, strict=True))

    @cached_property
    def inner_grid(self) -> tuple[int, ...]:
        """Number of inner chunks of a shard along each axis."""
        return tuple(s // c for s, c in zip(self.shard, self.inner, strict=True))

    @property
    def index_bytes(self) -> int:
        return 16 * math.prod(self.inner_grid) + CRC

    def key(self, shard: Sequence[int]) -> str:
        """Key of a shard in the store."""
        return f"{self.path}/c/" + "/".join(map(str, shard)) if self.path else "c/" + "/".join(map(str, shard))

    def shards(self) -> Iterator[tuple[int, ...]]:
        """Every shard of the array, in C order."""
        return product(*map(range, self.grid))

    def window(self, shard: Sequence[int]) -> tuple[slice, ...]:
        """The part of the array that a shard covers, without what overhangs."""
        return tuple(slice(i * s, min((i + 1) * s, n)) for i, s, n in zip(shard, self.shard, self.shape, strict=True))

    def describe(self, shard: Sequence[int]) -> str:
        """A shard in words: its key and its probe positions."""
        y, x = self.window(shard)[:2]
        return f"shard {self.key(shard)} (probe positions y {y.start}-{y.stop - 1}, x {x.start}-{x.stop - 1})"

    def read_index(self, shard: Sequence[int]) -> np.ndarray:
        """Offset and length of every inner chunk, uint64 of shape (*inner_grid, 2), its checksum verified."""
        data = get(self.store, self.key(shard), SuffixByteRequest(self.index_bytes))
        if data is None:
            raise CorruptStoreError(
                f"The {self.describe(shard)} is missing from {self.store}; convert the source again with "
                "overwrite=True."
            )
        if len(data) < self.index_bytes:
            raise self._damaged(shard, f"it has only {len(data)} bytes")
        return self._parse_index(data, shard)

    def _parse_index(self, data: np.ndarray, shard: Sequence[int]) -> np.ndarray:
        if not is_sealed(data):
            raise self._damaged(shard, "the checksum of its index is wrong, as after truncation")
        return data[:-CRC].view("<u8").astype(np.uint64).reshape(*self.inner_grid, 2)

    def _damaged(self, shard: Sequence[int], why: str) -> CorruptStoreError:
        return CorruptStoreError(
            f"The {self.describe(shard)} of {self.store} is damaged: {why}; convert the source again with "
            "overwrite=True."
        )

    def decoder(self) -> Decoder:
        """Decodes this array's inner chunks; one thread's."""
        return Decoder(self.codec, self.inner, self.dtype, self.fill_value)

    def read_shard(
        self, shard: Sequence[int], wanted: np.ndarray | None = None, decoder: Decoder | None = None
    ) -> Generator[StoredChunk]:
        """Inner chunks one by one, as `read_runs` reads them."""
        with closing(self.read_runs(shard, wanted, decoder)) as runs:
            for run in runs:
                yield from run

    def read_runs(
        self, shard: Sequence[int], wanted: np.ndarray | None = None, decoder: Decoder | None = None
    ) -> Generator[StoredRun]:
        """Read and check inner chunks of one shard; they are decoded by whoever takes them.

        Parameters
        ----------
        shard : sequence of 4 int
        wanted : ndarray of bool, shape `inner_grid`, optional
            Inner chunks to read; all that overlap the array by default. Others are not read.
        decoder : Decoder, optional
            Its memory is used for every inner chunk.

        Yields
        ------
        StoredRun
            In the order of the bytes in the shard; what is not stored comes first.
        """
        index = self.read_index(shard)
        wanted = self.overlapping(shard) if wanted is None else wanted & self.overlapping(shard)
        decoder = decoder or self.decoder()
        offsets, lengths = index[wanted].T
        chunks = np.argwhere(wanted)
        empty = (offsets == EMPTY) & (lengths == EMPTY)
        if (np.maximum(offsets, lengths)[~empty] > LARGEST_FILE).any():
            raise self._damaged(shard, "its index lists places that no file has")
        for chunk, place, tile in self._placed(shard, chunks[empty]):
            yield StoredRun([StoredChunk(self, shard, chunk, place, tile, None, decoder)], decoder, None, [])
        order = np.argsort(offsets[~empty], kind="stable")
        offsets, lengths, chunks = (a[~empty][order] for a in (offsets, lengths, chunks))
        groups = list(_joined(offsets.astype(np.int64), lengths.astype(np.int64)))
        # One that begins before another may end behind it, where an index is damaged.
        ends = offsets + lengths
        ranges = [RangeByteRequest(int(offsets[g.start]), int(ends[g.start : g.stop].max())) for g in groups]
        parts = list(zip(self._placed(shard, chunks), offsets.tolist(), lengths.tolist(), strict=True))
        # Closed here: an error keeps what it has gone through, and open files with it, until it is forgotten.
        with closing(read_ranges(self.store, self.key(shard), ranges)) as read:
            for group, byte_range, data in zip(groups, ranges, read, strict=True):
                start, stop = byte_range.start, byte_range.end
                if data is None or len(data) < stop - start:
                    raise self._damaged(shard, "it ends before the inner chunks that its index lists")
                run: list[StoredChunk] = []
                inside: list[tuple[int, int]] = []
                for (chunk, place, tile), offset, length in parts[group.start : group.stop]:
                    if run and (tile is not run[0].tile or len(run) == LONGEST_RUN):
                        yield StoredRun(run, decoder, data, inside)
                        run, inside = [], []
                    first = offset - start
                    last = first + length
                    if self.codec.checksum:
                        if not is_sealed(data[first:last]):
                            raise self.damaged_chunk(shard, chunk, "its checksum is wrong")
                        last -= CRC
                    run.append(StoredChunk(self, shard, chunk, place, tile, data[first:last], decoder))
                    inside.append((first, last))
                yield StoredRun(run, decoder, data, inside)

    def damaged_chunk(self, shard: Sequence[int], chunk: Sequence[int], why: str) -> CorruptStoreError:
        return self._damaged(shard, f"inner chunk {tuple(chunk)}: {why}")

    def overlapping(self, shard: Sequence[int]) -> np.ndarray:
        """Inner chunks of a shard that overlap the array, bool of shape `inner_grid`."""
        axes = [
            i * s + np.arange(g) * c < n
            for i, s, g, c, n in zip(shard, self.shard, self.inner_grid, self.inner, self.shape, strict=True)
        ]
        return reduce(np.logical_and.outer, axes)

    def _places(self, shard: Sequence[int], chunks: np.ndarray) -> list[Place]:
        """Where the counts of inner chunks (chunk, 4) of a shard lie in the array."""
        starts = np.multiply(shard, self.shard) + chunks * np.array(self.inner)
        stops = np.minimum(starts + np.array(self.inner), self.shape)
        return [
            (slice(y, y1), slice(x, x1), slice(ky, ky1), slice(kx, kx1))
            for (y, x, ky, kx), (y1, x1, ky1, kx1) in zip(starts.tolist(), stops.tolist(), strict=True)
        ]

    def _placed(self, shard: Sequence[int], chunks: np.ndarray) -> list[tuple[list[int], Place, Tile]]:
        """Inner chunks (chunk, 4) of a shard, where their counts lie, and a tile for all at the same place."""
        tiles: dict[tuple[int, int], Tile] = {}
        placed = []
        for chunk, place in zip(chunks.tolist(), self._places(shard, chunks), strict=True):
            ky, kx = place[2:]
            if (ky.start, kx.start) not in tiles:
                tiles[ky.start, kx.start] = Tile(ky.start, ky.stop, kx.start, kx.stop, self.inner[2:])
            placed.append((chunk, place, tiles[ky.start, kx.start]))
        return placed

    def encode_shard(
        self,
        shard: Sequence[int],
        read: Callable[[slice, slice], np.ndarray],
        visit: Callable[[InnerChunk], None] | None = None,
    ) -> list[bytes]:
        """Bytes of one shard, in pieces that follow each other.

        Parameters
        ----------
        shard : sequence of 4 int
        read : callable
            Gives the patterns of a window (y, x) of the scan, of any byte order and strides. It is called for the
            inner chunks of one window at a time, so that these patterns are still in cache.
        visit : callable, optional
            Is shown each inner chunk while it is in cache.

        Returns
        -------
        list of bytes
            Inner chunks are laid out detector tile by detector tile, so that a mask of a few tiles reads few ranges.
        """
        index = np.full((*self.inner_grid, 2), EMPTY, np.uint64)
        inside = self.overlapping(shard)
        columns = int(inside.any((0, 1, 2)).sum())
        encoder = Encoder(self.codec, self.dtype)
        tiles = np.zeros((columns, *self.inner), self.dtype.newbyteorder("<"))
        encoded: dict[tuple[int, ...], tuple[bytes, ...]] = {}
        for y, x, ky in np.argwhere(inside.any(3)).tolist():
            row = self._places(shard, np.array([(y, x, ky, kx) for kx in range(columns)]))
            places = [
                InnerChunk(*place, tile[tuple(slice(0, s.stop - s.start) for s in place)])
                for place, tile in zip(row, tiles, strict=True)
            ]
            if ky == 0:
                patterns = read(places[0].y, places[0].x)
            if any(place.counts.shape != self.inner for place in places):
                tiles[...] = self.fill_value
            copy_tiles(patterns[..., places[0].ky, places[0].kx.start : places[-1].kx.stop], tiles)
            for kx, (place, tile) in enumerate(zip(places, tiles, strict=True)):
                if visit is not None:
                    visit(place)
                encoded[ky, kx, y, x] = encoder.encode(tile)
        parts = dict(sorted(encoded.items()))
        offset = 0
        for (ky, kx, y, x), pieces in parts.items():
            size = sum(map(len, pieces))
            index[y, x, ky, kx] = offset, size
            offset += size
        return [*chain.from_iterable(parts.values()), *sealing(index)]


def sealing(index: np.ndarray) -> tuple[bytes, bytes]:
    """What follows the inner chunks of a shard: their index, and its checksum."""
    table = index.astype("<u8").tobytes()
    return table, checksum(table)


def sharded_array(array: zarr.Array) -> ShardedArray | None:
    """The array as a ShardedArray, or None where its layout or codec chain is one that only zarr should decode."""
    layout = array_layout(metadata_of(array))
    if layout is None:
        return None
    parts = (getattr(layout, field.name) for field in dataclasses.fields(layout))
    return ShardedArray(array.store, array.path, *parts)


def _joined(offsets: np.ndarray, lengths: np.ndarray) -> Iterator[range]:
    """Inner chunks to read in one request each: small gaps are read over, long requests are cut."""
    start = 0
    for n in range(1, len(offsets) + 1):
        if (
            n == len(offsets)
            or offsets[n] - (offsets[n - 1] + lengths[n - 1]) > GAP_BYTES
            or offsets[n] + lengths[n] - offsets[start] > RANGE_BYTES
        ):
            yield range(start, n)
            start = n
