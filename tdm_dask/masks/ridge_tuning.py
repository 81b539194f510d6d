"""Ridge masks again and again from counts at hand: what depends on the counts alone is worked out once."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from ..axes import TEMPLATE, check_counts
from ..counts.statistics import descan_shifts, detector_weights, used_patterns
from ..errors import InputError
from ..kernels.ridge_solver import RidgeFactors, separated
from ..passes.second_moments import gram
from .derivation import correlate
from .ridge import LAMBDA, RidgeProblem, labelled_masks, pixel_penalties
from .templates import check_template

# Pixels up to which the factors are made: a few seconds on two cores, and 33 MB.
MOST_PIXELS = 2048


class RidgeTuner:
    """Ridge masks of one template after another, and of one lambda after another, from the same counts.

    The first mask takes what `derive_mask` takes. The products of all pixels with all and their eigenvectors are kept,
    so that every later one costs a `correlate`.

    Parameters
    ----------
    counts : DataArray, dims (y, x, ky, kx)
        Best a `tdm_dask.proxy` in memory: this reads, now, and every mask reads again.
    detector_region, scan_region
        As in `tdm_dask.correlate`.
    counts_per_electron : float, optional
        As in `tdm_dask.derive_mask`.

    Raises
    ------
    InputError
        If the region holds more than 2048 pixels.
    RegionError, CountsError
        As in `tdm_dask.derive_mask`.

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> from tdm_dask.masks.derivation import derive_mask
    >>> rng = np.random.default_rng(1)
    >>> template = xr.DataArray(rng.random((24, 24)), dims=("y", "x"))
    >>> mean = 20 + 50 * template.values[:, :, None, None] * rng.random((4, 4))
    >>> counts = label_counts(rng.poisson(mean).astype(np.uint16))
    >>> mask = RidgeTuner(counts).mask(template, 0.1)
    >>> bool(np.allclose(mask, derive_mask(counts, template, method="ridge", regularisation=0.1)))
    True
    """

    def __init__(
        self,
        counts: xr.DataArray,
        *,
        detector_region: Any = None,
        scan_region: Any = None,
        counts_per_electron: float | None = None,
    ) -> None:
        self._counts = check_counts(counts)
        self._weights, self._scan_region = detector_weights(counts, detector_region), scan_region
        pixels = self._weights > 0
        if pixels.sum() > MOST_PIXELS:
            raise InputError(
                f"The detector region holds {int(pixels.sum())} pixels, more than the {MOST_PIXELS} that ridge masks "
                "are tried on; choose a smaller region, or sum pixels with tdm_dask.bin."
            )
        found = gram(counts.data, used_patterns(counts, scan_region), pixels, shifts=descan_shifts(counts))
        matrix, mean, std = (np.asarray(found[name]) for name in ("correlation", "mean", "std"))
        self._constant = std[pixels] == 0
        penalties = pixel_penalties(mean[pixels], std[pixels], self._weights[pixels], counts_per_electron)
        self._factors = RidgeFactors.of(matrix, penalties)

    def mask(self, template: xr.DataArray, regularisation: float, *, separate: bool = False) -> xr.DataArray:
        """What `tdm_dask.derive_mask` gives with ``method="ridge"`` and these options.

        Raises
        ------
        InputError
            If the regularisation is no positive number.
        TemplateError
            As in `tdm_dask.derive_mask`.
        """
        if not 0 < regularisation < np.inf:
            raise InputError(f"The regularisation is {regularisation!r}; expected a positive number, such as 0.1.")
        template = check_template(self._counts, template)
        regions = {"detector_region": self._weights, "scan_region": self._scan_region}
        found = correlate(self._counts, template, **regions).compute()
        stacked = found["rho"] if TEMPLATE in found["rho"].dims else found["rho"].expand_dims(TEMPLATE)
        problem = RidgeProblem.of(self._counts, template, self._weights, self._scan_region).computed()
        rho = stacked.values[:, problem.pixels]
        weights = self._factors.weights(rho, regularisation)
        weights[:, self._constant] = 0.0
        if separate:
            weights = separated(weights, rho, problem.template_correlations())
        mask = np.zeros(stacked.shape)
        mask[:, problem.pixels] = weights
        values = {name: found[name].values for name in ("mean", "std", "n")}
        values |= {"mask": mask, "rho": stacked.values, LAMBDA: np.asarray(regularisation)}
        return labelled_masks(values, problem, template, {"solver": "gram", "reads": 1})
