"""Numbers and lists of tensors as kernel arguments, and how a program finds its section among them.

A loss has k sections, tensors of their own. Their addresses are kernel arguments, tuples of k pointers: a table of them
in device memory would have to be copied there in every call, which costs more than the small kernels themselves and
cannot be captured in a CUDA graph. A kernel is compiled once for each k.

Triton compiles a kernel anew for an integer argument that is 1 or divisible by 16, or that needs 64 bits, and rounds
Python's floats to float32. ``coded`` integers have one form for all values; a number in ``three_floats`` keeps the
53 bits of a float64.
"""

from __future__ import annotations

import functools
import struct

import triton
import triton.language as tl

_BIAS = tl.constexpr(1 << 33)  # beyond 32 bits, for small numbers too


# --- on the host


def coded(number: int) -> int:
    """A number from 0 to 2^58 as an int64 that Triton does not specialise a kernel for; ``integer`` reads it."""
    return (number << 4) + 2 + _BIAS.value


@functools.lru_cache(maxsize=4096)
def three_floats(number: float) -> tuple[float, float, float]:
    """Three float32 numbers whose sum is the float64 `number`; ``exact`` reads them."""
    high = _float32(number)
    if high - high != 0:  # inf or NaN
        return high, 0.0, 0.0
    middle = _float32(number - high)
    return high, middle, _float32(number - high - middle)


def _float32(number: float) -> float:
    try:
        return struct.unpack("f", struct.pack("f", number))[0]
    except OverflowError:  # beyond float32
        return float("inf") if number > 0 else float("-inf")


# --- in kernels


@triton.jit
def integer(code):
    """The int64 number that ``coded`` made `code` of."""
    return (tl.cast(code, tl.int64) - _BIAS) >> 4


@triton.jit
def exact(high, middle, low):
    """The float64 number of ``three_floats``."""
    return tl.cast(high, tl.float64) + tl.cast(middle, tl.float64) + tl.cast(low, tl.float64)


@triton.jit
def pick(items, index, COUNT: tl.constexpr):
    """items[index] of a tuple of COUNT pointers of one type."""
    item = items[0]
    for i in tl.static_range(1, COUNT):
        if index == i:
            item = items[i]
    return item


@triton.jit
def find_section(program, numels, programs, COUNT: tl.constexpr):
    """The section that a program works on: its number, its first program, how many it has, its number of elements.

    Args:
        program: from 0 to the sum of `programs`.
        numels: elements of each of COUNT sections, coded.
        programs: programs of each, coded.
    """
    section = 0
    first = tl.cast(0, tl.int64)
    numel = integer(numels[0])
    count = integer(programs[0])
    start = count
    for i in tl.static_range(1, COUNT):
        here = program >= start
        section = tl.where(here, i, section)
        first = tl.where(here, start, first)
        numel = tl.where(here, integer(numels[i]), numel)
        count = tl.where(here, integer(programs[i]), count)
        start += integer(programs[i])
    return section, first, count, numel


@triton.jit
def pick_integer(codes, index, COUNT: tl.constexpr):
    """The int64 number `index` of COUNT coded ones."""
    number = integer(codes[0])
    for i in tl.static_range(1, COUNT):
        number = tl.where(index == i, integer(codes[i]), number)
    return number


@triton.jit
def pick_exact(floats, index, COUNT: tl.constexpr):
    """The float64 number `index` of COUNT in ``three_floats``."""
    high = floats[0]
    middle = floats[1]
    low = floats[2]
    for i in tl.static_range(1, COUNT):
        high = tl.where(index == i, floats[3 * i], high)
        middle = tl.where(index == i, floats[3 * i + 1], middle)
        low = tl.where(index == i, floats[3 * i + 2], low)
    return exact(high, middle, low)
