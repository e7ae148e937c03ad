"""Start a student from its teacher's weights: parts that are built alike, and blocks of a stack."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_fast.errors import SplitError
from lit_fast.sections.model import SplitModel
from lit_fast.sections.parts import Part

__all__ = ["copy_parts"]


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
    pairs: list[tuple[Tensor, Tensor]] = []
    problems = []
    for name in parts:
        source, target = _tensors(teacher.part(name)), _tensors(student.part(name))
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
        raise SplitError(
            "the teacher's parts do not fit the student's:\n  "
            + "\n  ".join(sorted(problems))
            + "\ncopy only parts that are built alike (parts=...)"
        )
    with torch.no_grad():
        for value, place in pairs:
            place.copy_(value)


def _tensors(part: Part) -> dict[str, Tensor]:
    return {**dict(part.named_parameters()), **dict(part.named_buffers())}
