"""A source whose counts are another's says of itself what that one says, as far as it changes nothing about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from tdm_dask.reading.blocks import Crop, Derived, Source
from tdm_dask.reading.thinned import Thinned, Thinning
from tdm_dask.sources.stacks import Exchanged, PartialScan


@dataclass(frozen=True)
class Ramp(Source):
    """Counts that say where they are, of a detector with 12 bits, in tiles of 3 x 4 that are read 1 x 2 at least."""

    shape = (6, 8, 3, 2)
    dtype = np.dtype(np.uint16)
    counter_depth = 12
    shard_bytes = 2**20
    random_access = True
    name, tile, grain = "ramp.abc", (3, 4), (1, 2)

    def read(self, y0, y1, x0, x1):
        return np.arange(np.prod(self.shape), dtype=self.dtype).reshape(self.shape)[y0:y1, x0:x1]


KINDS = {
    Crop: (Ramp(), (1, 2, 0, 0), (4, 5, 3, 2)),
    Thinned: (Ramp(), Thinning(2**63, 0, 1.0, False, (0, 0, 0, 0))),
    Exchanged: (Ramp(),),
    PartialScan: (Ramp(), 20),
}


def test_every_derived_source_is_here():
    assert set(Derived.__subclasses__()) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_what_the_other_one_says(kind):
    source = kind(*KINDS[kind])
    turned = slice(None, None, -1 if kind is Exchanged else 1)
    assert (source.name, source.dtype, source.counter_depth, source.random_access) == ("ramp.abc", np.uint16, 12, True)
    assert source.shard_bytes == 2**20
    assert (source.tile, source.grain) == ((3, 4)[turned], (1, 2)[turned])
    assert source.read(0, 2, 0, 3).shape == (2, 3, *source.shape[2:])


def test_sources_of_this_package_are_told_apart_by_their_name_alone_and_others_by_where_they_are_as_well():
    """Stores hold these tokens, and modules of this package have moved."""
    assert Crop(*KINDS[Crop]).__dask_tokenize__()[0] == "Crop"
    assert Ramp().__dask_tokenize__()[:2] == (__name__, "Ramp")


def test_a_path_of_any_kind_is_that_of_a_file_as_it_is_now(tmp_path):
    @dataclass(frozen=True)
    class OfFile(Ramp):
        path: object = None

    path = tmp_path / "scan.abc"
    path.write_bytes(b"1")
    for kind in (str, type(path)):
        source = OfFile(kind(path))
        before = source.__dask_tokenize__()
        path.write_bytes(path.read_bytes() + b"1")
        assert source.__dask_tokenize__() != before
