"""Arithmetic on vectors, written out for compiled code where Numba would take narrower ones, or none.

LLVM, which Numba compiles with, prefers vectors of 256 bits on many processors that have those of 512, and cannot know
that a dozen of arrays do not overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..errors import InputError

# Functions so made are called with one argument less than they are written with.
instructions: Any = intrinsic

if getattr(config, "DISABLE_JIT", 0):
    raise InputError("NUMBA_DISABLE_JIT is set, but kernels cannot do without Numba's compiler; unset it.")


def _has(feature: str) -> bool:
    """Whether this processor has a feature, as LLVM calls it; False where LLVM cannot tell."""
    try:
        return bool(llvmlite.binding.get_host_cpu_features().get(feature))
    except RuntimeError:
        return False


# Bytes of a vector: where a processor has none so wide, each is several of its own.
VECTOR = 64 if _has("avx512f") else 32

NUMBER = ir.IntType(64)
_INDEX = ir.IntType(32)

# Sums may be taken in any order, but NaN and infinity must come through.
_REORDER = ("reassoc", "contract", "nsz", "arcp")


def start_of(context, builder, kind, array):
    """The address where a C-contiguous array begins; TypeError for any other, when code is compiled for it."""
    if kind.layout != "C":
        raise TypeError(f"instructions on vectors take C-contiguous arrays, not one of layout {kind.layout}")
    return builder.ptrtoint(context.make_array(kind)(context, builder, array).data, NUMBER)


def length_of(context, builder, kind, array):
    """The length of an array of one dimension."""
    return builder.extract_value(context.make_array(kind)(context, builder, array).shape, 0)


class Floats:
    """Instructions on floats of one precision, a vector or a single one at a time.

    Parameters
    ----------
    builder : IRBuilder
    precision : numba Float
    lanes : int
        Numbers at a time.
    """

    def __init__(self, builder, precision, lanes: int) -> None:
        self.builder, self.precision, self.lanes = builder, precision, lanes
        self.kind = self._like(_element(precision))

    def loops(self, size) -> Iterator[tuple[Any, Floats]]:
        """Loops over so many numbers, in vectors and then what is left one by one: where, and instructions for it."""
        whole = self.builder.and_(size, NUMBER(-self.lanes))
        for first, stop, lanes in ((NUMBER(0), whole, self.lanes), (whole, size, 1)):
            with cgutils.for_range_slice(self.builder, first, stop, NUMBER(lanes), intp=NUMBER) as (j, _):
                yield j, Floats(self.builder, self.precision, lanes)

    def place(self, start, j, kind=None):
        """The address of number j of an array of this precision, or of a Numba type."""
        return self.builder.add(start, self.builder.mul(j, NUMBER(_bytes(kind or self.precision))))

    def load(self, start, j):
        return self._load(self.place(start, j), self.kind)

    def store(self, values, start, j) -> None:
        place = self.builder.inttoptr(self.place(start, j), self.kind.as_pointer())
        self.builder.store(values, place, align=1)

    def load_as(self, start, j, kind):
        """Numbers of an array of a Numba type, in this precision."""
        values = self._load(self.place(start, j, kind), self._like(_element(kind)))
        if isinstance(kind, types.Float):
            if kind.bitwidth == self.precision.bitwidth:
                return values
            wider = kind.bitwidth < self.precision.bitwidth
            return (self.builder.fpext if wider else self.builder.fptrunc)(values, self.kind)
        signed = getattr(kind, "signed", False)
        if _bytes(kind) < 4:
            # From 32 bits with a sign processors have an instruction.
            values = (self.builder.sext if signed else self.builder.zext)(values, self._like(_INDEX))
            signed = True
        return (self.builder.sitofp if signed else self.builder.uitofp)(values, self.kind)

    def everywhere(self, number):
        """A number in every place."""
        if self.lanes == 1:
            return number
        nothing = ir.Constant(self.kind, ir.Undefined)
        first = self.builder.insert_element(nothing, number, _INDEX(0))
        return self.builder.shuffle_vector(first, nothing, ir.Constant(self._like(_INDEX), [0] * self.lanes))

    def variable(self):
        """Memory for a sum that starts as 0; one that lives in a register, in the end."""
        zero = ir.Constant(self.kind, [0.0] * self.lanes if self.lanes > 1 else 0.0)
        with self.builder.goto_entry_block():
            place = self.builder.alloca(self.kind)
        self.builder.store(zero, place)
        return place

    def add_to(self, variable, *values) -> None:
        self.builder.store(self.add(self.builder.load(variable), *values), variable)

    def add(self, first, *others):
        for other in others:
            first = self.builder.fadd(first, other, flags=_REORDER)
        return first

    def subtract(self, first, second):
        return self.builder.fsub(first, second, flags=_REORDER)

    def multiply(self, first, second):
        return self.builder.fmul(first, second, flags=_REORDER)

    def sum(self, values):
        """The sum of the numbers of a vector."""
        while (count := getattr(values.type, "count", 1)) > 1:
            half = ir.VectorType(_INDEX, count // 2)
            lower, upper = (
                self.builder.shuffle_vector(
                    values,
                    ir.Constant(values.type, ir.Undefined),
                    ir.Constant(half, list(range(start, start + half.count))),
                )
                for start in (0, half.count)
            )
            values = self.add(lower, upper)
        return self.builder.extract_element(values, _INDEX(0)) if self.lanes > 1 else values

    def _like(self, scalar):
        return scalar if self.lanes == 1 else ir.VectorType(scalar, self.lanes)

    def _load(self, place, kind):
        return self.builder.load(self.builder.inttoptr(place, kind.as_pointer()), align=1)


def floats(builder, precision) -> Floats:
    """Instructions on whole vectors of a precision."""
    return Floats(builder, precision, VECTOR // _bytes(precision))


def _element(kind) -> ir.Type:
    if isinstance(kind, types.Float):
        return ir.FloatType() if kind.bitwidth == 32 else ir.DoubleType()
    return ir.IntType(8 * _bytes(kind))


def _bytes(kind) -> int:
    return 1 if isinstance(kind, types.Boolean) else kind.bitwidth // 8
