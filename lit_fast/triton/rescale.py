"""Multiplies gradients in place by a quotient that only the device knows; leaves them alone where it is 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lit_fast.triton.ir import at_block
from lit_fast.triton.launch import BLOCK, Launch, Section, ceil_div, groups_of, is_aligned, shares, triton_dtype
from lit_fast.triton.maths import rounded, widened
from lit_fast.triton.scalars import coded, find_section, pick


@triton.jit(do_not_specialize=["steps"])
def rescale_kernel(
    grads,  # COUNT pointers to [numel_i]
    numels,  # COUNT integers, coded
    programs,  # COUNT integers, coded: how many programs share each gradient
    factor,  # []
    scale,  # [], or None: 1
    steps,  # blocks of each program
    COUNT: tl.constexpr,
    ALIGNED: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program takes `steps` blocks of one gradient."""
    quotient = widened(tl.load(factor), tl.float64)
    if scale is not None:
        quotient /= widened(tl.load(scale), tl.float64)  # float32's division need not give 1 where both are equal
    by = quotient.to(DTYPE)
    if by != 1.0:
        program = tl.program_id(0).to(tl.int64)
        section, first, _count, numel = find_section(program, numels, programs, COUNT)
        grad = pick(grads, section, COUNT)
        lane = tl.arange(0, BLOCK)
        begin = (program - first) * steps
        whole = numel // BLOCK
        end = tl.minimum(begin + steps, whole)
        for block in range(begin, end):
            place = at_block(grad, block * BLOCK, ALIGNED) + lane
            value = widened(tl.load(place), DTYPE) * by
            tl.store(place, rounded(value, grad.dtype.element_ty))
        if begin + steps > whole:
            rest = whole * BLOCK + lane
            inside = (rest < numel) & (begin <= whole)
            value = widened(tl.load(grad + rest, inside, other=0.0), DTYPE) * by
            tl.store(grad + rest, rounded(value, grad.dtype.element_ty), inside)


def rescale_launches(grads: Sequence[Tensor], factor: Tensor, scale: Tensor | None = None) -> list[Launch]:
    """The launches that multiply dense tensors in place by factor / scale, both 0-d; None is 1."""
    sections = [Section(grad, grad, None) for grad in grads if grad.numel() > 0]
    steps, all_programs = shares([ceil_div(section.student.numel(), BLOCK) for section in sections])
    launches: list[Launch] = []
    first = 0
    for group in groups_of(sections):
        dtype = torch.float64 if group[0].student.dtype == torch.float64 else torch.float32
        programs = all_programs[first : first + len(group)]
        first += len(group)
        arguments = {
            "grads": tuple(section.student for section in group),
            "numels": tuple(coded(section.student.numel()) for section in group),
            "programs": tuple(map(coded, programs)),
            "factor": factor,
            "scale": scale,
            "steps": steps,
            "COUNT": len(group),
            "ALIGNED": is_aligned(group[0]),
            "DTYPE": triton_dtype(dtype),
            "BLOCK": BLOCK,
        }
        launches.append(Launch(rescale_kernel, sum(programs), arguments))
    return launches
