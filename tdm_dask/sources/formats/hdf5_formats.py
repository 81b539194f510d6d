"""Which program wrote an HDF5 file, and the reader for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..hdf5 import open_hdf5
from ..vendor import Request, VendorFile, file_size
from .dectris import is_master, open_master
from .hspy import is_hspy, open_hspy
from .labelled_hdf5 import open_labelled
from .topspin import is_topspin, open_topspin
from .velox import is_velox, open_velox

_KINDS: tuple[tuple[Callable[[Any], bool], Callable[[Request, Any], VendorFile]], ...] = (
    (is_hspy, open_hspy),
    (is_master, open_master),
    (is_velox, open_velox),
    (is_topspin, open_topspin),
)


def open_hdf5_scan(request: Request) -> VendorFile:
    """Open the 4D-STEM scan of an HDF5 file, by what is in it: extensions are shared by many programs."""
    request.refuse_layout("an HDF5 file")
    file_size(request.path)
    with open_hdf5(request.path) as file:
        for is_kind, reader in _KINDS:
            if is_kind(file):
                return reader(request, file)
        return open_labelled(request, file)
