"""Readers inside RosettaSciIO that parse a header without reading counts; see docs/dependencies.md.

Its public `file_reader` functions read all of a file, or put what is open into dask's graph.
"""

from __future__ import annotations

from typing import Any


def hspy_reader(file: Any) -> Any:
    """What makes dictionaries of HyperSpy's groups in an open HDF5 file."""
    from rsciio.hspy._api import HyperspyReader

    return HyperspyReader(file)


def zspy_reader(group: Any) -> Any:
    """What makes dictionaries of HyperSpy's groups in a zarr group."""
    from rsciio.zspy._api import ZspyReader

    return ZspyReader(group)


def group_to_dict(reader: Any, group: Any) -> dict[str, Any]:
    """A group of either file as a dictionary."""
    return reader._group2dict(group)


def dm_images(file: Any) -> list[Any]:
    """Every image of an open DigitalMicrograph file: shape, dtype, place in the file and tags."""
    from rsciio.digitalmicrograph._api import DigitalMicrographReader, ImageObject

    reader = DigitalMicrographReader(file)
    reader.parse_file()
    return [ImageObject(image, file) for image in reader.get_image_dictionaries() or []]


def merlin_settings(path: str) -> dict[str, Any]:
    """What the text file beside a Merlin file says."""
    from rsciio.quantumdetector._api import parse_hdr_file

    return parse_hdr_file(path)
