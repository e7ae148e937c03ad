"""Launches of kernels, and how one launch takes tensors of many sizes: what the hosts' sides of all kernels share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # elements of IRs that a program takes at once: 8 for each of its threads, 16 bytes of float16
PROGRAMS = 4096  # with IRs, and with rows, about: they fill any GPU, and one program can sum what they leave
SECTIONS = 8  # in one launch: their addresses stay in registers, and more would take those of the loads
WARPS = 4


class Launch(NamedTuple):
    """One launch of a kernel."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    warps: int = WARPS

    def run(self) -> None:
        """Launch on the current stream of the current device."""
        self.kernel[(self.programs,)](**self.arguments, num_warps=self.warps)


class Section(NamedTuple):
    """Dense tensors of one memory layout, so that the order of the elements plays no role."""

    student: Tensor
    teacher: Tensor
    grad: Tensor | None
    rows: Tensor | None = None  # uint8: 0 where one of its rows, which are its memory in this order, does not count


def shares(blocks: Sequence[int]) -> tuple[int, list[int]]:
    """How many blocks each program takes, and how many programs share each tensor: one for an empty one too."""
    steps = max(1, ceil_div(sum(blocks), PROGRAMS))
    return steps, [max(1, ceil_div(count, steps)) for count in blocks]


def is_aligned(section: Section) -> bool:
    grad = 0 if section.grad is None else section.grad.data_ptr()
    return (section.student.data_ptr() | section.teacher.data_ptr() | grad) % 16 == 0


def groups_of(sections: Sequence[Section]) -> list[list[Section]]:
    """Runs of sections that one launch can take: of the same dtypes and alignment, at most SECTIONS of them."""
    groups: list[list[Section]] = []
    last = None
    for section in sections:
        kind = (section.student.dtype, section.teacher.dtype, is_aligned(section))
        if kind != last or len(groups[-1]) == SECTIONS:
            groups.append([])
            last = kind
        groups[-1].append(section)
    return groups


def ceil_div(number: int, by: int) -> int:  # triton.cdiv takes microseconds
    return -(-number // by)


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32
