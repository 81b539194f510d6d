"""The method: templates, the masks derived from them, and the images that masks make.

May import: columns, detector, conversion, counts and what lies below. Used by imaging, evaluation, recipes, the page.
"""

from typing import TYPE_CHECKING

if not TYPE_CHECKING:  # which need not know names that go: what was in the module of this name
    from ..renamed import moved

    __getattr__ = moved("masks")
