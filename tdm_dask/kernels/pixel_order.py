"""In which order the columns of a matrix of counts hold the pixels of a tile of the detector."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Parts that bit planes are read into: pixels 0, 8, 16, ... of a pattern, then 1, 9, 17, ...
PARTS = 8


class Tile(NamedTuple):
    """A tile of the detector as the columns of a matrix (patterns, pixels); hashable, to keep things by.

    Attributes
    ----------
    ky0, ky1, kx0, kx1 : int
        The pixels of the detector that it covers.
    stored : (height, width) or None
        Of a tile whose columns are in eight interleaved parts: its size as it was stored, which may be larger.
    offset : (ky, kx)
        Where in it the pixels of the detector begin.
    """

    ky0: int
    ky1: int
    kx0: int
    kx1: int
    stored: tuple[int, int] | None = None
    offset: tuple[int, int] = (0, 0)

    @property
    def ky(self) -> slice:
        return slice(self.ky0, self.ky1)

    @property
    def kx(self) -> slice:
        return slice(self.kx0, self.kx1)

    @property
    def shape(self) -> tuple[int, int]:
        return self.ky1 - self.ky0, self.kx1 - self.kx0

    @property
    def width(self) -> int:
        """Columns of the matrix."""
        height, width = self.shape if self.stored is None else self.stored
        return height * width

    def columns(self, values: np.ndarray, fill: float = 0) -> np.ndarray:
        """Values (..., height, width) of the tile's pixels in the order of the columns; `fill` where there is none.

        Examples
        --------
        >>> tile = Tile(0, 2, 0, 8, stored=(2, 8))
        >>> tile.columns(np.arange(16).reshape(2, 8)).tolist()
        [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15]
        """
        rest = values.shape[:-2]
        if self.stored is None:
            return np.ascontiguousarray(values).reshape(*rest, self.width)
        if values.shape[-2:] != self.stored:
            whole = np.full((*rest, *self.stored), fill, values.dtype)
            whole[..., *self.inside] = values
            values = whole
        parts = np.swapaxes(values.reshape(*rest, self.width // PARTS, PARTS), -1, -2)
        return np.ascontiguousarray(parts).reshape(*rest, self.width)

    def places(self) -> np.ndarray:
        """Column of each pixel of the tile, in the order of the pixels.

        Examples
        --------
        >>> Tile(0, 2, 0, 8, stored=(2, 8)).places()[:5].tolist()
        [0, 2, 4, 6, 8]
        """
        return self.pixels(np.arange(self.width)).ravel()

    def pixels(self, columns: np.ndarray) -> np.ndarray:
        """What stands in the columns (..., pixels) as values (..., height, width) of the tile's pixels.

        Examples
        --------
        >>> tile = Tile(0, 2, 0, 8, stored=(2, 8))
        >>> bool((tile.pixels(tile.columns(np.eye(2, 8))) == np.eye(2, 8)).all())
        True
        """
        if self.stored is None:
            return columns.reshape(*columns.shape[:-1], *self.shape)
        parts = columns.reshape(*columns.shape[:-1], PARTS, self.width // PARTS)
        whole = np.swapaxes(parts, -1, -2).reshape(*columns.shape[:-1], *self.stored)
        return whole[..., *self.inside]

    @property
    def inside(self) -> tuple[slice, slice]:
        """Where its pixels lie in the tile as it was stored."""
        (height, width), (ky, kx) = self.shape, self.offset
        return slice(ky, ky + height), slice(kx, kx + width)

    def covering(self, ky: slice, kx: slice, offset: tuple[int, int]) -> Tile:
        """A tile of the same columns that covers other pixels, which begin at an offset in it."""
        return Tile(ky.start, ky.stop, kx.start, kx.stop, self.stored, offset)
