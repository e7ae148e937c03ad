"""Which kernels a loss takes, and with which arguments: all that the host decides, from sizes and settings alone.

Nothing here looks at the device's numbers or waits for it, and nothing is copied to it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_fast.triton.launch import (
    BLOCK,
    PROGRAMS,
    WARPS,
    Launch,
    Section,
    ceil_div,
    groups_of,
    is_aligned,
    shares,
    triton_dtype,
)
from lit_fast.triton.scalars import coded, three_floats
from lit_fast.triton.stages import label_kernel, loss_kernel, parts_kernel

CLASSES = 512  # of a row that a program takes at once; more live numbers would leave fewer programs to a processor
SEVERAL = 128  # logits of several rows at once, where they have few classes
LONG_ROW = 2048  # classes; longer rows get a launch of their own, with more warps, or their walk would be slow
LONG_CLASSES = 2048
LONG_WARPS = 16
LABELS = 1024  # labels at once
FEW_LABELS = 8192  # every program with rows counts so many itself; more get a kernel of their own
LANES = 1024  # partial sums at once


class Settings(NamedTuple):
    """The numbers of a loss, in the order of the op's arguments; see ``lit_fast.loss.backends.options.LossOptions``."""

    section_weights: tuple[float, ...]
    ir_kind: int
    alpha: float
    beta: float
    tau: float
    tau_squared: bool
    ignore_index: int
    label_smoothing: float


@dataclass(frozen=True)
class Rows:
    """The logits, contiguous."""

    student: Tensor  # [batch, classes]
    teacher: Tensor | None  # [batch, classes]
    labels: Tensor | None  # [batch]
    class_weight: Tensor | None  # [classes]
    grad: Tensor | None  # [batch, classes]
    soft_labels: Tensor | None = None  # [batch, classes]
    counted: Tensor | None = None  # [batch], uint8: 0 where a row does not count


def loss_launches(
    sections: Sequence[Section],
    rows: Rows | None,
    parts: Tensor,
    grad_scale: Tensor | None,
    settings: Settings,
    counts: Tensor | None = None,
) -> list[Launch]:
    """The launches that compute `parts` and every gradient; they must run in order, on one stream.

    Args:
        sections: in order, k of them.
        rows: the logits, or None where beta is 0.
        parts: [3 + k], float32 or float64, to be written.
        grad_scale: 0-d, multiplies every gradient before it is rounded; None for 1.
        counts: [2 + k] float64, what the sums are divided by; None for their own counts.
    """
    blocks = [ceil_div(section.student.numel(), BLOCK) for section in sections]
    steps, programs = shares(blocks)
    tile = _tile(1 if rows is None else rows.student.shape[1], parts.dtype)
    tiles, row_programs, label_programs = (1, 0, 0) if rows is None else _row_programs(rows, tile)
    sizes = (4 * len(sections), sum(programs), 3 * row_programs, label_programs)
    of_sections, partials, of_rows, label_sums = _workspace(sizes, parts.device)

    common = {"DTYPE": triton_dtype(parts.dtype)}
    own = counts is None
    logits = _row_arguments(rows, settings, own, label_sums, label_programs)
    launches = []
    if label_programs > 0:
        names = ("labels", "class_weight", "label_sums", "batch", "classes", "ignore_index")
        arguments = {name: logits[name] for name in names}
        launches.append(Launch(label_kernel, label_programs, {**arguments, **common, "BLOCK": LABELS}))

    groups = groups_of(sections)
    long_rows = tile.classes > CLASSES
    if long_rows or not groups:
        groups = [[], *groups]
    first = first_partial = 0
    for number, group in enumerate(groups):
        with_rows = rows is not None and number == 0
        count = sum(programs[first : first + len(group)])
        arguments = {
            **_section_arguments(group, programs[first : first + len(group)], settings, own, first),
            "steps": steps,
            "first_section": coded(first),
            "first_partial": coded(first_partial),
            "sections": of_sections,
            "partials": partials,
            **logits,
            "counts": counts,
            "rows": of_rows,
            "row_programs": row_programs if with_rows else 0,
            "tiles": tiles,
            "grad_scale": grad_scale,
            "LAST": 18 if parts.dtype == torch.float64 else 11,
            "ROWS": tile.rows,
            "CLASSES": tile.classes,
            "LABELS": LABELS,
            **common,
        }
        warps = LONG_WARPS if with_rows and long_rows else WARPS
        launches.append(Launch(loss_kernel, arguments["row_programs"] + count, arguments, warps))
        first += len(group)
        first_partial += count
        if len(groups) > number + 1:  # the first launch has done the rows
            logits = _row_arguments(None, settings, own, label_sums, 0)

    width = _power_of_2(len(sections)) if sections else 0
    arguments = {
        "parts": parts,
        "sections": of_sections,
        "partials": partials,
        "rows": of_rows,
        "counts": counts,
        "count": len(sections),
        "most": max(programs, default=0),
        "row_programs": row_programs,
        "batch": 0 if rows is None else rows.student.shape[0],
        "weights": _part_weights(settings),
        "HARD": rows is not None and (rows.labels is not None or rows.soft_labels is not None),
        "SOFT": rows is not None and rows.teacher is not None,
        "SECTIONS": width,
        "WIDTH": max(1, 2 * LANES // max(width, 1)),
        "ROWS": LANES,
    }
    return [*launches, Launch(parts_kernel, 1, arguments)]


# --- sections


def _section_arguments(
    group: Sequence[Section], programs: Sequence[int], settings: Settings, own: bool, first: int
) -> dict[str, Any]:
    names = ("students", "teachers", "grads", "numels", "programs", "slopes", "ir_rows", "of_rows")
    arguments = dict.fromkeys(names)
    if group:
        slopes = [
            _over((1 - settings.beta) * settings.section_weights[first + i], section.student.numel() if own else 1)
            for i, section in enumerate(group)
        ]
        arguments = {
            "students": tuple(section.student for section in group),
            "teachers": tuple(section.teacher for section in group),
            "grads": None if group[0].grad is None else tuple(section.grad for section in group),
            "numels": tuple(coded(section.student.numel()) for section in group),
            "programs": tuple(map(coded, programs)),
            "slopes": _floats(*slopes),
            "ir_rows": None if group[0].rows is None else tuple(section.rows for section in group),
            "of_rows": None if group[0].rows is None else tuple(map(_elements_of_row, group)),
        }
    return {
        **arguments,
        "COUNT": len(group),
        "KIND": settings.ir_kind,
        "ALIGNED": bool(group) and is_aligned(group[0]),
        "BLOCK": BLOCK,
    }


def _elements_of_row(section: Section) -> int:
    assert section.rows is not None
    return coded(section.student.numel() // max(1, section.rows.numel()))


# --- rows


class _Tile(NamedTuple):
    """What a program takes at once."""

    rows: int
    classes: int


def _tile(classes: int, dtype: torch.dtype) -> _Tile:
    if classes > LONG_ROW:
        return _Tile(1, LONG_CLASSES * 4 // dtype.itemsize)
    width = min(_power_of_2(classes), CLASSES)
    return _Tile(max(1, SEVERAL // width), width)


def _row_programs(rows: Rows, tile: _Tile) -> tuple[int, int, int]:
    """How many tiles each program with rows takes, how many of them there are, and how many sum the labels first."""
    batch = rows.student.shape[0]
    count = ceil_div(batch, tile.rows)
    tiles = max(1, ceil_div(count, PROGRAMS))
    programs = max(1, ceil_div(count, tiles))
    if rows.labels is None or batch <= FEW_LABELS:
        return tiles, programs, 0
    return tiles, programs, min(ceil_div(batch, FEW_LABELS), LABELS)


def _row_arguments(
    rows: Rows | None, settings: Settings, own: bool, label_sums: Tensor, label_programs: int
) -> dict[str, Any]:
    batch, classes = (0, 1) if rows is None else rows.student.shape
    return {
        "student_logits": None if rows is None else rows.student,
        "teacher_logits": None if rows is None else rows.teacher,
        "logits_grad": None if rows is None else rows.grad,
        "labels": None if rows is None else rows.labels,
        "soft_labels": None if rows is None else rows.soft_labels,
        "counted": None if rows is None else rows.counted,
        "class_weight": None if rows is None else rows.class_weight,
        "label_sums": label_sums if label_programs > 0 else None,
        "label_programs": label_programs,
        "batch": batch,
        "classes": classes,
        "ignore_index": settings.ignore_index,
        "settings": None if rows is None else _row_settings(settings, batch if own else 1, classes),
        "SMOOTHING": rows is not None and rows.labels is not None and settings.label_smoothing > 0,
    }


@functools.lru_cache(maxsize=256)
def _row_settings(settings: Settings, count: int, classes: int) -> tuple[float, ...]:
    """What ``kd.kd_rows`` reads: 1 / tau; the scales of the slopes, soft and hard; targets at the label, at all."""
    soft = settings.tau if settings.tau_squared else 1 / settings.tau  # tau^2 of eq. 2 times d(z / tau) / d z
    return _floats(
        1 / settings.tau,
        _over(settings.beta * (1 - settings.alpha) * soft, count),
        settings.beta * settings.alpha,
        1 - settings.label_smoothing,
        settings.label_smoothing / classes,
    )


@functools.lru_cache(maxsize=256)
def _part_weights(settings: Settings) -> tuple[float, ...]:
    """What ``stages.parts_kernel`` reads: the weights of cross-entropy and KL in the total; KL's own factor."""
    return _floats(
        settings.beta * settings.alpha,
        settings.beta * (1 - settings.alpha),
        settings.tau**2 if settings.tau_squared else 1.0,
    )


# --- numbers


def _workspace(sizes: Sequence[int], device: torch.device) -> Sequence[Tensor]:
    """Uninitialised float64 tensors, each at a multiple of 16 bytes: for others a kernel would be compiled anew."""
    padded = [size + size % 2 for size in sizes]
    return torch.empty(sum(padded), dtype=torch.float64, device=device).split_with_sizes(padded)


def _power_of_2(number: int) -> int:
    """The least power of 2 that is not less than a number > 0."""
    return 1 << (number - 1).bit_length()


def _over(number: float, count: int) -> float:
    return number / count if count else float("nan")  # of a mean over nothing


def _floats(*numbers: float) -> tuple[float, ...]:
    return tuple([part for number in numbers for part in three_floats(number)])
