"""Instructions on vectors, against NumPy: every dtype of counts, lengths with and without a rest."""

import os
import subprocess
import sys

import numpy as np
import pytest
from numba import njit, types

from tdm_dask.kernels import vectors
from tdm_dask.kernels.vectors import NUMBER, Floats, floats, instructions, length_of, start_of

LENGTHS = (0, 1, 7, 15, 16, 17, 64, 129)
DTYPES = ("?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


@instructions
def convert_and_double(typing, values, out):
    def generate(context, builder, signature, arguments):
        arrays = list(zip(signature.args, arguments, strict=True))
        source, target = (start_of(context, builder, *array) for array in arrays)
        for j, f in floats(builder, out.dtype).loops(length_of(context, builder, *arrays[0])):
            numbers = f.load_as(source, j, values.dtype)
            f.store(f.add(numbers, numbers), target, j)
        return context.get_dummy_value()

    return types.void(values, out), generate


@instructions
def scaled_sum(typing, values, scale, out):
    """out[0] += scale[0] * sum of values."""

    def generate(context, builder, signature, arguments):
        arrays = list(zip(signature.args, arguments, strict=True))
        source, factor, target = (start_of(context, builder, *array) for array in arrays)
        whole, one = floats(builder, out.dtype), Floats(builder, out.dtype, 1)
        number = one.load(factor, NUMBER(0))
        sums = {f.lanes: f.variable() for f in (whole, one)}
        for j, f in whole.loops(length_of(context, builder, *arrays[0])):
            f.add_to(sums[f.lanes], f.multiply(f.everywhere(number), f.load(source, j)))
        parts = whole.sum(builder.load(sums[whole.lanes])), one.sum(builder.load(sums[1]))
        one.store(one.add(one.load(target, NUMBER(0)), *parts), target, NUMBER(0))
        return context.get_dummy_value()

    return types.void(values, scale, out), generate


@njit
def doubled(values, out):
    convert_and_double(values, out)


@njit
def add_sums(rows, scale, out):
    for i in range(len(rows)):
        scaled_sum(rows[i], scale, out)


@pytest.mark.parametrize("precision", ["f4", "f8"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_of_every_dtype_are_converted_in_vectors_and_one_by_one(dtype, precision):
    rng = np.random.default_rng(0)
    kind = np.dtype(dtype)
    for length in LENGTHS:
        if kind.kind in "ui":
            limits = np.iinfo(kind)
            values = rng.integers(limits.min, limits.max, length, kind, endpoint=True)
            values[:2] = [limits.min, limits.max][:length]
        else:
            values = (rng.normal(size=length) * 100).astype(kind)
        memory = np.full(length + 2, -1, precision)
        doubled(values, memory[1:-1])
        np.testing.assert_array_equal(memory[1:-1], values.astype(precision) * memory.dtype.type(2))
        assert memory[0] == memory[-1] == -1, "nothing beside the array is written"


@pytest.mark.parametrize("precision", ["f4", "f8"])
def test_sums_start_at_zero_each_time_and_take_what_is_left_over(precision):
    for length in LENGTHS:
        rows = np.arange(3 * length, dtype=precision).reshape(3, length)
        out = np.zeros(1, precision)
        add_sums(rows, np.full(1, 0.5, precision), out)
        assert out[0] == rows.sum(dtype="f8") / 2


def test_not_a_number_and_infinity_come_through():
    for value in (np.nan, np.inf):
        for place in (0, 15, 16, 18):
            rows = np.ones((1, 19))
            rows[0, place] = value
            out = np.zeros(1)
            add_sums(rows, np.ones(1), out)
            np.testing.assert_equal(out[0], value)


def test_an_array_that_is_not_contiguous_is_refused_when_code_is_compiled_for_it():
    with pytest.raises(TypeError, match="C-contiguous arrays, not one of layout A"):
        doubled(np.zeros(8)[::2], np.zeros(4))


def test_a_processor_that_llvm_knows_nothing_of_has_no_feature(monkeypatch):
    def refuse():
        raise RuntimeError("failed to query host CPU features")

    monkeypatch.setattr(vectors.llvmlite.binding, "get_host_cpu_features", refuse)
    assert not vectors._has("avx512f")


def test_without_a_compiler_the_reason_is_one_sentence():
    code = "import tdm_dask.kernels.moments"
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True
    )
    assert run.stderr.splitlines()[-1].endswith(
        "NUMBA_DISABLE_JIT is set, but kernels cannot do without Numba's compiler; unset it."
    )
