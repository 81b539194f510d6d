r"""Second moments of the counts over the scan, as passes of plain arrays: the matrix of all pixels with all, and its
products with masks.

With :math:`\hat D` the counts of p probe positions and q detector pixels, each pixel of mean 0 and standard deviation
1, :math:`C_q = \hat D^T \hat D / p` is the correlation matrix of the pixels. `gram` makes it whole, `normal_product`
makes :math:`C_q V^T` for a few masks V of any detector; both read the counts once. Principal components (eq. 6 and 9
of "Template-Derived Masks for 4D-STEM") and ridge masks are solved with either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from dask.delayed import Delayed, delayed
from dask.utils import format_bytes

from ..errors import MemoryLimitError
from ..kernels.matrix import centred_rows
from ..reading.blocks import Block, Window
from ..reading.lazy import source_of
from .graphs import moments_reduction, moments_result, parts_of, reduced, require_finite
from .reductions import PLACES_KEPT, Masks, MaskTile, Moments, State, Templates
from .whole_patterns import Gathered, Region

# Most pixels whose correlation matrix is made: what is summed takes 4 bytes for every pair, the matrix 8.
GRAM_PIXELS = 8192

# Patterns whose products are summed in float32 before they are added to what is float64; two for each block are lost
# to the difference of its mean.
ROWS = 2048

# Rows of the matrix that are made together: of a symmetric matrix, only what lies left of the end of each is made.
PANEL = 512

# A standard deviation that is this small a part of the mean is rounding.
_ROUNDING = 1e-13


def _panels(pixels: int) -> list[slice]:
    return [slice(n, min(n + PANEL, pixels)) for n in range(0, pixels, PANEL)]


@dataclass(frozen=True)
class Gram:
    r"""Sums of products of all pixels of a region with all, and with templates: :math:`\sum_i (d_{ij} - \bar d_j)
    (d_{ik} - \bar d_k)` and :math:`\sum_i S_{ti} (d_{ij} - \bar d_j)`, in one read.

    Each block is centred on its own mean before it becomes float32, and what lies between the means of blocks is added
    as one more row, by the rule of Chan, Golub and LeVeque (1979): nothing is ever subtracted, so that float32 products
    lose no more than their last digits. They are added up in float64 every `ROWS` patterns.

    A partial result takes 4 bytes for every pair of pixels (half of a symmetric float64 matrix): 67 MB for 4096
    pixels. A task holds one, `ROWS` patterns in float32, and one shard of counts at most; merging holds three.
    """

    def start(self, window: Window, used: np.ndarray | None, operand: Region) -> State:
        pixels = int(operand.pixels.sum())
        templates = 0 if operand.of is None else len(operand.of.values)
        return {
            "n": 0,
            "mean": np.zeros(pixels),
            "panels": [np.zeros((p.stop - p.start, p.stop)) for p in _panels(pixels)],
            "weight": np.zeros(templates),
            "cross": np.zeros((templates, pixels)),
            "gathered": Gathered(operand.pixels),
            "places": {},
            "kept": 0,
            "rows": np.empty((ROWS, pixels), np.float32),
            "weights": np.empty((ROWS, templates), np.float32),
            "filled": 0,
        }

    def add(self, state: State, block: Block, used: np.ndarray | None, operand: Region) -> None:
        patterns = state["gathered"].take(block, used)
        if patterns is None or patterns.missing:
            return
        tiles = []
        for tile, matrix in patterns.tiles:
            if tile not in state["places"]:
                found = operand.places(tile)
                # Moved blocks have as many places as shifts; the others, one for each tile of the detector.
                state["kept"] += len(found[0])
                if state["kept"] > PLACES_KEPT * len(state["mean"]):
                    state["places"], state["kept"] = {}, len(found[0])
                state["places"][tile] = found
            tiles.append((matrix, *state["places"][tile]))
        weights = None if operand.of is None else operand.of.weights(patterns.y, patterns.x, patterns.used)
        total = len(tiles[0][0])
        for first in range(0, total, ROWS - 1):
            part = slice(first, min(first + ROWS - 1, total))
            self._add_rows(
                state,
                [(m[part], columns, places) for m, columns, places in tiles],
                None if weights is None else weights[:, part],
            )
        state["gathered"].give_back(patterns)

    def _add_rows(self, state: State, tiles: list[Any], weights: np.ndarray | None) -> None:
        size = len(tiles[0][0])
        if state["filled"] + size + 1 > ROWS:
            _add_products(state)
        start = state["filled"]
        stop = start + size
        mean = np.empty(len(state["mean"]))
        for matrix, columns, places in tiles:
            centred_rows(matrix, columns, places, mean, state["rows"][start:stop])
        n, delta = state["n"], mean - state["mean"]
        state["rows"][stop] = delta * math.sqrt(n * size / (n + size))
        state["mean"] += delta * (size / (n + size))
        state["n"] = n + size
        state["filled"] = stop + 1
        state["weights"][start:stop] = 0.0 if weights is None else weights.T
        state["weights"][stop] = 0.0
        if weights is not None:
            weight = state["weights"][start:stop].sum(0, dtype=np.float64)
            state["weight"] += weight
            state["cross"] += np.outer(weight, mean)

    def finish(self, state: State) -> State:
        _add_products(state)
        state["gathered"].require_whole()
        # The products with templates were of counts as they are, but for rounding.
        cross = state["cross"] - np.outer(state["weight"], state["mean"])
        return {name: state[name] for name in ("n", "mean", "panels", "weight")} | {"cross": cross}

    def join(self, first: State, second: State) -> State:
        raise TypeError("A pass over whole patterns has no parts of other pixels to join.")

    def merge(self, first: State, second: State) -> State:
        a, b = first["n"], second["n"]
        n = a + b
        delta = second["mean"] - first["mean"]
        mean = first["mean"] + delta * (b / n)
        scaled = delta * math.sqrt(a) * math.sqrt(b / n)
        panels = []
        for p, one, other in zip(_panels(len(mean)), first["panels"], second["panels"], strict=True):
            panels.append(one + other)
            panels[-1] += np.outer(scaled[p], scaled[: p.stop])
        cross = first["cross"] + second["cross"]
        cross += np.outer(first["weight"], first["mean"] - mean) + np.outer(second["weight"], second["mean"] - mean)
        return {"n": n, "mean": mean, "panels": panels, "weight": first["weight"] + second["weight"], "cross": cross}


def _add_products(state: State) -> None:
    """Add the products of the rows that wait for it."""
    rows, weights = state["rows"][: state["filled"]], state["weights"][: state["filled"]]
    for p, panel in zip(_panels(rows.shape[1]), state["panels"], strict=True):
        panel += rows[:, p].T @ rows[:, : p.stop]
    if weights.shape[1]:
        state["cross"] += weights.T @ rows
    state["filled"] = 0


@dataclass(frozen=True)
class NormalProduct:
    r"""Images of masks, and the products of every pixel with these images, in one read.

    For prepared masks M with offsets o: images :math:`Y = D M^T - o`, their products :math:`Y^T Y`, and
    :math:`Y^T (D - \bar D)` with the mean and variance of every pixel, as `Moments` has for templates.

    A task holds one shard of counts at most, in their dtype, and the sums of `Moments`.
    """

    moments: Moments

    def start(self, window: Window, used: np.ndarray | None, operand: Region) -> State:
        masks = len(operand.of.weights)
        state = self.moments.start(window, used, None)
        shape = state["total"].shape
        return state | {
            "weight": np.zeros(masks),
            "cross": np.zeros((masks, *shape)),
            "gram": np.zeros((masks, masks)),
            "gathered": Gathered(operand.pixels),
            "masks": {},
            "kept": 0,
        }

    def add(self, state: State, block: Block, used: np.ndarray | None, operand: Region) -> None:
        masks: Masks = operand.of
        patterns = state["gathered"].take(block, used)
        if patterns is None:
            return
        tile, matrix = patterns.tiles[-1]
        if patterns.images is None:
            patterns.images = np.zeros((len(matrix), len(masks.weights)))
        over = MaskTile.kept(state, masks.weights, tile, matrix)
        if over is not None:
            patterns.images += over.weighted_sums(matrix)
        if patterns.missing:
            return
        images = patterns.images - masks.offsets
        state["gram"] += images.T @ images
        weights: np.ndarray = np.ascontiguousarray(images, self.moments.precision)
        state["weight"] += weights.sum(0, dtype=np.float64)
        for tile, matrix in patterns.tiles:
            self.moments.add_matrix(state, tile, matrix, weights)
        state["gathered"].give_back(patterns)

    def finish(self, state: State) -> State:
        state["gathered"].require_whole()
        names = ("masks", "kept", "gathered")
        return self.moments.finish({k: v for k, v in state.items() if k not in names}) | {"gram": state["gram"]}

    def join(self, first: State, second: State) -> State:
        raise TypeError("A pass over whole patterns has no parts of other pixels to join.")

    def merge(self, first: State, second: State) -> State:
        gram = first["gram"] + second["gram"]
        return self.moments.merge(first, second) | {"gram": gram}


def gram(
    array: Any,
    used: np.ndarray | None,
    pixels: np.ndarray | None,
    templates: Templates | Delayed | None = None,
    n_templates: int = 0,
    shifts: np.ndarray | None = None,
) -> dict[str, Any]:
    r"""Correlation matrix of detector pixels, with their mean, standard deviation and templates' rho, in one read.

    .. math:: C_{jk} = \frac{1}{n} \sum_i \frac{d_{ij} - \bar d_j}{\sigma_j} \frac{d_{ik} - \bar d_k}{\sigma_k}

    Its error is below 1e-5 of the diagonal, which is 1; pixels of standard deviation 0 have rows of 0.

    Parameters
    ----------
    array, used, templates, n_templates, shifts
        As in `passes.graphs.moments`.
    pixels : ndarray of bool, shape (nky, nkx), optional
        The q pixels of the matrix, in the order of `numpy.flatnonzero`. All by default.

    Returns
    -------
    dict
        "correlation" (q, q), "n", "mean", "std" and, with templates, "rho", as `passes.graphs.moments` gives them.

    Raises
    ------
    MemoryLimitError
        If there are more than `GRAM_PIXELS` pixels. Nothing is read then.
    CountsError
        When computed, if counts that are used are NaN or infinite.
    """
    detector = array.shape[2:]
    flags = np.ones(detector, bool) if pixels is None else pixels
    q = int(flags.sum())
    if q > GRAM_PIXELS:
        raise MemoryLimitError(
            f"The region holds {q} detector pixels, whose correlation matrix would take {format_bytes(8 * q * q)}; at "
            f"most {GRAM_PIXELS} are taken: sum pixels with tdm_dask.bin, choose a smaller region, or a method without "
            "the matrix."
        )
    operand = delayed(Region, pure=True)(flags, templates)
    whole = unsplit_detector(array)
    result = reduced(whole, Gram(), used, pixels, operand, shifts, _gram_result, flags)
    shapes = {"n": (), "mean": detector, "std": detector, "correlation": (q, q), "rho": (n_templates, *detector)}
    if templates is None:
        del shapes["rho"]
    return parts_of(array, result, shapes)


def whole_matrix(panels: list[np.ndarray], out: np.ndarray) -> np.ndarray:
    """The symmetric matrix whose rows, up to the end of each panel, are given."""
    for p, panel in zip(_panels(len(out)), panels, strict=True):
        out[p, : p.stop] = panel
        out[: p.stop, p] = panel.T
    return out


def _gram_result(state: State, pixels: np.ndarray) -> State:
    n, mean = state["n"], state["mean"]
    q = len(mean)
    matrix = whole_matrix(state["panels"], np.empty((q, q)))
    variance = np.diag(matrix) / n
    bad = np.zeros(pixels.shape, bool)
    bad[pixels] = ~(np.isfinite(mean) & np.isfinite(variance) & np.isfinite(state["cross"]).all(0))
    require_finite(bad)
    variance = np.where(variance > (_ROUNDING * mean) ** 2, variance, 0.0)
    std = np.sqrt(variance)
    inverse = np.divide(1.0, std, where=std > 0, out=np.zeros(q))
    matrix *= inverse[:, None] / n
    matrix *= inverse
    np.fill_diagonal(matrix, std > 0)
    rho = np.clip(state["cross"] * inverse / n, -1.0, 1.0)
    result = {"n": np.asarray(n, np.int64), "correlation": matrix}
    for name, values in (("mean", mean), ("std", std), ("rho", rho)):
        result[name] = np.zeros((*values.shape[:-1], *pixels.shape))
        result[name][..., pixels] = values
    return result


def normal_product(
    array: Any,
    masks: Masks | Delayed,
    n_masks: int,
    used: np.ndarray | None,
    pixels: np.ndarray | None,
    shifts: np.ndarray | None = None,
) -> dict[str, Any]:
    r"""Masks -> images -> masks: correlations of every pixel with the images of some masks, in one read.

    .. math:: y_{ki} = \sum_j m_{kj} d_{ij} - o_k, \qquad
              r_{kj} = \frac{1}{n} \sum_i y_{ki} \frac{d_{ij} - \bar d_j}{\sigma_j}

    With masks that `prepare_masks` standardised by the mean and standard deviation of the same probe positions, r is
    :math:`V C_q`, the product of the correlation matrix with each mask.

    Parameters
    ----------
    array, used, shifts
        As in `passes.graphs.moments`.
    masks : Masks or Delayed of Masks
        As made by `prepare_masks`; weights outside `pixels` are 0.
    n_masks : int
    pixels : ndarray of bool, shape (nky, nkx), optional
        Detector pixels that are read; results are 0 at the others. All by default.

    Returns
    -------
    dict
        "product" (n_masks, nky, nkx), "gram" (n_masks, n_masks), the mean products :math:`Y^T Y / n` of the images,
        and "n", "mean" and "std" as `passes.graphs.moments` gives them: NumPy arrays if `array` is one, else dask
        arrays that share one pass.

    Raises
    ------
    CountsError
        When computed, if counts that are used are NaN or infinite.
    """
    detector = array.shape[2:]
    reduction = NormalProduct(moments_reduction(array, pixels, shifts))
    flags = np.ones(detector, bool) if pixels is None else pixels
    operand = delayed(Region, pure=True)(flags, masks)
    whole = unsplit_detector(array)
    result = reduced(
        whole, reduction, used, pixels, operand, shifts, _normal_result, reduction.moments, detector, pixels
    )
    shapes = {"n": (), "mean": detector, "std": detector, "product": (n_masks, *detector), "gram": (n_masks, n_masks)}
    return parts_of(array, result, shapes)


def _normal_result(
    state: State, reduction: Moments, detector: tuple[int, int], pixels: np.ndarray | None
) -> dict[str, np.ndarray]:
    # As correlations, were the images standardised: they are made so, to be within [-1, 1], and back.
    n = state["n"]
    scale = np.sqrt(np.diag(state["gram"]) / n)
    inverse = np.divide(1.0, scale, where=scale > 0, out=np.zeros(len(scale)))[:, None, None]
    standardised = state | {"weight": state["weight"] * inverse[:, 0, 0], "cross": state["cross"] * inverse}
    result = moments_result(standardised, reduction, detector, pixels)
    return result | {"product": result.pop("rho") * scale[:, None, None], "gram": state["gram"] / n}


def unsplit_detector(array: Any) -> Any:
    """An array of counts with the detector in one chunk."""
    if isinstance(array, np.ndarray) or source_of(array) is not None or max(array.numblocks[2:]) == 1:
        return array
    return array.rechunk({2: -1, 3: -1})
