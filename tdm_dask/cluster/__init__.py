"""Where work runs: schedulers and their workers, what watches them, the machine's resources, progress bars.

May import: errors, words. Used by reading, for the size of tasks, and by whoever starts work.
"""

from typing import TYPE_CHECKING

if not TYPE_CHECKING:  # which need not know names that go: what was in the module of this name
    from ..renamed import moved

    __getattr__ = moved("cluster")
