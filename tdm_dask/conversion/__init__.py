"""The way of a vendor's file into a store: sampled before, written shard by shard, checked after.

May import: counts, sources and what lies below. Used by masks (proxies), simulation and the command line.
"""

from typing import TYPE_CHECKING

if not TYPE_CHECKING:  # which need not know names that go: what was in the module of this name
    from ..renamed import moved

    __getattr__ = moved("conversion")
