"""Template-derived masks for 4D-STEM: atom-column-sensitive images from scans of any size.

>>> import tdm_dask as tdm
>>> counts = tdm.open("scan.zarr")  # doctest: +SKIP
>>> mask = tdm.derive_mask(counts, tdm.gaussian_template(counts, sites, sigma=0.35))  # doctest: +SKIP
>>> image = tdm.apply_mask(counts, mask, normalisation="standardised").compute()  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import accessor as _accessor  # noqa: F401  (registers counts.tdm)

__version__ = "0.1.0"

# Names are resolved on first use (PEP 562), so that importing the package costs next to nothing.
_HOME = {
    "open": "opening",
    "convert": "conversion",
    "convert_stack": "conversion",
    "verify": "store",
    "calibrate": "calibration",
    "reciprocal": "calibration",
    "descan": "beam_tilt",
    "crop": "regions",
    "bin": "regions",
    "pixel_statistics": "statistics",
    "disk": "detectors",
    "annulus": "detectors",
    "segments": "detectors",
    "binary_template": "templates",
    "gaussian_template": "templates",
    "read_sites": "templates",
    "write_sites": "templates",
    "correlate": "masks",
    "derive_mask": "masks",
    "apply_mask": "masks",
    "transfer_mask": "masks",
    "proxy": "tuning",
    "column_images": "tuning",
    "cross_talk": "evaluation",
    "run_recipe": "recipe",
    "label_counts": "axes",
}
_MODULES = {"errors"}

__all__ = sorted([*_HOME, *_MODULES, "__version__"])

if TYPE_CHECKING:
    from . import errors as errors
    from .axes import label_counts as label_counts
    from .beam_tilt import descan as descan
    from .calibration import calibrate as calibrate
    from .calibration import reciprocal as reciprocal
    from .conversion import convert as convert
    from .conversion import convert_stack as convert_stack
    from .detectors import annulus as annulus
    from .detectors import disk as disk
    from .detectors import segments as segments
    from .evaluation import cross_talk as cross_talk
    from .masks import apply_mask as apply_mask
    from .masks import correlate as correlate
    from .masks import derive_mask as derive_mask
    from .masks import transfer_mask as transfer_mask
    from .opening import open as open
    from .recipe import run_recipe as run_recipe
    from .regions import bin as bin
    from .regions import crop as crop
    from .statistics import pixel_statistics as pixel_statistics
    from .store import verify as verify
    from .templates import binary_template as binary_template
    from .templates import gaussian_template as gaussian_template
    from .templates import read_sites as read_sites
    from .templates import write_sites as write_sites
    from .tuning import column_images as column_images
    from .tuning import proxy as proxy


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    elif name in _MODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
