"""How ridge masks of every lambda do where they were not derived, and which lambda was chosen."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from ..axes import TEMPLATE
from ..errors import InputError
from ..evaluation.cross_talk import IMAGE
from ..masks.ridge import LAMBDA
from .drawing import DASHED
from .style import COLOURS, INK, MARKERS, new_figure, styled

_MARKED_EVERY = 10  # curves are told apart by a marker now and then, with any colour vision


@styled
def plot_regularisation(curve: xr.Dataset, axes: np.ndarray | None = None) -> np.ndarray:
    """Correlation, excess and loss of held-out images against lambda, with the lambda that was chosen.

    Parameters
    ----------
    curve : Dataset
        What `regularisation_curve` gives; a lazy one is computed.
    axes : ndarray of Axes (3,), optional
        Where to draw R of each image with its own template, the excess of each image, and the loss, each on a
        logarithmic lambda; a figure of its own by default. Of a single template there is no excess: then two, for R and
        the loss.

    Returns
    -------
    ndarray of Axes (3,) or (2,)

    Raises
    ------
    InputError
        If the Dataset is none of `regularisation_curve`, or there are too few Axes.

    Examples
    --------
    >>> from tdm_dask.axes import label_counts
    >>> from tdm_dask.masks.ridge import regularisation_curve
    >>> rng = np.random.default_rng(1)
    >>> template = xr.DataArray(rng.random((2, 16, 16)), dims=("template", "y", "x"), coords={"template": ["Li", "O"]})
    >>> mean = 20 + np.einsum("tyx,tab->yxab", template.values, 50 * rng.random((2, 4, 4)))
    >>> curve = regularisation_curve(label_counts(rng.poisson(mean).astype(np.uint16)), template)
    >>> [axes.get_ylabel() for axes in plot_regularisation(curve)]
    ['R with the own template', 'excess |R − G|', 'loss (R and excess)']
    """
    missing = {"own", "excess", "loss", "chosen"} - set(curve.variables)
    if missing or LAMBDA not in curve.dims:
        raise InputError(f"The Dataset lacks {sorted(missing)}; expected what regularisation_curve returns.")
    curve = curve.compute()
    names = [str(name) for name in curve[TEMPLATE].values]
    panels = ["own", "excess", "loss"] if len(names) > 1 else ["own", "loss"]
    if axes is None:
        axes = new_figure(2.5 * len(panels), 2.4).subplots(1, len(panels), sharex=True)
    drawn = np.ravel(axes)
    if len(drawn) != len(panels):
        raise InputError(f"{len(drawn)} Axes were given for {len(panels)} panels: {', '.join(panels)}.")
    after = {"both": "R and excess", "R": "R", "excess": "excess"}[str(curve.attrs.get("objective", "both"))]
    after = after if len(names) > 1 else "R"
    words = {"own": "R with the own template", "excess": "excess |R \N{MINUS SIGN} G|", "loss": f"loss ({after})"}
    for where, panel in zip(drawn, panels, strict=True):
        _draw(where, curve, panel, names)
        where.set_ylabel(words[panel])
    drawn[-1].set_title(f"chosen: λ = {float(curve['chosen']):.3g}")
    if len(names) > 1:
        # Above the panels, which curves and the chosen lambda cross from end to end.
        narrow = {"handlelength": 1.1, "handletextpad": 0.3, "columnspacing": 0.8, "borderpad": 0.0}
        drawn[0].legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=min(len(names), 4), **narrow)
    return drawn


def _draw(axes: Axes, curve: xr.Dataset, panel: str, names: list[str]) -> None:
    lambdas, chosen = curve[LAMBDA].values, float(curve["chosen"])
    at = int(np.argmin(np.abs(lambdas - chosen)))
    if panel == "loss":
        lines = {"": (curve["loss"].values, INK, "")}
    else:
        values = curve[panel].transpose(LAMBDA, TEMPLATE if panel == "own" else IMAGE).values
        lines = {
            name: (values[:, n], COLOURS[n % len(COLOURS)], MARKERS[n % len(MARKERS)]) for n, name in enumerate(names)
        }
    for n, (name, (values, colour, marker)) in enumerate(lines.items()):
        every = (2 * n % _MARKED_EVERY, _MARKED_EVERY)
        axes.plot(
            lambdas, values, color=colour, linewidth=1.2, marker=marker, markersize=4, markevery=every, label=name
        )
        if panel == "loss":
            axes.plot(chosen, values[at], "o", markersize=6, markerfacecolor="none", markeredgecolor=INK)
    axes.axvline(chosen, color=INK, linestyle=DASHED, linewidth=0.8)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xlabel("regularisation λ")
