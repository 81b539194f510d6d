"""Numerics on plain NumPy arrays, compiled by Numba or by NumPy and SciPy themselves.

May import: errors. Knows no dask, no xarray, no files; `pyproject.toml` has the rule. Used by all that touches counts.
"""
