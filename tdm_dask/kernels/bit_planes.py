"""Counts from the bit planes that Blosc's bitshuffle leaves, and bit planes from counts, compiled by Numba.

Bitshuffle stores bit p of count 8 i + k as bit k of byte i of plane p. Putting the counts of a pattern back in order
is what takes Blosc its time, and no sum over them needs it: here a pattern becomes the eight interleaved parts (counts
8 i + k of one k, side by side) that 64-bit words give at once, in as few bytes as the counts need.

    columns of a pattern of n pixels:  0, 8, 16, ..., 1, 9, 17, ..., 7, 15, ..., n - 1
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from .vectors import instructions

# What `place_planes` answers, if not how many bytes of a count are needed.
TOO_NARROW = -2

# Words of 64 bit that are taken together: vectors that every processor has the registers for.
_LANES = 4

# Counts whose planes are made together: eight vectors of such words.
GROUP = 256


@njit(nogil=True, cache=True)
def any_bit(words: np.ndarray) -> bool:
    seen = np.uint64(0)
    for j in range(len(words)):
        seen |= words[j]
    return seen != 0


@instructions
def _transpose(typing, planes, plane_bytes, out, part_bytes, words, few):
    """Write the eight parts of so many words of eight planes, from addresses and with bytes between planes and parts.

    The bytes of eight planes that stand at one place are an 8 x 8 matrix of bits, whose quarters change places, then
    the quarters of these, then single bits (Warren, Hacker's Delight, 2nd edition, section 7-3). Where there are few,
    the last four planes are zero and are not read.
    """
    signature = types.void(types.intp, types.intp, types.intp, types.intp, types.intp, types.boolean)

    def generate(context, builder, _, arguments):
        planes, plane_bytes, out, part_bytes, words, few = arguments
        number = ir.IntType(64)
        whole = builder.and_(words, number(-_LANES))
        for is_few in (True, False):
            with builder.if_then(few if is_few else builder.not_(few)):
                vector = ir.VectorType(number, _LANES)
                for first, stop, step, kind in ((number(0), whole, _LANES, vector), (whole, words, 1, number)):
                    with cgutils.for_range_slice(builder, first, stop, number(step), intp=number) as (j, _):
                        source, target = (builder.add(start, builder.shl(j, number(3))) for start in (planes, out))
                        _emit_parts(builder, kind, source, plane_bytes, target, part_bytes, is_few)
        return context.get_dummy_value()

    return signature, generate


def _emit_parts(builder, kind, planes, plane_bytes, out, part_bytes, few):
    """Instructions that write the parts of one word or vector of words."""
    number = ir.IntType(64)

    def constant(value):
        return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)

    def place(start, pitch, k):
        return builder.inttoptr(builder.add(start, builder.mul(pitch, number(k))), kind.as_pointer())

    rows = [builder.load(place(planes, plane_bytes, p), align=1) for p in range(4 if few else 8)]
    rows += [constant(0)] * (8 - len(rows))
    for size, mask in ((4, 0x0F), (2, 0x33), (1, 0x55)):
        chosen, by = constant(mask * 0x0101010101010101), constant(size)
        for p in (p for p in range(8) if not p & size):
            upper, lower = rows[p], rows[p + size]
            moved = builder.and_(builder.xor(builder.lshr(upper, by), lower), chosen)
            rows[p] = builder.xor(upper, builder.shl(moved, by))
            rows[p + size] = builder.xor(lower, moved)
    for k, row in enumerate(rows):
        builder.store(row, place(out, part_bytes, k), align=1)


@njit(nogil=True, cache=True)
def _all_parts(planes: np.ndarray, out: np.ndarray) -> None:
    """The eight parts (8, words) of the bytes whose planes (8, words) are given."""
    words = planes.shape[1]
    few = not (any_bit(planes[4]) or any_bit(planes[5]) or any_bit(planes[6]) or any_bit(planes[7]))
    _transpose(planes.ctypes.data, 8 * words, out.ctypes.data, 8 * words, words, few)


@njit(nogil=True, cache=True)
def _rows_of_bytes(planes: np.ndarray, first: int, out: np.ndarray) -> None:
    """Put a block's bytes into the rows (patterns, 8, words of a part) that they belong to, from word `first` on."""
    words, length = planes.shape[1], out.shape[2]
    few = not (any_bit(planes[4]) or any_bit(planes[5]) or any_bit(planes[6]) or any_bit(planes[7]))
    source, target = np.intp(planes.ctypes.data), np.intp(out.ctypes.data)
    done = 0
    while done < words:
        row, start = (first + done) // length, (first + done) % length
        size = min(length - start, words - done)
        _transpose(source + 8 * done, 8 * words, target + 8 * (8 * length * row + start), 8 * length, size, few)
        done += size


@njit(nogil=True, cache=True)
def _rows_of_counts(parts: np.ndarray, filled: int, first: int, out: np.ndarray) -> None:
    """Put a block's parts (bytes of a count, 8, bytes of a part) into rows (patterns, pixels), from byte `first` on.

    So many of the bytes of a count are not zero.
    """
    total, length = parts.shape[2], out.shape[1] // 8
    convert = out.dtype.type
    done = 0
    while done < total:
        row, start = (first + done) // length, (first + done) % length
        size = min(length - start, total - done)
        for k in range(8):
            target = out[row, k * length + start : k * length + start + size]
            b0 = parts[0, k, done : done + size]
            if filled == 2:
                b1, up = parts[1, k, done : done + size], convert(8)
                for j in range(size):
                    target[j] = convert(b0[j]) | (convert(b1[j]) << up)
            else:
                for j in range(size):
                    target[j] = convert(b0[j])
                for s in range(1, filled):
                    b, up = parts[s, k, done : done + size], convert(8 * s)
                    for j in range(size):
                        target[j] |= convert(b[j]) << up
        done += size


@njit(nogil=True, cache=True)
def place_bytes(planes: np.ndarray, filled: int, first: int, parts: np.ndarray, out: np.ndarray) -> None:
    """Put a block's planes into the rows (patterns, pixels) that they belong to, from byte `first` of a part on.

    `planes` are those of the bytes of a count that are not all zero, `filled` in number; `parts` is as long.
    """
    length, stream = out.shape[1] // 8, len(planes) // filled
    words = planes.view(np.uint64).reshape(filled, 8, stream // 64)
    if out.itemsize == 1 and length % 8 == 0:
        _rows_of_bytes(words[0], first // 8, out.view(np.uint64).reshape(len(out), 8, length // 8))
    else:
        made = parts[: len(planes)].view(np.uint64).reshape(filled, 8, stream // 64)
        for s in range(filled):
            _all_parts(words[s], made[s])
        _rows_of_counts(parts[: len(planes)].reshape(filled, 8, stream // 8), filled, first, out)


@njit(nogil=True, cache=True)
def bytes_used(planes: np.ndarray, itemsize: int) -> int:
    """How many bytes of a count are not all zero in a block's planes; at least one."""
    stream, used = len(planes) // itemsize, 1
    for s in range(1, itemsize):
        if any_bit(planes[s * stream : (s + 1) * stream].view(np.uint64)):
            used = s + 1
    return used


@njit(nogil=True, cache=True)
def place_planes(planes: np.ndarray, itemsize: int, first: int, parts: np.ndarray, out: np.ndarray) -> int:
    """Fill in the counts of one block of a chunk, of which all planes are there.

    Parameters
    ----------
    planes : ndarray of uint8, shape (n,)
        Eight planes of each of the `itemsize` bytes of a count; n is a multiple of 64 `itemsize`.
    itemsize : int
        Bytes of a count as it was stored.
    first : int
        Counts before this block in the chunk.
    parts : ndarray of uint8, shape (n,)
        Used on the way.
    out : ndarray of uint8, uint16 or uint32, shape (patterns, pixels)
        The chunk's counts, each pattern in its eight parts.

    Returns
    -------
    int
        The bytes of a count that are not all zero, or `TOO_NARROW` where `out` has fewer.
    """
    used = bytes_used(planes, itemsize)
    if used > out.itemsize:
        return TOO_NARROW
    place_bytes(planes[: used * (len(planes) // itemsize)], used, first // 8, parts, out)
    return used


@instructions
def _planes_of(typing, counts, shift, planes, plane_bytes, groups, kind):
    """Write the eight planes of one byte of so many groups of `GROUP` counts; addresses, and bytes between planes.

    The byte is the one that a shift to the right by `shift` brings down. Eight such bytes are an 8 x 8 matrix of bits,
    which is transposed in three steps (Warren, as above); then its bytes are dealt out to the planes.
    """
    signature = types.void(types.intp, types.intp, types.intp, types.intp, types.intp, kind)

    def generate(context, builder, _, arguments):
        counts, shift, planes, plane_bytes, groups, _ = arguments
        number, index = ir.IntType(64), ir.IntType(32)
        words, octets = ir.VectorType(number, _LANES), ir.VectorType(ir.IntType(8), 8 * _LANES)
        bits = kind.bitwidth
        taken = ir.VectorType(ir.IntType(bits), 8 * _LANES)
        places = ir.VectorType(index, 8 * _LANES)
        even, odd = (ir.Constant(places, [2 * j + k for j in range(8 * _LANES)]) for k in (0, 1))
        by = builder.trunc(shift, taken.element)
        by = builder.insert_element(ir.Constant(taken, ir.Undefined), by, index(0))
        by = builder.shuffle_vector(by, ir.Constant(taken, ir.Undefined), ir.Constant(places, [0] * 8 * _LANES))

        def dealt(vectors):
            pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
            return [[builder.shuffle_vector(a, b, chosen) for a, b in pairs] for chosen in (even, odd)]

        with cgutils.for_range(builder, groups) as loop:
            start = builder.add(counts, builder.mul(loop.index, number(GROUP * bits // 8)))
            transposed = []
            for n in range(8):
                place = builder.add(start, number(n * _LANES * bits))
                values = builder.load(builder.inttoptr(place, taken.as_pointer()), align=1)
                if bits > 8:
                    values = builder.trunc(builder.lshr(values, by), octets)
                word = builder.bitcast(values, words)
                for size, mask in ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0)):
                    by_size, chosen = (ir.Constant(words, [value] * _LANES) for value in (size, mask))
                    moved = builder.and_(builder.xor(word, builder.lshr(word, by_size)), chosen)
                    word = builder.xor(builder.xor(word, moved), builder.shl(moved, by_size))
                transposed.append(builder.bitcast(word, octets))
            for first, half in enumerate(dealt(transposed)):
                for second, quarter in enumerate(dealt(half)):
                    for third, (plane,) in enumerate(dealt(quarter)):
                        pitch = builder.mul(plane_bytes, number(first + 2 * second + 4 * third))
                        place = builder.add(builder.add(planes, pitch), builder.mul(loop.index, number(GROUP // 8)))
                        builder.store(plane, builder.inttoptr(place, octets.as_pointer()), align=1)
        return context.get_dummy_value()

    return signature, generate


@njit(nogil=True, cache=True)
def make_planes(counts: np.ndarray, planes: np.ndarray) -> int:
    """Fill in the bit planes of counts; those of bytes that are all zero may be left out.

    Parameters
    ----------
    counts : ndarray of uint8, uint16 or uint32, shape (n,)
        C-contiguous; n is a multiple of `GROUP`.
    planes : ndarray of uint8, shape (n * itemsize,)

    Returns
    -------
    int
        A bit for each byte of a count: 1 for the first, and for others where they are not all zero. The planes of those
        alone are made.
    """
    n, itemsize = len(counts), counts.itemsize
    seen = np.uint64(0)
    for word in counts.view(np.uint64):
        seen |= word
    made = 0
    for s in range(itemsize):
        if s == 0 or any_byte(seen, itemsize, s):
            _planes_of(counts.ctypes.data, 8 * s, planes.ctypes.data + n * s, n // 8, n // GROUP, counts[0])
            made |= 1 << s
    return made


@njit(nogil=True, cache=True)
def any_byte(word: np.uint64, itemsize: int, s: int) -> bool:
    """Whether byte s of any of the counts in a word is not zero."""
    mask = np.uint64(0)
    for start in range(0, 8, itemsize):
        mask |= np.uint64(255) << np.uint64(8 * (start + s))
    return (word & mask) != 0
