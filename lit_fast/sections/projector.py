"""1x1 convolutions between a teacher and a student of unequal widths, for training alone.

LIT compares IRs of equal width (paper, section 3). Where widths differ, a learned linear map per cut takes the
student's IR to the teacher's width before the comparison, as FitNets' regressor does (Romero et al. 2015, section 2.2),
and another takes the teacher's IR to the student's width before it is fed to the student's next section.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_fast.errors import PairError
from lit_fast.sections.dryrun import batch_shape, untouched, walk
from lit_fast.sections.inputs import Inputs, without_labels
from lit_fast.sections.model import SplitModel
from lit_fast.sections.tracing import set_mode


class Projectors(nn.Module):
    """The maps of a pair. Their parameters belong in the student's optimizer; the deployed student does not have them.

    Args:
        to_teacher: k modules, student width -> teacher width, one for each cut.
        to_student: k - 1 modules, teacher width -> student width, for the cuts that feed a next section.

    Raises:
        ValueError: the numbers of modules do not belong together.
    """

    def __init__(self, to_teacher: Sequence[nn.Module], to_student: Sequence[nn.Module]) -> None:
        super().__init__()
        if not to_teacher or len(to_student) != len(to_teacher) - 1:
            raise ValueError(
                f"projectors: k cuts need k maps to the teacher and k - 1 to the student, got {len(to_teacher)} and "
                f"{len(to_student)}"
            )
        self.to_teacher = nn.ModuleList(to_teacher)
        self.to_student = nn.ModuleList(to_student)

    def compare(self, i: int, student_ir: Tensor) -> Tensor:
        """The student's IR at cut ``i`` (from 0), at the teacher's width: what the IR loss compares."""
        return self.to_teacher[i](student_ir)

    def feed(self, i: int, teacher_ir: Tensor) -> Tensor:
        """The teacher's IR at cut ``i`` (from 0), at the student's width: what section ``i + 2`` of the student is fed.

        Raises:
            IndexError: the last cut, whose IR feeds no section.
        """
        if not 0 <= i < len(self.to_student):
            raise IndexError(f"projectors: cut {i} feeds no section; cuts 0 to {len(self.to_student) - 1} do")
        return self.to_student[i](teacher_ir)


def make_projectors(teacher: SplitModel, student: SplitModel, example: Inputs) -> Projectors:
    """Make the maps that a pair needs, from one dry run of both.

    nn.Identity where widths agree; else a 1x1 nn.Conv2d without bias for IRs [B, C, H, W], nn.Linear without bias for
    [B, L, D] and [B, D]. They get the student's device and dtype and torch's default initialisation.

    Args:
        teacher, student: split at the same number of places.
        example: a batch of both, [B, ...].

    Raises:
        PairError: numbers of sections differ, or IRs differ in more than their width.

    Example:
        >>> import lit_fast as lf
        >>> teacher, student = lf.split(lf.models.resnext20(cardinality=2)), lf.split(lf.models.resnet20())
        >>> maps = make_projectors(teacher, student, torch.zeros(1, 3, 8, 8))
        >>> maps.compare(0, torch.zeros(1, 16, 8, 8)).shape
        torch.Size([1, 256, 8, 8])
    """
    if teacher.num_sections != student.num_sections:
        raise PairError([sections_differ(teacher, student)])
    with torch.no_grad(), untouched(teacher, student), set_mode(teacher, False), set_mode(student, False):
        inputs, _ = without_labels(example, None)
        walks = [walk(teacher, "teacher", inputs), walk(student, "student", inputs)]
        teacher.release()
        student.release()
    problems = [problem for w in walks for problem in w.problems]
    teacher_irs, student_irs = (w.outputs[1 : teacher.num_sections + 1] for w in walks)
    for i, (t, s) in enumerate(zip(teacher_irs, student_irs)):
        if not _only_width_differs(t, s):
            problems.append(
                f"section {i + 1}: student gives {batch_shape(s)}, teacher {batch_shape(t)}; a projector changes the "
                "width alone (dimension 1 of 4, the last of 2 or 3): cut both where the other sizes agree"
            )
    if problems:
        raise PairError(problems)
    to_teacher = [_map(s, t, like=s) for t, s in zip(teacher_irs, student_irs)]
    to_student = [_map(t, s, like=s) for t, s in zip(teacher_irs[:-1], student_irs[:-1])]
    return Projectors(to_teacher, to_student)


def sections_differ(teacher: SplitModel, student: SplitModel) -> str:
    """The message for a pair with unequal numbers of sections."""
    return (
        f"the teacher has {teacher.num_sections} sections {list(teacher.at)}, the student {student.num_sections} "
        f"{list(student.at)}; split both at the same number of places"
    )


def _width_dim(ir: Tensor) -> int:
    return 1 if ir.dim() == 4 else ir.dim() - 1


def _only_width_differs(a: Tensor, b: Tensor) -> bool:
    if a.dim() != b.dim() or a.dim() not in (2, 3, 4):
        return a.shape == b.shape
    width = _width_dim(a)
    return all(m == n for dim, (m, n) in enumerate(zip(a.shape, b.shape)) if dim != width)


def _map(source: Tensor, target: Tensor, *, like: Tensor) -> nn.Module:
    if source.shape == target.shape:
        return nn.Identity()
    dim = _width_dim(source)
    before, after = source.shape[dim], target.shape[dim]
    if source.dim() == 4:
        return nn.Conv2d(before, after, 1, bias=False, device=like.device, dtype=like.dtype)
    return nn.Linear(before, after, bias=False, device=like.device, dtype=like.dtype)
