"""The report of a recipe: figures, tables, one HTML page that stands alone, and the same as a notebook."""

from .writing import Report, write_report

__all__ = ["Report", "write_report"]
