"""How counts are cut into shards and inner chunks: shapes that suit passes, and the way a source is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

INNER_BYTES = 2 * 2**20
SHARD_BYTES = 128 * 2**20
# How often a source's counts may be read for the sake of shards of the usual shape.
_MOST_READ = 1.1


def choose_shards(
    shape: Sequence[int], itemsize: int, inner_bytes: int = INNER_BYTES, shard_bytes: int = SHARD_BYTES
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Inner chunk and shard of counts: a shard is a tile of the scan with the whole detector.

    Parameters
    ----------
    shape : sequence of 4 int
        (ny, nx, nky, nkx).
    itemsize : int
        Bytes of one count.
    inner_bytes, shard_bytes : int
        Largest sizes aimed at: 2 MiB decode at full speed and fit a cache, 128 MiB make few files.

    Returns
    -------
    inner, shard : tuple of 4 int
        The shard may overhang the array.

    Examples
    --------
    >>> choose_shards((256, 256, 256, 256), 2)
    ((16, 16, 64, 64), (32, 32, 256, 256))
    """
    ny, nx, nky, nkx = shape
    probes = max(1, shard_bytes // (nky * nkx * itemsize))
    side = min(16, math.isqrt(probes))
    area = max(1.0, inner_bytes / (side * side * itemsize))
    tiles = [max(1, round(n / math.sqrt(area))) for n in (nky, nkx)]
    ky, kx = (-(-n // t) for n, t in zip((nky, nkx), tiles, strict=True))
    detector_bytes = ky * tiles[0] * kx * tiles[1] * itemsize
    inner_probes = max(1, min(inner_bytes // (ky * kx * itemsize), shard_bytes // detector_bytes))
    x = min(nx, max(1, math.isqrt(inner_probes)))
    y = min(ny, max(1, inner_probes // x))
    x = min(nx, max(x, inner_probes // y))
    shard = _grown((y, x), shape, shard_bytes // detector_bytes)
    return (y, x, ky, kx), (shard[0], shard[1], ky * tiles[0], kx * tiles[1])


def follow_tiles(
    inner: Sequence[int], shard: Sequence[int], shape: Sequence[int], tile: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Inner chunk and shard of about the same sizes, of which each holds whole tiles of the scan, or a tile holds whole
    shards: what is read tile by tile is then read once.

    Parameters
    ----------
    inner, shard : sequence of 4 int
        As `choose_shards` gives them; kept where they make little difference.
    shape : sequence of 4 int
        (ny, nx, nky, nkx).
    tile : (int, int)
        Probe positions (y, x) that the source gives together, such as a chunk of a file.

    Returns
    -------
    inner, shard : tuple of 4 int

    Examples
    --------
    >>> follow_tiles((16, 16, 64, 64), (32, 32, 256, 256), (256, 512, 256, 256), (1, 512))
    ((2, 128, 64, 64), (2, 512, 256, 256))
    """
    sizes = [min(t, n) for t, n in zip(tile, shape, strict=False)]
    whole = [t == n for t, n in zip(sizes, shape, strict=False)]
    # A tile that crosses an edge is read for both sides of it.
    extra = [
        1.0 if s % t == 0 or (w and s >= t) else (s + t - 1) / s for s, t, w in zip(shard, sizes, whole, strict=False)
    ]
    if math.prod(extra) <= _MOST_READ:
        return tuple(inner), tuple(shard)
    probes, patterns = math.prod(shard[:2]), math.prod(inner[:2])
    if math.prod(sizes) > probes:
        sizes = list(_part(sizes, probes, whole))
        whole = [s >= n for s, n in zip(sizes, shape, strict=False)]
    else:
        sizes = _grown(sizes, shape, probes)
    y, x = _part(sizes, patterns, whole)
    return (y, x, *inner[2:]), (-(-sizes[0] // y) * y, -(-sizes[1] // x) * x, *shard[2:])


def _grown(sizes: Sequence[int], shape: Sequence[int], most: int) -> list[int]:
    """Sizes (y, x) of a tile of the scan whose shorter side is doubled while it stays within `most` probe positions."""
    y, x = sizes
    while y * x * 2 <= most and (y < shape[0] or x < shape[1]):
        if y < shape[0] and (y <= x or x >= shape[1]):
            y *= 2
        else:
            x *= 2
    return [y, x]


def _part(sizes: Sequence[int], most: int, whole: Sequence[bool]) -> tuple[int, int]:
    """The largest part of a tile, then the squarest, that divides it; along the whole of an axis, nearly so will do."""
    steps = [
        {-(-size // k) for k in range(1, size + 1)} if free else {k for k in range(1, size + 1) if size % k == 0}
        for size, free in zip(sizes, whole, strict=True)
    ]
    fitting = [(y * x, min(y, x), y, x) for y, x in product(*steps) if y * x <= most]
    return max(fitting)[2:] if fitting else (1, 1)
