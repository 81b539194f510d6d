"""How many frames a file holds against how many probe positions a scan has."""

from __future__ import annotations

import math

from ..errors import ScanShapeError


def shapes_that_fit(n_frames: int, near: tuple[int, int] | None = None, most: int = 4) -> list[tuple[int, int]]:
    """Scan shapes (ny, nx) that `n_frames` frames fill: with nx or ny of `near` first, then the squarest.

    Examples
    --------
    >>> shapes_that_fit(12, near=(3, 6))
    [(2, 6), (3, 4), (4, 3), (6, 2)]
    """
    shapes: list[tuple[int, int]] = []
    if near is not None:
        ny, nx = near
        if n_frames % nx == 0:
            shapes.append((n_frames // nx, nx))
        if n_frames % ny == 0:
            shapes.append((ny, n_frames // ny))
    for small in range(math.isqrt(n_frames), 0, -1):
        if n_frames % small == 0:
            shapes += [(small, n_frames // small), (n_frames // small, small)]
        if len(shapes) > 3 * most:
            break
    return list(dict.fromkeys(shapes))[:most]


def suggestion(n_frames: int, near: tuple[int, int] | None = None) -> str:
    """The shapes that fit, as part of a sentence."""
    return " or ".join(f"({ny}, {nx})" for ny, nx in shapes_that_fit(n_frames, near))


def fill_scan(
    name: str,
    n_frames: int,
    requested: tuple[int, int] | None,
    declared: tuple[int, int] | None,
    declared_by: str,
) -> tuple[tuple[int, int], str]:
    """The scan shape of a file, and a sentence that says where it came from.

    Parameters
    ----------
    name : str
        The file, for messages.
    n_frames : int
        Frames in the file.
    requested, declared : (ny, nx) or None
        What the caller asked for, which goes first, and what the file says.
    declared_by : str
        The part of the file that says so.

    Raises
    ------
    ScanShapeError
        If neither is known, or the one that counts does not fit the number of frames.
    """
    if requested is None and declared is None:
        raise ScanShapeError(
            f"{name} holds {n_frames} frames and does not say how they fill the scan; give scan_shape=(ny, "
            f"nx), such as {suggestion(n_frames)}."
        )
    shape, origin = (requested, "scan_shape") if requested is not None else (declared, declared_by)
    assert shape is not None
    ny, nx = shape
    if ny * nx != n_frames:
        difference = "more than the file has" if ny * nx > n_frames else "fewer than the file has"
        raise ScanShapeError(
            f"{name} holds {n_frames} frames, but {origin} ({ny}, {nx}) has {ny * nx} probe positions, "
            f"{difference}; give a scan_shape that fits, such as {suggestion(n_frames, shape)}."
        )
    if requested is None:
        return shape, f"The scan shape ({ny}, {nx}) comes from {declared_by}."
    if declared is not None and declared != requested:
        return shape, (
            f"The scan shape ({ny}, {nx}) was given; {declared_by} says ({declared[0]}, {declared[1]}) instead."
        )
    return shape, f"The scan shape ({ny}, {nx}) was given."
