"""Whole analyses from one file: the recipe, what it asks for, its plan, its trial runs, and the run itself.

May import: evaluation, masks and what lies below. Used by the report, the page and the command line.
"""

from typing import TYPE_CHECKING

if not TYPE_CHECKING:  # which need not know names that go: what was in the module of this name
    from ..renamed import moved

    __getattr__ = moved("recipe")
