"""A page to look at: choose sites, width and regions, see masks and images follow, confirm on the full data, save.

May import: report, recipe, plot, masks and what lies below. Used by `tdm view` and `tdm.view`.
"""

from typing import TYPE_CHECKING

if not TYPE_CHECKING:  # which need not know names that go: what was in the module of this name
    from ..renamed import moved

    __getattr__ = moved("viewer")
