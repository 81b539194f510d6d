"""Which counts a report is about: the file and its hash, or the store, and what the counts themselves come to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from ..axes import FINDINGS
from ..reading.store import read_attributes
from ..recipe.recipe_file import as_key, recipe_texts
from ..recipe.run import RecipeResult
from ..shards.objects import StoreLike, resolve
from ..words import bytes_text, in_place

# Arrays that a conversion gathers in its one read: the sum of every pattern, the maximum of every pixel. Both are exact
# for integers and the same however the counts are stored, which a mean of long integers need not be.
GATHERED = ("total_counts", "pattern_maximum")

HOW = (
    "import hashlib, zarr; s = zarr.open_group({store}, mode='r'); "
    "print(hashlib.sha256(b''.join(s[n][...].tobytes() for n in {names})).hexdigest())"
)


def fingerprint(store: StoreLike) -> str | None:
    """SHA-256 of the sum of every pattern and the maximum of every pixel, which a store has from its conversion.

    Two scans that differ in the sum of any pattern, or in the largest count of any pixel, have different ones. Of whole
    numbers it is the same whatever compression, shards and workers they were stored with; sums of others are rounded,
    and shards may tell. Reads none of the counts.

    Returns
    -------
    str or None
        None where the store has no such sums, because another program wrote it.
    """
    arrays = _gathered(store)
    if arrays is None:
        return None
    digest = hashlib.sha256()
    for array in arrays:
        values = np.asarray(array[...])
        digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _gathered(store: StoreLike) -> list[zarr.Array] | None:
    group = zarr.open_group(resolve(store), mode="r")
    arrays = [array for array in map(group.get, GATHERED) if isinstance(array, zarr.Array)]
    return arrays if len(arrays) == len(GATHERED) else None


def fingerprint_command(store: str | Path) -> str | None:
    """What gives the fingerprint again with zarr alone, in the folder of the store; None where it has none."""
    if _gathered(store) is None:
        return None
    place = str(store) if "://" in str(store) else Path(store).name
    return f'python -c "{HOW.format(store=repr(place), names=GATHERED)}"'


def was_converted(result: RecipeResult) -> bool:
    """Whether the recipe names a file that was converted, and no store."""
    return result.store != result.recipe.source_place()


def source_facts(result: RecipeResult) -> Iterator[tuple[str, str]]:
    """Where the counts come from: name and value of each fact."""
    attributes = read_attributes(resolve(result.store)) or {}
    source = attributes.get("source", {})
    if was_converted(result):
        yield from _file_facts(source, "file")
    else:
        yield "store", str(result.recipe.source.path)
        if "id" in attributes:
            yield "id of the store", str(attributes["id"])
        if source:
            yield from _file_facts(source, "converted from")
    if source.get("frame") is not None:
        yield "scan of the file", f"number {source['frame']}"
    if source.get("reader"):
        yield "read by", str(source["reader"])
    crop = attributes.get("request", {}).get("crop")
    if crop:
        yield "cropped to", ", ".join(f"{dim} {start}:{stop}" for dim, (start, stop) in crop.items())
    yield "fingerprint of the counts", fingerprint(result.store) or "none: the store has no sums of its counts"
    kept = list(recipe_texts(result.recipe))
    found = [in_place(str(text), as_key, kept) for text in result.counts.attrs.get(FINDINGS, ())]
    if found:
        yield "what the checks found", " ".join(found)


def _file_facts(source: Mapping[str, Any], label: str) -> Iterator[tuple[str, str]]:
    yield label, str(source.get("name", "something unknown"))
    if "size" in source:
        yield "size", f"{source['size']:,} bytes".replace(",", " ") + f" ({bytes_text(source['size'])})"
    if "modified" in source:
        yield "modified", _moment(source["modified"])
    if "sha256" in source:
        yield "SHA-256 of the file", str(source["sha256"])
    for other in source.get("linked", ()):
        yield "with", f"{other['name']}, {bytes_text(other['size'])}, modified {_moment(other['modified'])}"


def _moment(text: str) -> str:
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M:%S UTC")
