"""Figures, in one style: grey images with a scale bar, diverging masks in mrad, tables as heat maps.

Every function draws into the `axes` (or, of several panels, the `figure`) that it is given, or makes its own, and
returns the matplotlib Axes. `save_figure` writes the figure that they belong to.
"""

from .basic import plot_columns, plot_cross_talk, plot_image, plot_mask, plot_pacbed
from .style import save_figure

__all__ = ["plot_columns", "plot_cross_talk", "plot_image", "plot_mask", "plot_pacbed", "save_figure"]
