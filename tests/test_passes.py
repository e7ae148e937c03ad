"""The student's passes by themselves: without a loss, an optimizer or a step, and with what a variant needs of them."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tiny_networks import Net, split
from torch import Tensor, nn

import lit_fast as lf
from lit_fast.step.passes.student import StudentPasses
from lit_fast.teacher.frozen import After


def pair() -> tuple[lf.SplitModel, lf.SplitModel]:
    torch.manual_seed(0)
    return split(Net().double()).eval(), split(Net().double()).train()


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def run_on(teacher: lf.SplitModel, x: Tensor) -> Any:
    def run_teacher(after: After | None) -> tuple[list[Tensor], Tensor | None]:
        with torch.no_grad():
            return teacher.run(x, after)

    return run_teacher


def test_both_passes_are_those_of_the_sections_on_the_two_inputs() -> None:
    teacher, student = pair()
    alone, x = copy.deepcopy(student), images()
    outputs = StudentPasses(student, range(student.num_sections))(x, run_on(teacher, x))
    (composed, logits), (teacher_irs, teacher_logits) = alone.run(x), run_on(teacher, x)(None)
    assert torch.equal(outputs.output, logits)
    assert torch.equal(outputs.teacher_output, teacher_logits)
    fed = [composed[0], *(section(ir) for section, ir in zip(alone.sections[1:], teacher_irs))]
    for ours, right in zip((*outputs.irs, *outputs.teacher_irs), (*fed, *teacher_irs), strict=True):
        assert torch.equal(ours, right)


def test_only_compared_sections_are_fed() -> None:
    teacher, student = pair()
    calls: list[str] = []
    for i, section in enumerate(student.sections):
        section.register_forward_pre_hook(lambda *_, i=i: calls.append(f"section{i + 1}"))
    outputs = StudentPasses(student, [2], logits=False, bn_policy="teacher_fed")(images(), run_on(teacher, images()))
    assert (len(outputs.irs), outputs.output) == (1, None)
    assert calls == ["section1", "section3"]  # nothing needs the composed pass beyond what is both passes at once


@pytest.mark.parametrize("teacher_fed", [True, False])
def test_without_logits_only_what_is_compared_carries_gradients(teacher_fed: bool) -> None:
    passes = StudentPasses(pair()[1], [0, 1, 2], teacher_fed=teacher_fed, logits=False)
    composed, logits = passes.composed(images())
    assert logits is None
    assert [ir.requires_grad for ir in composed] == ([True, False, False] if teacher_fed else [True] * 3)


def overwriting(student: lf.SplitModel) -> lf.SplitModel:
    student.model.layer2 = nn.Sequential(nn.Hardtanh(0.0, 0.1, inplace=True), student.model.layer2)
    return split(student.model)


@pytest.mark.parametrize("copied", [False, True])
def test_a_section_that_overwrites_its_input_is_refused_or_given_a_copy(copied: bool) -> None:
    teacher, student = pair()
    passes = StudentPasses(overwriting(student), range(3), copied=copied)
    target = run_on(teacher, images())(None)[0][0]
    before = target.clone()
    with nullcontext() if copied else pytest.raises(RuntimeError, match="section 2 of the student overwrites its"):
        passes.fed(1, target)
    assert torch.equal(target, before) == copied
    composed, _ = passes.composed(images())
    assert bool((composed[0] > 0.1).any()) == copied
