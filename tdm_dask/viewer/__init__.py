"""A page to look at: choose sites, width and regions, see masks and images follow, confirm on the full data, save.

`tdm view STORE` serves it from a terminal, :func:`view` shows it in a notebook. Both hold a `tdm_dask.proxy` of the
counts in memory, from which everything on the page is made in a fraction of a second.
"""

from .opening import View, view, view_store

__all__ = ["View", "view", "view_store"]
