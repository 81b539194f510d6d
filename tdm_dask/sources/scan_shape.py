"""How many frames a file holds against how many probe positions a scan has, and which frame belongs to which."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import ScanShapeError
from ..reading.blocks import RawFrames, Source
from .stacks import FrameOrder, PartialScan
from .vendor import Request


@dataclass(frozen=True)
class Rhythm:
    """What the frames' own times say about the lines of a scan.

    Parameters
    ----------
    line : int
        Frames from the beginning of one line to that of the next.
    first : int
        The first frame that follows the end of another line.
    by : str
        What says so.
    flyback : int, default 0
        Frames at the end of each line that are known to be flyback.
    """

    line: int
    first: int
    by: str
    flyback: int = 0

    @property
    def start(self) -> int:
        """The frame that begins the first line: what is before `first` is one, if it is as long as one."""
        return 0 if self.first == self.line else self.first

    def __str__(self) -> str:
        return f"{self.by} shows lines of {self.line} frames from frame {self.start} on"


@dataclass(frozen=True)
class Filling:
    """How the frames of a file fill a scan.

    Parameters
    ----------
    shape : (ny, nx)
    order : FrameOrder
    present : int
        Probe positions, in the order of the scan, that have a frame; the others are missing.
    findings : tuple of str
        Where the shape came from, and which frames are left out.
    """

    shape: tuple[int, int]
    order: FrameOrder
    present: int
    findings: tuple[str, ...]

    @property
    def valid_patterns(self) -> np.ndarray | None:
        """Flags (ny, nx) of the probe positions that have a frame; None where all have."""
        if self.present == math.prod(self.shape):
            return None
        return (np.arange(math.prod(self.shape)) < self.present).reshape(self.shape)

    def raw_frames(
        self, path: str, detector: tuple[int, int], dtype: np.dtype, *, offset: int = 0, stride: int | None = None
    ) -> RawFrames:
        """The scan's patterns of a file of frames that begin `stride` bytes apart, the first one at byte `offset`."""
        stride = stride or math.prod(detector) * dtype.itemsize
        return RawFrames(
            path,
            (*self.shape, *detector),
            dtype.str,
            offset=offset + self.order.first * stride,
            frame_stride=stride,
            line_stride=self.order.line * stride,
        )

    def without_missing(self, source: Source) -> Source:
        """A source that reads zeros where the file has no frame, or the source itself where it has all."""
        return source if self.valid_patterns is None else PartialScan(source, self.present)


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
    return [shape for shape in dict.fromkeys(shapes) if shape[0]][:most]


def suggestion(n_frames: int, near: tuple[int, int] | None = None) -> str:
    """The shapes that fit, as part of a sentence."""
    return " or ".join(f"scan_shape=({ny}, {nx})" for ny, nx in shapes_that_fit(n_frames, near))


def trims_that_fit(n_frames: int, shape: tuple[int, int], rhythm: Rhythm | None = None) -> list[tuple[int, int, str]]:
    """Flyback and skip_first that make a scan of a stack with more frames, each with the evidence for it.

    What the frames' times say goes first; else whole lines of `nx` and up to as many more frames that divide the stack.

    Examples
    --------
    >>> trims_that_fit(33800, (128, 256))
    [(4, 520, '33800 = 130 x 260')]
    >>> trims_that_fit(12, (3, 3), Rhythm(line=4, first=4, by="The clock"))
    [(1, 0, 'The clock shows lines of 4 frames from frame 0 on')]
    """
    ny, nx = shape
    if rhythm is not None and nx <= rhythm.line:
        flyback = rhythm.line - nx
        # The first line need not follow another one.
        for first in (rhythm.first, rhythm.first - rhythm.line):
            if first >= 0 and first + ny * rhythm.line - flyback <= n_frames:
                return [(flyback, first, str(rhythm))]
    fits = []
    for line in range(nx + 1, min(n_frames // ny, 2 * nx) + 1):
        lines, rest = divmod(n_frames, line)
        if rest == 0:
            fits.append((line - nx, (lines - ny) * line, f"{n_frames} = {lines} x {line}"))
    if ny > 1 and (n_frames - ny * nx) % (ny - 1) == 0 and n_frames > ny * nx:
        flyback = (n_frames - ny * nx) // (ny - 1)
        fits.append((flyback, 0, f"{n_frames} = {ny} x {nx + flyback} - {flyback}, none after the last line"))
    return sorted(fits, key=lambda fit: (fit[1], fit[0]))[:2]


def fill_with_frames(
    request: Request,
    n_frames: int,
    declared: tuple[int, int] | None = None,
    declared_by: str = "",
    *,
    name: str = "",
    rhythm: Callable[[], Rhythm | None] = lambda: None,
) -> Filling:
    """How the frames of a file fill the scan: its shape, the frames left out, the probe positions without one.

    Parameters
    ----------
    request : Request
        Its scan_shape goes before what the file says. With `flyback`, that many frames at the end of each line are
        left out (the last line may lack them); with `skip_first`, even of 0, that many before the scan and all
        after it. With `allow_partial` there may be too few frames.
    n_frames : int
        Whole frames in the file.
    declared : (ny, nx), optional
        What the file says.
    declared_by : str
        The part of the file that says so.
    name : str, optional
        The file, for messages; that of the request by default.
    rhythm : callable, optional
        Finds out what the frames' times say about the lines; asked for only where the scan is not filled.

    Raises
    ------
    ScanShapeError
        If the shape is not known, or its frames do not fill it; the message offers what would fit.
    InputError
        If an order of the axes was given.
    """
    name = name or request.name
    request.refuse_order("a stack of frames")
    if request.scan_shape is None and declared is None:
        raise ScanShapeError(_unknown_shape(name, n_frames, rhythm()))
    asked = request.scan_shape is not None
    shape, origin = (request.scan_shape, "scan_shape=") if asked else (declared, f"{declared_by} ")
    assert shape is not None
    ny, nx = shape
    flyback, first = request.flyback, request.skip_first or 0
    order = FrameOrder(n_frames, first, nx + flyback)
    # The flyback of the last line is not always recorded.
    least, most = first + ny * order.line - flyback, first + ny * order.line
    missing, accepted = n_frames < least, request.allow_partial  # which is looked at even where nothing is missing
    if (missing and not accepted) or (n_frames > most and request.skip_first is None):
        raise ScanShapeError(_does_not_fill(name, n_frames, shape, origin, least, request, rhythm()))
    lines, rest = divmod(max(n_frames - first, 0), order.line)
    present = min(lines * nx + min(rest, nx), ny * nx)
    if present == 0:
        raise ScanShapeError(
            f"{name} holds {n_frames} frames, of which skip_first={first} leaves none; expected some of the scan."
        )
    findings = [_origin(shape, request.scan_shape, declared, declared_by)]
    if first:
        findings.append(f"{first} frame(s) before the scan are left out: skip_first={first}.")
    if flyback:
        findings.append(f"The last {flyback} of the {order.line} frames of each line are left out: flyback={flyback}.")
    if n_frames > most:
        findings.append(f"{n_frames - most} frame(s) after the scan are left out.")
    if missing:
        findings.append(
            f"{ny * nx - present} of {ny * nx} probe positions have no frame, as allow_partial=True accepts; they read "
            "as zeros, and valid_patterns leaves them out of every statistic."
        )
    return Filling(shape, order, present, tuple(findings))


def _origin(
    shape: tuple[int, int], requested: tuple[int, int] | None, declared: tuple[int, int] | None, declared_by: str
) -> str:
    ny, nx = shape
    if requested is None:
        return f"The scan shape ({ny}, {nx}) comes from {declared_by}."
    if declared is not None and declared != requested:
        return f"The scan shape ({ny}, {nx}) was given; {declared_by} says ({declared[0]}, {declared[1]}) instead."
    return f"The scan shape ({ny}, {nx}) was given."


def _unknown_shape(name: str, n_frames: int, rhythm: Rhythm | None) -> str:
    what = f"{name} holds {n_frames} frames and does not say how they fill the scan"
    if rhythm is None:
        return f"{what}; give scan_shape, such as {suggestion(n_frames)}."
    shape = ((n_frames - rhythm.start + rhythm.flyback) // rhythm.line, rhythm.line - rhythm.flyback)
    return (
        f"{what}; {rhythm}: give scan_shape=({shape[0]}, {shape[1]}) with {_trim(rhythm.flyback, rhythm.start)}, if "
        "that is right."
    )


def _trim(flyback: int, first: int) -> str:
    return " and ".join([f"flyback={flyback}"] * (flyback > 0) + [f"skip_first={first}"] * (first > 0 or not flyback))


def _does_not_fill(
    name: str,
    n_frames: int,
    shape: tuple[int, int],
    origin: str,
    needed: int,
    request: Request,
    rhythm: Rhythm | None,
) -> str:
    """The sentence that says what does not fit, by what evidence, and what would."""
    ny, nx = shape
    more = n_frames > needed
    trimmed = _trim(request.flyback, request.skip_first or 0) if request.flyback or request.skip_first else ""
    what = f"{name} holds {n_frames} frames, but {origin}{shape} has {ny * nx} probe positions"
    if trimmed:
        what += f" and with {trimmed} needs {needed} frames"
    what += f", {'fewer' if more else 'more'} than the file has"
    offers = []
    if more:
        trims = trims_that_fit(n_frames, shape, rhythm)
        offers += [f"{_trim(flyback, first)} ({why})" for flyback, first, why in trims]
        extra = n_frames - needed
        if rhythm is None and extra <= 2 * nx:
            skip = (request.skip_first or 0) + extra
            offers.append(f"skip_first={skip} or skip_first=0 if {extra} frame(s) came before or after the scan")
    elif rhythm is not None:
        what += f" ({rhythm})"
    near = (ny, nx - request.flyback) if n_frames == ny * nx and 0 < request.flyback < nx else None
    if near is not None:
        offers.append(f"the same with scan_shape=({near[0]}, {near[1]})")
    if n_frames:
        offers.append(f"a scan_shape that fits, such as {suggestion(n_frames, shape)}")
    if not more:
        offers.append("allow_partial=True if the scan was interrupted")
    return f"{what}; give {', or '.join(offers)}."


def cut_advice(n_frames: int) -> str:
    """What to do about a file whose last frame is cut short, as part of a sentence."""
    return "copy it again, or give allow_partial=True to open what is whole" if n_frames else "copy it again"


def cut_frame(found: int, expected: int) -> list[str]:
    """A finding about a last frame of which only `found` of `expected` bytes are there, or none."""
    return [f"The last frame is cut short ({found} of {expected} bytes) and is not read."] if found else []
