"""Blocks of a Blosc chunk whose bit planes are compressed by LZ4: read, and written; compiled by Numba.

LZ4 is called from C, at the address of its function. Every length that stored bytes give is checked before anything is
read by it.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types

from .bit_planes import TOO_NARROW, bytes_used, make_planes, place_bytes
from .vectors import instructions

# What `read_blocks` answers where bytes are not what they should be.
DAMAGED = -1

# Bytes of a chunk's header that the chunks of an array have in common: all but the number of stored bytes, an int32.
ALIKE = 12


@instructions
def _decompress(typing, function, source, source_size, target, target_size):
    """LZ4_decompress_safe at the address `function`: bytes written, or a negative number; it checks every length."""
    signature = types.int32(types.intp, types.intp, types.int32, types.intp, types.int32)

    def generate(context, builder, _, arguments):
        address, start, size, out, capacity = arguments
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(number, [pointer, pointer, number, number])
        called = builder.inttoptr(address, kind.as_pointer())
        source_at, target_at = builder.inttoptr(start, pointer), builder.inttoptr(out, pointer)
        return builder.call(called, [source_at, target_at, size, capacity])

    return signature, generate


@instructions
def _compress(typing, function, source, target, source_size, target_size, acceleration):
    """LZ4_compress_fast at the address `function`: bytes written, or 0 where they are more than there is room for."""
    signature = types.int32(types.intp, types.intp, types.intp, types.int32, types.int32, types.int32)

    def generate(context, builder, _, arguments):
        address, start, out, size, capacity, faster = arguments
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(number, [pointer, pointer, number, number, number])
        called = builder.inttoptr(address, kind.as_pointer())
        source_at, target_at = builder.inttoptr(start, pointer), builder.inttoptr(out, pointer)
        return builder.call(called, [source_at, target_at, size, capacity, faster])

    return signature, generate


@njit(nogil=True, cache=True)
def _length(data: np.ndarray, at: int, stop: int, first: int) -> tuple[int, int]:
    """A length of an LZ4 block whose token holds `first`, and where what follows it begins, 0 beyond the end."""
    length = first
    if first == 15:
        more = np.uint8(255)
        while more == 255:
            if at >= stop:
                return length, 0
            more = data[at]
            length += int(more)
            at += 1
    return length, at


@njit(nogil=True, cache=True)
def _is_zeros(data: np.ndarray, start: int, stop: int, size: int) -> bool:
    """Whether an LZ4 block is, for certain, `size` zeros: one whose literals are all zero, whatever it repeats."""
    at, made = start, 0
    while at < stop:
        token = data[at]
        literals, at = _length(data, at + 1, stop, int(token >> np.uint8(4)))
        if at == 0 or at + literals > stop or made + literals > size:
            return False
        for j in range(at, at + literals):
            if data[j]:
                return False
        at += literals
        made += literals
        if at == stop:
            return made == size
        if at + 2 > stop or made > size - 12:  # LZ4 wants literals at the end, and judges itself
            return False
        offset = int(data[at]) | (int(data[at + 1]) << 8)
        at += 2
        if offset == 0 or offset > made:
            return False
        length, at = _length(data, at, stop, int(token & np.uint8(15)))
        made += length + 4
        if at == 0 or made > size - 5:
            return False
    return False


@njit(nogil=True, cache=True)
def _int32(data: np.ndarray, at: int) -> int:
    """A little-endian int32."""
    value = (
        np.uint32(data[at])
        | (np.uint32(data[at + 1]) << np.uint32(8))
        | (np.uint32(data[at + 2]) << np.uint32(16))
        | (np.uint32(data[at + 3]) << np.uint32(24))
    )
    return int(np.int32(value))


@njit(nogil=True, cache=True)
def _end_of_stream(data: np.ndarray, at: int, size: int) -> int:
    """Where the stream at `at` ends, a length and as many bytes, which stand for `size` others; or `DAMAGED`."""
    if at + 4 > len(data):
        return DAMAGED
    stored = _int32(data, at)
    return at + 4 + stored if 0 < stored <= size and at + 4 + stored <= len(data) else DAMAGED


@njit(nogil=True, cache=True)
def _decompressed(data: np.ndarray, start: int, stop: int, lz4: int, out: np.ndarray) -> bool:
    """Decompress the bytes of a stream; whether they are as many as they should be. One as long as these is a copy."""
    size = len(out)
    if stop - start == size:
        for j in range(size):
            out[j] = data[start + j]
        return True
    at = np.intp(data.ctypes.data) + start
    return _decompress(lz4, at, np.int32(stop - start), np.intp(out.ctypes.data), np.int32(size)) == size


@njit(nogil=True, cache=True)
def _fill_zeros(values: np.ndarray) -> None:
    for j in range(len(values)):
        values[j] = 0


@njit(nogil=True, cache=True)
def read_blocks(
    data: np.ndarray,
    nbytes: int,
    block: int,
    itemsize: int,
    split: bool,
    lz4: int,
    scratch: np.ndarray,
    parts: np.ndarray,
    out: np.ndarray,
) -> int:
    """Fill in counts from the blocks of a Blosc chunk of LZ4, whose header has been checked but for its last number.

    Parameters
    ----------
    data : ndarray of uint8, shape (n,)
        The whole chunk: a header of 16 bytes, the place of each block, then the blocks.
    nbytes, block : int
        Bytes of counts in the chunk, and in each of its blocks but the last, which may have fewer.
    itemsize : int
        Bytes of a count as it was stored.
    split : bool
        Whether each byte of the counts is a stream of its own in whole blocks.
    lz4 : int
        Address of LZ4_decompress_safe.
    scratch, parts : ndarray of uint8, shape (block,)
    out : ndarray of uint8, uint16 or uint32, shape (patterns, pixels)
        Filled in, each pattern in its eight parts.

    Returns
    -------
    int
        The bytes of a count that are not all zero; or `TOO_NARROW` where `out` has fewer, or `DAMAGED`: then it holds
        anything.
    """
    blocks = -(-nbytes // block)
    used, needed = out.itemsize, 1
    if 16 + 4 * blocks > len(data) or _int32(data, 12) != len(data):
        return DAMAGED
    for b in range(blocks):
        size = min(block, nbytes - b * block)
        at = _int32(data, 16 + 4 * b)
        if at < 16 + 4 * blocks:
            return DAMAGED
        stream = size // itemsize
        filled = 1
        if split and size == block:
            for s in range(itemsize):
                end = _end_of_stream(data, at, stream)
                if end == DAMAGED:
                    return DAMAGED
                if s == 0 or end - at - 4 == stream or not _is_zeros(data, at + 4, end, stream):
                    if s >= used:
                        return TOO_NARROW
                    for n in range(filled, s):
                        _fill_zeros(scratch[n * stream : (n + 1) * stream])
                    if not _decompressed(data, at + 4, end, lz4, scratch[s * stream : (s + 1) * stream]):
                        return DAMAGED
                    filled = s + 1
                at = end
        else:
            end = _end_of_stream(data, at, size)
            if end == DAMAGED or not _decompressed(data, at + 4, end, lz4, scratch[:size]):
                return DAMAGED
            filled = bytes_used(scratch[:size], itemsize)
            if filled > used:
                return TOO_NARROW
        needed = max(needed, filled)
        place_bytes(scratch[: filled * stream], filled, b * block // itemsize // 8, parts, out)
    return needed


@njit(nogil=True, cache=True)
def _write_int32(value: int, data: np.ndarray, at: int) -> None:
    """Write a little-endian int32."""
    for k in range(4):
        data[at + k] = (value >> (8 * k)) & 255


@njit(nogil=True, cache=True)
def write_blocks(
    counts: np.ndarray, block: int, lz4: int, acceleration: int, zeros: np.ndarray, scratch: np.ndarray, out: np.ndarray
) -> int:
    """Write the blocks of a Blosc chunk of LZ4 as c-blosc does: a stream for each byte, one for a shorter last block.

    Parameters
    ----------
    counts : ndarray of uint8, uint16 or uint32, shape (n,)
        C-contiguous; n is a multiple of `kernels.bit_planes.GROUP`.
    block : int
        Counts in each block but the last, which may have fewer; a multiple of `kernels.bit_planes.GROUP`.
    lz4 : int
        Address of LZ4_compress_fast.
    acceleration : int
        Its argument: 1 compresses most.
    zeros : ndarray of uint8
        Bytes of the stream of a block's planes that are all zero.
    scratch : ndarray of uint8, shape (block * itemsize,)
    out : ndarray of uint8
        The chunk; its header is left free. Never more than its length is written.

    Returns
    -------
    int
        Bytes of the chunk, or 0 where `out` has too few.
    """
    blocks = -(-len(counts) // block)
    at = 16 + 4 * blocks
    if at > len(out):
        return 0
    for b in range(blocks):
        part = counts[b * block : (b + 1) * block]
        n = len(part)
        _write_int32(at, out, 16 + 4 * b)
        made = make_planes(part, scratch)
        whole = n == block
        size = n if whole else n * part.itemsize
        for s in range(part.itemsize if whole else 1):
            if not whole:
                for k in range(1, part.itemsize):
                    if not made >> k & 1:
                        _fill_zeros(scratch[k * n : (k + 1) * n])
            elif not made >> s & 1:
                if at + 4 + len(zeros) > len(out):
                    return 0
                _write_int32(len(zeros), out, at)
                for j in range(len(zeros)):
                    out[at + 4 + j] = zeros[j]
                at += 4 + len(zeros)
                continue
            # One byte less than a copy, which a stream of that length would be taken for.
            room = min(size - 1, len(out) - at - 4)
            if room <= 0:
                return 0
            source, target = np.intp(scratch.ctypes.data) + s * n, np.intp(out.ctypes.data) + at + 4
            stored = _compress(lz4, source, target, np.int32(size), np.int32(room), np.int32(acceleration))
            if stored <= 0:
                if at + 4 + size > len(out):
                    return 0
                for j in range(size):
                    out[at + 4 + j] = scratch[s * n + j]
                stored = size
            _write_int32(stored, out, at)
            at += 4 + stored
    return at
