"""The IR loss of one section (paper eq. 3) and its gradient, over blocks of elements.

Blocks that lie inside the section are read without a mask, so that aligned tensors move 16 bytes at a time whatever the
number of elements; the section's last, partial block has one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lit_fast.triton.maths import ir_element, rounded, widened


@triton.jit
def at_block(pointer, start, ALIGNED: tl.constexpr):
    """pointer + start; 16-byte aligned if the tensor is, because blocks are multiples of 16 bytes."""
    place = pointer + start
    if ALIGNED:
        place = tl.multiple_of(place, 16)
    return place


@triton.jit
def ir_blocks(
    student,  # [numel]
    teacher,  # [numel]
    grad,  # [numel], or None
    numel,
    slope,  # d total / d element = slope * l'(student - teacher)
    first,  # block
    steps,  # blocks
    KIND: tl.constexpr,
    ALIGNED: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum of l(d) over `steps` blocks from block `first` on, as far as there are elements; writes their gradient."""
    lane = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], DTYPE)
    whole = numel // BLOCK
    end = tl.minimum(first + steps, whole)
    for block in range(first, end):
        start = block * BLOCK
        s = widened(tl.load(at_block(student, start, ALIGNED) + lane), DTYPE)
        t = widened(tl.load(at_block(teacher, start, ALIGNED) + lane), DTYPE)
        loss, derivative = ir_element(s - t, KIND)
        sums += loss
        if grad is not None:
            value = rounded(slope * derivative, grad.dtype.element_ty)
            tl.store(at_block(grad, start, ALIGNED) + lane, value)
    if first + steps > whole:
        rest = whole * BLOCK + lane
        inside = (rest < numel) & (first <= whole)
        s = widened(tl.load(student + rest, inside, other=0.0), DTYPE)
        t = widened(tl.load(teacher + rest, inside, other=0.0), DTYPE)
        loss, derivative = ir_element(s - t, KIND)
        sums += loss  # l(0) = 0 outside
        if grad is not None:
            value = rounded(slope * derivative, grad.dtype.element_ty)
            tl.store(grad + rest, value, inside)
    return tl.sum(sums)


@triton.jit
def ir_counted_blocks(
    student,  # [numel]
    teacher,  # [numel]
    grad,  # [numel], or None
    counted,  # [numel / of_row], uint8: 0 where a row does not count
    of_row,  # elements of each row
    numel,
    slope,
    first,  # block
    steps,  # blocks
    KIND: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``ir_blocks`` of the rows that count; the others are not read, and their gradient is 0."""
    sums = tl.zeros([BLOCK], DTYPE)
    end = tl.minimum(first + steps, tl.cdiv(numel, BLOCK))
    for block in range(first, end):
        element = block * BLOCK + tl.arange(0, BLOCK)
        inside = element < numel
        counts = tl.load(counted + element // of_row, inside, other=0) != 0
        s = widened(tl.load(student + element, counts, other=0.0), DTYPE)
        t = widened(tl.load(teacher + element, counts, other=0.0), DTYPE)
        loss, derivative = ir_element(s - t, KIND)
        sums += loss  # l(0) = 0 elsewhere
        if grad is not None:
            value = tl.where(counts, slope * derivative, 0.0)
            tl.store(grad + element, rounded(value, grad.dtype.element_ty), inside)
    return tl.sum(sums)
