"""Start a student from its teacher's weights: parts that are built alike, and blocks of a stack."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from lit_fast.errors import SplitError, shown
from lit_fast.literals import BlockChoice
from lit_fast.sections.model import SplitModel, expect_split

__all__ = ["copy_blocks", "copy_parts"]


def copy_parts(teacher: SplitModel, student: SplitModel, parts: Sequence[str] = ("stem", "head")) -> None:
    """Copy the teacher's parameters and buffers into the student's parts of the same name, in place.

    The copied parts' keys and shapes must be equal; all are checked before anything is copied.

    Args:
        parts: names of the parts, "stem", "section<i>" or "head". Copying (and freezing) sections too is the
            paper's selective compression (section 4.1).

    Raises:
        SplitError: a part that one side lacks, other keys, or other shapes, listed by name.

    Example:
        >>> import lit_fast as lf
        >>> teacher, student = lf.split(lf.models.resnet32()), lf.split(lf.models.resnet20())
        >>> copy_parts(teacher, student, ["stem", "head"])
        >>> student.freeze("stem", "head")
    """
    expect_split(teacher=teacher, student=student)
    if isinstance(parts, str) or not isinstance(parts, Iterable):
        raise TypeError(f"parts: expected a list of names, such as ['stem', 'head'], got {shown(parts)}")
    copied = [(name, _tensors(teacher.part(name)), _tensors(student.part(name))) for name in parts]
    _copy(copied, "the teacher's parts do not fit the student's", "copy only parts that are built alike (parts=...)")


def copy_blocks(teacher: SplitModel, student: SplitModel, layers: BlockChoice | Sequence[int] = "spread") -> list[int]:
    """Start the student's blocks as blocks of the teacher's, in place; stem and head are `copy_parts`'s.

    Args:
        teacher, student: split with ``blocks=``, or recorded.
        layers: which blocks of the teacher, counted from 0: ``"spread"``, of each section as many as the student's has,
            at equal distances from its first one (12 -> 3: 0, 4, 8); ``"first"`` or ``"last"`` of the whole stack; or
            their numbers, one for each block of the student.

    Returns:
        The numbers of the teacher's blocks.

    Raises:
        SplitError: stacks that are not known, numbers that do not fit, or blocks that are built differently.

    Source: DistilBERT (Sanh et al. 2019, section 3) takes every other layer; which ones to keep is compared by Sajjad
    et al. 2020.

    Example:
        >>> import lit_fast as lf
        >>> from torch import nn
        >>> def net(depth):
        ...     return nn.Sequential(nn.Linear(2, 4), nn.Sequential(*(nn.Linear(4, 4) for _ in range(depth))))
        >>> teacher, student = (lf.split(net(depth), blocks="1", sections=3) for depth in (12, 3))
        >>> lf.copy_blocks(teacher, student)
        [0, 4, 8]
    """
    expect_split(teacher=teacher, student=student)
    if not isinstance(layers, Iterable):
        raise TypeError(f"layers: expected 'spread', 'first', 'last' or a list of numbers, got {shown(layers)}")
    theirs, ours = _blocks(teacher, "teacher"), _blocks(student, "student")
    chosen = _chosen(theirs, ours, layers)
    names = [name for section in theirs for name in section]
    copied = []
    for number, target in zip(chosen, (name for section in ours for name in section)):
        source = _tensors(teacher.model.get_submodule(names[number]))
        copied.append(
            (f"block {target!r} from {names[number]!r}", source, _tensors(student.model.get_submodule(target)))
        )
    _copy(
        copied, "the teacher's blocks do not fit the student's", "copy_blocks needs blocks of the same kind and width"
    )
    return chosen


def _blocks(model: SplitModel, role: str) -> Sequence[Sequence[str]]:
    if model.blocks is None:
        raise SplitError(
            f"copy_blocks: the {role}'s blocks are not known; split it with blocks=..., the name of its stack"
        )
    return model.blocks


def _chosen(
    theirs: Sequence[Sequence[str]], ours: Sequence[Sequence[str]], layers: BlockChoice | Sequence[int]
) -> list[int]:
    """The numbers of the teacher's blocks, one for each of the student's."""
    have, need = sum(map(len, theirs)), sum(map(len, ours))
    if not isinstance(layers, str):
        chosen = list(layers)
        if len(chosen) != need or not all(isinstance(number, int) and 0 <= number < have for number in chosen):
            raise SplitError(
                f"layers: expected {need} numbers from 0 to {have - 1}, one for each block of the student, got {chosen}"
            )
        return chosen
    if layers not in get_args(BlockChoice):
        names = ", ".join(map(repr, get_args(BlockChoice)))
        raise SplitError(f"layers: expected one of {names} or a list of numbers, got {layers!r}")
    if need > have or any(len(own) > len(right) for own, right in zip(ours, theirs)):
        raise SplitError(
            f"copy_blocks: the student has more blocks than the teacher ({need} and {have}, by section "
            f"{[*map(len, ours)]} and {[*map(len, theirs)]}); name them: layers=[...]"
        )
    if layers != "spread":
        return list(range(need) if layers == "first" else range(have - need, have))
    if len(theirs) != len(ours):
        raise SplitError(
            f"copy_blocks: the teacher has {len(theirs)} sections, the student {len(ours)}; split both alike"
        )
    chosen, start = [], 0
    for right, own in zip(theirs, ours):
        chosen += [start + j * len(right) // len(own) for j in range(len(own))]
        start += len(right)
    return chosen


def _copy(copied: Sequence[tuple[str, dict[str, Tensor], dict[str, Tensor]]], what: str, mend: str) -> None:
    """Copy from the first tensors to the second of each name; all are checked before anything is copied."""
    pairs: list[tuple[Tensor, Tensor]] = []
    problems = []
    for name, source, target in copied:
        for owner, keys in (("teacher", source.keys() - target.keys()), ("student", target.keys() - source.keys())):
            if keys:
                shown = sorted(keys)[:4] + (["..."] if len(keys) > 4 else [])
                problems.append(f"{name}: only the {owner} has {', '.join(shown)} ({len(keys)} in all)")
        for key in source.keys() & target.keys():
            if source[key].shape != target[key].shape:
                problems.append(
                    f"{name}: {key} is {tuple(source[key].shape)} in the teacher, {tuple(target[key].shape)} in the "
                    "student"
                )
            else:
                pairs.append((source[key], target[key]))
    if problems:
        raise SplitError(f"{what}:\n  " + "\n  ".join(sorted(problems)) + f"\n{mend}")
    with torch.no_grad():
        for value, place in pairs:
            place.copy_(value)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
