"""Figures, in one style: grey images with a scale bar, diverging masks in mrad, tables as heat maps.

Every function draws into the `axes` (or, of several panels, the `figure`) that it is given, or makes its own, and
returns the matplotlib Axes. `save_figure` writes the figure that they belong to.
"""

from .aperture import plot_aperture, plot_aperture_signals
from .basic import plot_columns, plot_cross_talk, plot_image, plot_mask, plot_pacbed
from .components import plot_components
from .displacements import plot_displacements
from .evidence import plot_influence, plot_offsets, plot_significance, plot_verdicts
from .matrix import plot_matrix
from .occupancy import plot_detection, plot_occupancy
from .phase import plot_deflection, plot_line_profiles
from .profiles import plot_radial_profile
from .ridge import plot_regularisation
from .series import plot_image_series, plot_series
from .sites import plot_sites
from .style import save_figure
from .thickness import plot_matched_patterns, plot_misfit

__all__ = [
    "plot_aperture",
    "plot_aperture_signals",
    "plot_columns",
    "plot_components",
    "plot_cross_talk",
    "plot_deflection",
    "plot_detection",
    "plot_displacements",
    "plot_image",
    "plot_image_series",
    "plot_influence",
    "plot_line_profiles",
    "plot_mask",
    "plot_matched_patterns",
    "plot_matrix",
    "plot_misfit",
    "plot_occupancy",
    "plot_offsets",
    "plot_pacbed",
    "plot_radial_profile",
    "plot_regularisation",
    "plot_series",
    "plot_significance",
    "plot_sites",
    "plot_verdicts",
    "save_figure",
]
