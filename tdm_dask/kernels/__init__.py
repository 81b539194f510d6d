"""Numerics on plain NumPy arrays, compiled by Numba or by NumPy and SciPy themselves.

May import: errors. Knows no dask, no xarray, no files. Used by everything that touches counts.
"""
