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
from . import renamed as _renamed

__version__ = "0.1.0"

# Names are resolved on first use (PEP 562), so that importing the package costs next to nothing.
_HOME = {
    "open": "counts.opening",
    "convert": "conversion.conversion",
    "convert_stack": "conversion.conversion",
    "verify": "reading.store",
    "calibrate": "detector.calibration",
    "reciprocal": "detector.calibration",
    "descan": "detector.descan",
    "crop": "counts.regions",
    "bin": "counts.regions",
    "pixel_statistics": "counts.statistics",
    "reduce": "counts.reduction",
    "Reduction": "counts.reduction",
    "disk": "detector.conventional_masks",
    "annulus": "detector.conventional_masks",
    "segments": "detector.conventional_masks",
    "binary_template": "masks.templates",
    "gaussian_template": "masks.templates",
    "read_sites": "masks.templates",
    "write_sites": "masks.templates",
    "correlate": "masks.derivation",
    "derive_mask": "masks.derivation",
    "apply_mask": "masks.derivation",
    "transfer_mask": "masks.derivation",
    "proxy": "masks.proxies",
    "column_images": "masks.proxies",
    "cross_talk": "evaluation.cross_talk",
    "regularisation_curve": "masks.ridge",
    "matrix_view": "imaging.matrix_view",
    "radial_profile": "detector.radial_profiles",
    "thin": "counts.thinning",
    "split_electrons": "counts.thinning",
    "thinned_snr": "evaluation.noise",
    "lattice_snr": "evaluation.noise",
    "principal_components": "imaging.components",
    "nonnegative_components": "imaging.components",
    "find_columns": "columns.finding",
    "Lattice": "columns.lattice",
    "sites_from_cif": "columns.crystal",
    "register_sites": "columns.registration",
    "refine_columns": "columns.refinement",
    "refined_sites": "columns.refinement",
    "displacements": "columns.displacement",
    "symmetrise_mask": "masks.symmetry",
    "centre_of_mass": "imaging.deflection",
    "differential_phase_contrast": "imaging.deflection",
    "integrated_centre_of_mass": "imaging.phase",
    "scan_rotation": "imaging.phase",
    "line_profile": "imaging.line_profiles",
    "averaged_profile": "imaging.line_profiles",
    "profile_sites": "imaging.line_profiles",
    "profile_peaks": "imaging.line_profiles",
    "running_mask": "masks.live",
    "live_image": "masks.live",
    "collection_aperture": "masks.aperture",
    "match_thickness": "imaging.thickness",
    "simulate": "simulation.multislice",
    "simulate_pacbed": "simulation.multislice",
    "offset_scan": "evaluation.offsets",
    "random_sites": "evaluation.null",
    "null_distribution": "evaluation.null",
    "template_influence": "evaluation.influence",
    "held_out_cross_talk": "evaluation.held_out",
    "site_contrast": "evaluation.cross_talk",
    "gap_contrast": "evaluation.cross_talk",
    "from_signal": "signals.conversion",
    "to_signal": "signals.conversion",
    "open_signal": "hyperspy",
    "counting_variance": "evaluation.counting_noise",
    "evidence": "evaluation.verdict",
    "follow": "counts.arrival",
    "register_format": "sources.plugins",
    "frame_file": "sources.frame_files",
    "VendorFile": "sources.vendor",
    "Source": "reading.blocks",
    "occupancy_table": "evaluation.occupancy",
    "detection_limit": "evaluation.occupancy",
    "crystal_block": "simulation.specimens",
    "run_recipe": "recipe.run",
    "label_counts": "axes",
    "view": "viewer.opening",
    "scheduler": "cluster.schedulers",
    "progress_bar": "cluster.progress",
    "write_report": "report.writing",
}
_MODULES = {"errors", "hyperspy"}

__all__ = sorted([*_HOME, *_MODULES, "__version__"])

_renamed.keep_modules()

if TYPE_CHECKING:
    from . import errors as errors
    from . import hyperspy as hyperspy
    from .axes import label_counts as label_counts
    from .cluster.progress import progress_bar as progress_bar
    from .cluster.schedulers import scheduler as scheduler
    from .columns.crystal import sites_from_cif as sites_from_cif
    from .columns.displacement import displacements as displacements
    from .columns.finding import find_columns as find_columns
    from .columns.lattice import Lattice as Lattice
    from .columns.refinement import refine_columns as refine_columns
    from .columns.refinement import refined_sites as refined_sites
    from .columns.registration import register_sites as register_sites
    from .conversion.conversion import convert as convert
    from .conversion.conversion import convert_stack as convert_stack
    from .counts.arrival import follow as follow
    from .counts.opening import open as open
    from .counts.reduction import Reduction as Reduction
    from .counts.reduction import reduce as reduce
    from .counts.regions import bin as bin
    from .counts.regions import crop as crop
    from .counts.statistics import pixel_statistics as pixel_statistics
    from .counts.thinning import split_electrons as split_electrons
    from .counts.thinning import thin as thin
    from .detector.calibration import calibrate as calibrate
    from .detector.calibration import reciprocal as reciprocal
    from .detector.conventional_masks import annulus as annulus
    from .detector.conventional_masks import disk as disk
    from .detector.conventional_masks import segments as segments
    from .detector.descan import descan as descan
    from .detector.radial_profiles import radial_profile as radial_profile
    from .evaluation.counting_noise import counting_variance as counting_variance
    from .evaluation.cross_talk import cross_talk as cross_talk
    from .evaluation.cross_talk import gap_contrast as gap_contrast
    from .evaluation.cross_talk import site_contrast as site_contrast
    from .evaluation.held_out import held_out_cross_talk as held_out_cross_talk
    from .evaluation.influence import template_influence as template_influence
    from .evaluation.noise import lattice_snr as lattice_snr
    from .evaluation.noise import thinned_snr as thinned_snr
    from .evaluation.null import null_distribution as null_distribution
    from .evaluation.null import random_sites as random_sites
    from .evaluation.occupancy import detection_limit as detection_limit
    from .evaluation.occupancy import occupancy_table as occupancy_table
    from .evaluation.offsets import offset_scan as offset_scan
    from .evaluation.verdict import evidence as evidence
    from .hyperspy import open_signal as open_signal
    from .imaging.components import nonnegative_components as nonnegative_components
    from .imaging.components import principal_components as principal_components
    from .imaging.deflection import centre_of_mass as centre_of_mass
    from .imaging.deflection import differential_phase_contrast as differential_phase_contrast
    from .imaging.line_profiles import averaged_profile as averaged_profile
    from .imaging.line_profiles import line_profile as line_profile
    from .imaging.line_profiles import profile_peaks as profile_peaks
    from .imaging.line_profiles import profile_sites as profile_sites
    from .imaging.matrix_view import matrix_view as matrix_view
    from .imaging.phase import integrated_centre_of_mass as integrated_centre_of_mass
    from .imaging.phase import scan_rotation as scan_rotation
    from .imaging.thickness import match_thickness as match_thickness
    from .masks.aperture import collection_aperture as collection_aperture
    from .masks.derivation import apply_mask as apply_mask
    from .masks.derivation import correlate as correlate
    from .masks.derivation import derive_mask as derive_mask
    from .masks.derivation import transfer_mask as transfer_mask
    from .masks.live import live_image as live_image
    from .masks.live import running_mask as running_mask
    from .masks.proxies import column_images as column_images
    from .masks.proxies import proxy as proxy
    from .masks.ridge import regularisation_curve as regularisation_curve
    from .masks.symmetry import symmetrise_mask as symmetrise_mask
    from .masks.templates import binary_template as binary_template
    from .masks.templates import gaussian_template as gaussian_template
    from .masks.templates import read_sites as read_sites
    from .masks.templates import write_sites as write_sites
    from .reading.blocks import Source as Source
    from .reading.store import verify as verify
    from .recipe.run import run_recipe as run_recipe
    from .report.writing import write_report as write_report
    from .signals.conversion import from_signal as from_signal
    from .signals.conversion import to_signal as to_signal
    from .simulation.multislice import simulate as simulate
    from .simulation.multislice import simulate_pacbed as simulate_pacbed
    from .simulation.specimens import crystal_block as crystal_block
    from .sources.frame_files import frame_file as frame_file
    from .sources.plugins import register_format as register_format
    from .sources.vendor import VendorFile as VendorFile
    from .viewer.opening import view as view


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    elif name in _MODULES or name in _renamed.MOVED:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
