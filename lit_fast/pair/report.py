"""The table that describes a teacher-student pair part by part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_fast.errors import NotLowerable
from lit_fast.pair.counting import count_layers, count_macs, count_parameters, count_part_macs
from lit_fast.sections.dryrun import Walk, dtype_name
from lit_fast.sections.inputs import first_tensor
from lit_fast.sections.model import SplitModel
from lit_fast.sections.parts import Part
from lit_fast.sections.projector import Projectors
from lit_fast.tables import aligned
from lit_fast.teacher.lowering import lower

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Side:
    """One model's part. Shapes are per image, without the batch; MACs per image."""

    input: Shape
    output: Shape
    dtype: str
    parameters: int
    macs: int

    @property
    def shapes(self) -> str:
        return f"{_times(self.input)} -> {_times(self.output)}"


@dataclass(frozen=True)
class Row:
    """One part of both models. ``copied``: the student's weights equal the teacher's."""

    part: str
    teacher: Side
    student: Side
    copied: bool
    frozen: bool


@dataclass(frozen=True)
class Report:
    """What `inspect` found; ``str`` gives an aligned table, at most 120 columns wide.

    ``not_lowered``: the teacher's parts that the runner cannot take, by name, and why: they run as modules.
    ``recorded``: which of teacher and student are recorded, and why.
    """

    rows: tuple[Row, ...]
    teacher: Side
    student: Side
    teacher_layers: int
    student_layers: int
    projector_parameters: int
    not_lowered: tuple[tuple[str, str], ...] = ()
    recorded: tuple[tuple[str, str], ...] = ()

    @property
    def compression(self) -> float:
        """Teacher's parameters / student's parameters."""
        return self.teacher.parameters / max(self.student.parameters, 1)

    @property
    def speedup(self) -> float:
        """Teacher's MACs / student's MACs."""
        return self.teacher.macs / max(self.student.macs, 1)

    def __str__(self) -> str:
        numbers = ("teacher", "student")
        cells: list[tuple[str, ...]] = [
            ("part", "input -> output", "dtype", "parameters", "", "MMACs", "", ""),
            ("", "", "", *numbers, *numbers, ""),
        ]
        for row in self.rows:
            marks = ", ".join(mark for mark, on in (("copied", row.copied), ("frozen", row.frozen)) if on)
            cells.append(_cells(row.part, row.teacher, row.student, marks))
            if (row.teacher.shapes, row.teacher.dtype) != (row.student.shapes, row.student.dtype):
                cells.append(("  student", row.student.shapes, row.student.dtype, "", "", "", "", ""))
        cells.append(_cells("total", self.teacher, self.student, ""))
        lines = aligned(cells, left=(0, 1, 2, 7)).split("\n")
        rule = "-" * max(map(len, lines))
        lines = [*lines[:2], rule, *lines[2:-1], rule, lines[-1]]
        lines.append(
            f"{self.teacher_layers} -> {self.student_layers} layers, compression {self.compression:.2f}x in "
            f"parameters, {self.speedup:.2f}x in MACs"
        )
        if self.projector_parameters:
            lines.append(f"projector: {self.projector_parameters:,} parameters, in training only")
        for part, reason in self.not_lowered:
            (macs,) = (row.teacher.macs for row in self.rows if row.part == part)
            share = macs / max(self.teacher.macs, 1)
            lines.append(f"the teacher's {part} ({share:.0%} of its MACs) is not lowered and runs as modules: {reason}")
        for role, why in self.recorded:
            lines.append(f"the {role} is recorded, its own forward runs: {why.partition(chr(10))[0]}")
        return "\n".join(lines)


def make_report(
    teacher: SplitModel, student: SplitModel, teacher_walk: Walk, student_walk: Walk, projector: Projectors | None
) -> Report:
    """Describe a pair whose dry run went well."""
    rows = []
    teacher_macs, student_macs = (
        count_part_macs(teacher, teacher_walk.inputs),
        count_part_macs(student, student_walk.inputs),
    )
    for i, name in enumerate(teacher.part_names):
        t, s = teacher.part(name), student.part(name)
        sides = _side(t, teacher_walk, i, teacher_macs[i]), _side(s, student_walk, i, student_macs[i])
        rows.append(Row(name, *sides, _equal(t, s), name in student.frozen))
    totals = []
    for model, walk, macs in ((teacher, teacher_walk, teacher_macs), (student, student_walk, student_macs)):
        out = walk.outputs[-1]
        shapes = _shape(walk.inputs[0]), tuple(out.shape[1:]), dtype_name(out)
        whole = sum(macs) if model.how == "recorded" else count_macs(model, walk.inputs[0][:1])
        totals.append(Side(*shapes, count_parameters(model), whole))
    recorded = tuple(
        (role, model.why) for role, model in (("teacher", teacher), ("student", student)) if model.how == "recorded"
    )
    extra = 0 if projector is None else count_parameters(projector)
    layers = count_layers(teacher), count_layers(student)
    return Report(tuple(rows), totals[0], totals[1], *layers, extra, _not_lowered(teacher, teacher_walk), recorded)


def _not_lowered(teacher: SplitModel, walk: Walk) -> tuple[tuple[str, str], ...]:
    if teacher.how == "recorded":
        return ()
    found = []
    for part, x in zip(teacher.parts, walk.inputs):
        try:
            lower(part, x)
        except NotLowerable as reason:
            found.append((part.name, str(reason)))
    return tuple(found)


def _side(part: Part, walk: Walk, i: int, macs: int) -> Side:
    out = walk.outputs[i]
    return Side(_shape(walk.inputs[i]), tuple(out.shape[1:]), dtype_name(out), count_parameters(part), macs)


def _shape(inputs: Any) -> Shape:
    """Of an image, the first of a model's inputs."""
    first = first_tensor(inputs)
    return () if first is None else tuple(first.shape[1:])


def _equal(teacher: Part, student: Part) -> bool:
    ours, theirs = _tensors(student), _tensors(teacher)
    return bool(ours) and ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def _tensors(part: Part) -> dict[str, Tensor]:
    return {**dict(part.named_parameters()), **dict(part.named_buffers())}


def _cells(name: str, teacher: Side, student: Side, marks: str) -> tuple[str, ...]:
    numbers = f"{teacher.parameters:,}", f"{student.parameters:,}", _mega(teacher.macs), _mega(student.macs)
    return (name, teacher.shapes, teacher.dtype, *numbers, marks)


def _mega(macs: int) -> str:
    return f"{macs / 1e6:,.1f}" if macs >= 50_000 else f"{macs / 1e6:.4f}" if macs else "0"


def _times(shape: Shape) -> str:
    return "x".join(map(str, shape)) if shape else "scalar"
