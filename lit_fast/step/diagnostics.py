"""How well each section of a student does its part, measured on one batch without leaving a trace.

The IR loss compares what a section makes of the teacher's IR. Deployed, it is given what the student's own sections
made before it. The difference of the two errors is the assembly gap: what is lost when the sections, trained apart, are
put together. And the two losses may pull a section's weights apart: the cosine between their gradients says so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_fast.errors import expect
from lit_fast.loss.backends import Inputs as LossInputs
from lit_fast.loss.functional import compute
from lit_fast.sections.dryrun import untouched
from lit_fast.sections.inputs import Inputs, without_labels
from lit_fast.sections.parts import Part
from lit_fast.step.lit_step import LITStep
from lit_fast.step.passes.student import PassOutputs, StudentPasses

__all__ = ["SectionDiagnostics", "section_diagnostics"]


class SectionDiagnostics(NamedTuple):
    """What `section_diagnostics` found, a number for each section from the first.

    Attributes:
        teacher_fed: IR error of S_i(T_(i-1)), mean over the elements: each section's IR loss, unweighted.
        composed: IR error of S_i(S_(i-1)(...)), the student as deployed. Equal to ``teacher_fed`` for section 1.
        cosines: between the gradients of the KD loss and of the IR loss, over a section's trainable parameters; in
            [-1, 1], ``None`` for a section that trains on only one of them, or where a gradient is zero.
        cosine: over the parameters of all those sections together.
    """

    teacher_fed: list[float]
    composed: list[float]
    cosines: list[float | None]
    cosine: float | None

    @property
    def gaps(self) -> list[float]:
        """The assembly gap of each section: composed minus teacher-fed error."""
        return [own - fed for own, fed in zip(self.composed, self.teacher_fed)]


def section_diagnostics(step: LITStep, inputs: Inputs, labels: Tensor | None = None) -> SectionDiagnostics:
    """Measure the student of ``step`` on one batch, in the mode it is in (training: BatchNorm's batch statistics).

    Weights, gradients, running statistics, random state and the step itself stay as they are. Both networks run as
    modules in their own precision, without autocast and the fused teacher: it costs about as much as a plain training
    step, and waits for the device.

    Args:
        step: with a teacher whose IRs have the student's widths.
        inputs, labels: as for a call of ``step``; the same batch each time makes the numbers comparable.

    Raises:
        ValueError: there is no teacher, or there are projectors, whose maps would be measured with the sections.

    Example:
        >>> import torch, lit_fast as lf
        >>> teacher, student = lf.split(lf.models.resnet32()), lf.split(lf.models.resnet20())
        >>> optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        >>> step = lf.LITStep(teacher, student, lf.LITLoss(), optimizer)
        >>> found = lf.section_diagnostics(step, torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))
        >>> len(found.teacher_fed), len(found.composed), found.gaps[0]
        (3, 3, 0.0)

    Source: paper, section 3, "how IRs are used in LIT", for the two inputs of a section.
    """
    expect("step", step, LITStep, "a lit_fast.LITStep")
    teacher, student = step.teacher, step.student
    if teacher is None:
        raise ValueError("section_diagnostics: the step has no teacher to compare the student's sections with")
    if step.projector is not None:
        raise ValueError(
            "section_diagnostics: the step has projectors, whose maps would be measured with the sections; it needs "
            "IRs of equal width"
        )
    step.model.check_teacher_mode()
    inputs, labels = without_labels(inputs, labels)
    passes = StudentPasses(student, range(student.num_sections), copied=True)
    with untouched(teacher, student):
        with torch.no_grad():
            targets, teacher_output = teacher.run(inputs)
        teacher.release()
        with torch.enable_grad():
            composed, output = passes.composed(step.passes.laid_out(inputs))
            fed = [composed[0], *(passes.fed(i, target) for i, target in enumerate(targets[:-1], 1))]
            student.release()
            alone = dataclasses.replace(step.options, beta=0.0, section_weights=None)
            outputs = PassOutputs(fed, output, targets, teacher_output)
            (*_, logits, teacher_logits, row_labels), masks = step.rows(outputs, (), inputs, labels)
            rows = masks.get("rows")
            ir_rows = masks.get("ir_rows") or [None] * len(fed)
            errors = [compute(LossInputs(irs, targets, ir_rows=ir_rows), alone, "eager").ir for irs in (fed, composed)]
            cosines: list[float | None] = [None] * len(fed)
            cosine = None
            if step.ir_sections and step.options.beta > 0.0:
                kd = dataclasses.replace(step.options, beta=1.0, section_weights=None)
                weight = step.criterion.class_weight
                of_rows = LossInputs((), (), logits, teacher_logits, row_labels, weight, rows=rows)
                kd_loss = compute(of_rows, kd, "eager").total
                ir = dataclasses.replace(step.options, beta=0.0)
                compared = fed if step.teacher_fed else composed
                of_irs = ([tensors[i] for i in step.ir_sections] for tensors in (compared, targets, ir_rows))
                ours, theirs, counted = of_irs
                ir_loss = compute(LossInputs(ours, theirs, ir_rows=counted), ir, "eager").total
                found, cosine = _cosines(kd_loss, ir_loss, [student.sections[i] for i in step.ir_sections])
                for i, value in zip(step.ir_sections, found):
                    cosines[i] = value
    return SectionDiagnostics(errors[0].tolist(), errors[1].tolist(), cosines, cosine)


def _cosines(kd_loss: Tensor, ir_loss: Tensor, sections: Sequence[Part]) -> tuple[list[float | None], float | None]:
    """Between the gradients of the two losses: for each section, and for all together."""
    groups = [[p for p in section.parameters() if p.requires_grad] for section in sections]
    flat = [p for group in groups for p in group]
    # A parameter that one of the losses does not reach has a zero gradient of it.
    kd, ir = (
        torch.autograd.grad(loss, flat, retain_graph=True, allow_unused=True, materialize_grads=True)
        for loss in (kd_loss, ir_loss)
    )
    terms = torch.stack([_products(a.double(), b.double()) for a, b in zip(kd, ir)]).cpu()  # [parameters, 3]
    sums = [part.sum(0) for part in terms.split([len(group) for group in groups])]
    return [_cosine(part) for part in sums], _cosine(terms.sum(0))


def _products(a: Tensor, b: Tensor) -> Tensor:
    """[3]: <a, b>, <a, a>, <b, b>."""
    return torch.stack([(a * b).sum(), a.square().sum(), b.square().sum()])


def _cosine(products: Tensor) -> float | None:
    both, a, b = products.tolist()
    return both / math.sqrt(a * b) if a > 0.0 and b > 0.0 else None
