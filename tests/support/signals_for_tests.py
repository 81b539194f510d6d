"""Signals of HyperSpy for several tests, and what makes two of them equal."""

from __future__ import annotations

from pathlib import Path

import dask
import dask.array as da
import numpy as np
import yaml

import tdm_dask

EXTENSION = Path(tdm_dask.__file__).parent / "hyperspy_extension.yaml"


def register():
    """What HyperSpy does with the extension when it starts, for an environment installed before there was one."""
    from hyperspy.extensions import ALL_EXTENSIONS

    ALL_EXTENSIONS["signals"].update(yaml.safe_load(EXTENSION.read_text())["signals"])


def scan_signal(shape=(7, 6, 12, 10), lazy=False, seed=0):
    """A calibrated scan: nm, mrad, 200 keV, and the optic axis inside the detector."""
    from hyperspy.signals import Signal2D

    counts = np.random.default_rng(seed).poisson(4, shape).astype(np.uint16)
    signal = Signal2D(counts, metadata={"General": {"title": "a scan"}})
    for axis, name, unit, scale, offset in zip(
        signal.axes_manager.navigation_axes[::-1] + signal.axes_manager.signal_axes[::-1],
        ("y", "x", "ky", "kx"),
        ("nm", "nm", "mrad", "mrad"),
        (0.02, 0.02, 2.0, 2.0),
        (0.0, 0.1, -2.0 * (shape[2] // 2), -2.0 * (shape[3] // 2)),
        strict=True,
    ):
        axis.name, axis.units, axis.scale, axis.offset = name, unit, scale, offset
    signal.metadata.set_item("Acquisition_instrument.TEM.beam_energy", 200.0)
    if lazy:
        signal.data = da.from_array(counts, chunks=(3, 4, shape[2], shape[3]))
        signal = signal.as_lazy()
    return signal


def same(first, second):
    """Whether two pieces of metadata are equal, arrays and signals among them too."""
    if isinstance(first, dict):
        return isinstance(second, dict) and set(first) == set(second) and all(same(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        both = type(first) is type(second) and len(first) == len(second)
        return both and all(same(a, b) for a, b in zip(first, second, strict=True))
    if dask.is_dask_collection(first):
        return dask.is_dask_collection(second) and first.name == second.name
    if isinstance(first, np.ndarray):
        return isinstance(second, np.ndarray) and first.dtype == second.dtype and np.array_equal(first, second)
    return type(first) is type(second) and (first == second or first != first)


def assert_equal_signals(found, expected):
    """Equal in class, data, laziness, chunks, axes and both kinds of metadata."""
    assert type(found) is type(expected)
    assert found.data.dtype == expected.data.dtype
    if isinstance(expected.data, da.Array):
        assert found.data.chunks == expected.data.chunks
        # A line of patterns goes through a scan of one line, and its graph notes that.
        assert found.data.name == expected.data.name or expected.data.ndim == 3
    else:
        assert isinstance(found.data, np.ndarray)
    np.testing.assert_array_equal(found.data, expected.data)
    assert found.axes_manager.as_dictionary() == expected.axes_manager.as_dictionary()
    assert found.axes_manager.shape == expected.axes_manager.shape
    assert same(found.metadata.as_dictionary(), expected.metadata.as_dictionary()), (found.metadata, expected.metadata)
    assert same(found.original_metadata.as_dictionary(), expected.original_metadata.as_dictionary())
