"""A template-derived mask as a signal type of HyperSpy, registered in hyperspy_extension.yaml."""

from __future__ import annotations

from typing import Any

import dask
from hyperspy.defaults_parser import preferences
from hyperspy.signals import LazySignal2D, Signal2D

from ..cluster.progress import ProgressBars
from ..plot.style import DIVERGING
from .conversion import MASK_TYPE
from .node import NODE


class TemplateMask(Signal2D):
    """A mask of positive and negative weights over the detector, or a stack of them over templates.

    A Signal2D in all but its default colour map, which diverges from zero in the middle: what adds to the image is
    red, what is taken away is blue. ``metadata.tdm_dask`` has the mean and standard deviation of the counts that it was
    derived from, which an image from normalised counts needs.

    Examples
    --------
    >>> import numpy as np
    >>> TemplateMask(np.zeros((4, 6)))
    <TemplateMask, title: , dimensions: (|6, 4)>
    """

    _signal_type = MASK_TYPE

    def plot(self, *args: Any, **kwargs: Any) -> None:
        """Plot with zero in the middle of a diverging colour map; arguments are those of Signal2D.plot."""
        super().plot(*args, **({"cmap": DIVERGING, "scalebar_color": "black"} | kwargs))


class LazyTemplateMask(LazySignal2D, TemplateMask):
    """A `TemplateMask` whose weights are not computed yet."""

    def compute(self, close_file: bool = False, show_progressbar: bool | None = None, **kwargs: Any) -> None:
        """Compute the weights, and what the metadata hold of the counts, in one read; as LazySignal.compute."""
        coords = self.metadata.get_item(f"{NODE}.coords", default={})
        entries = coords if isinstance(coords, dict) else coords.as_dictionary()
        lazy = {name: entry["data"] for name, entry in entries.items() if dask.is_dask_collection(entry["data"])}
        this: Any = self
        # Kept as dask arrays of what is computed already, so that HyperSpy does what it always does with them.
        with shown_as_asked(show_progressbar).stage("mask"):
            this.data, *arrays = dask.persist(this.data, *lazy.values(), **kwargs)
            super().compute(close_file=close_file, show_progressbar=False, **kwargs)
        for name, array in zip(lazy, arrays, strict=True):
            values = array.compute(**kwargs)
            self.metadata.set_item(f"{NODE}.coords.{name}.data", values if values.ndim else values.item())


def shown_as_asked(show_progressbar: bool | None) -> ProgressBars:
    """Bars as HyperSpy's functions show them: by default where they can be seen, if its preferences say so."""
    if show_progressbar is None and preferences.General.show_progressbar:
        return ProgressBars()
    return ProgressBars(bool(show_progressbar))
