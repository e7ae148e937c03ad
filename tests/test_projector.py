"""Projectors: maps between unequal widths, and only where they are needed."""

from __future__ import annotations

import copy

import pytest
import torch
from example_networks import VisionBasicBlock, VisionResNet, ViT
from torch import nn

from lit_fast import models
from lit_fast.errors import PairError
from lit_fast.pair.inspect import inspect
from lit_fast.sections.cutting import split
from lit_fast.sections.model import SplitModel
from lit_fast.sections.projector import Projectors, make_projectors


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def teacher_of(model: nn.Module, *args, **kwargs) -> SplitModel:
    return split(model.eval().requires_grad_(False), *args, **kwargs)


def vision(width: int) -> VisionResNet:
    return VisionResNet(VisionBasicBlock, (1, 1, 1, 1), width=width)


LAYERS = ["layer1", "layer2", "layer3"]


def test_convolutions_map_both_ways_between_unequal_widths():
    teacher, student = teacher_of(vision(8), LAYERS), split(vision(6), LAYERS)
    x = torch.randn(2, 3, 64, 64)
    maps = make_projectors(teacher, student, x)
    assert [type(m) for m in maps.to_teacher] == [nn.Conv2d] * 3
    assert [type(m) for m in maps.to_student] == [nn.Conv2d] * 2
    assert all(m.kernel_size == (1, 1) and m.bias is None for m in maps.to_teacher)
    teacher_irs, student_irs = teacher.run(x)[0], student.run(x)[0]
    for i in range(3):
        assert maps.compare(i, student_irs[i]).shape == teacher_irs[i].shape
    for i in range(2):
        assert maps.feed(i, teacher_irs[i]).shape == student_irs[i].shape
        assert student.sections[i + 1](maps.feed(i, teacher_irs[i])).shape == student_irs[i + 1].shape


def test_equal_widths_need_no_parameters():
    maps = make_projectors(teacher_of(models.resnet32()), split(models.resnet20()), torch.zeros(1, 3, 8, 8))
    assert not list(maps.parameters())
    x = torch.randn(2, 16, 8, 8)
    assert maps.compare(0, x) is x
    assert maps.feed(0, x) is x


def test_token_sequences_are_mapped_by_linear_layers():
    cuts = {"at": ["layers.0", "layers.1"], "stem": "embed"}
    teacher, student = teacher_of(ViT(2, 32), **cuts), split(ViT(2, 16), **cuts)
    x = torch.randn(2, 3, 16, 16)
    maps = make_projectors(teacher, student, x)
    assert [(m.in_features, m.out_features) for m in maps.to_teacher] == [(16, 32)] * 2
    assert maps.compare(0, student.run(x)[0][0]).shape == teacher.run(x)[0][0].shape
    assert maps.feed(0, teacher.run(x)[0][0]).shape == student.run(x)[0][0].shape


def test_maps_take_the_students_dtype_and_the_dry_run_leaves_no_trace():
    teacher, student = teacher_of(vision(8), LAYERS).double(), split(vision(6), LAYERS).double()
    before = copy.deepcopy(student.state_dict())
    maps = make_projectors(teacher, student, torch.randn(2, 3, 64, 64, dtype=torch.float64))
    assert maps.to_teacher[0].weight.dtype == torch.float64
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert student.training


def test_what_a_map_of_widths_cannot_mend_is_refused():
    x = torch.zeros(1, 3, 64, 64)
    with pytest.raises(
        PairError, match=r"section 2: student gives \(B, 8, 16, 16\), teacher \(B, 16, 8, 8\).*width alone"
    ):
        make_projectors(teacher_of(vision(8), LAYERS[:2]), split(vision(8), ["maxpool", "layer1"]), x)
    with pytest.raises(PairError, match=r"the teacher has 3 sections .* the student 2"):
        make_projectors(teacher_of(vision(8), LAYERS), split(vision(8), LAYERS[:2]), x)


def test_the_last_cut_feeds_nothing():
    maps = make_projectors(teacher_of(vision(8), LAYERS), split(vision(6), LAYERS), torch.zeros(1, 3, 64, 64))
    with pytest.raises(IndexError, match="cut 2 feeds no section; cuts 0 to 1 do"):
        maps.feed(2, torch.zeros(1, 32, 4, 4))


def test_numbers_of_maps_must_belong_together():
    with pytest.raises(ValueError, match="k cuts need k maps to the teacher and k - 1 to the student, got 2 and 2"):
        Projectors([nn.Identity()] * 2, [nn.Identity()] * 2)


def test_projectors_make_a_pair_of_unequal_widths_pass_inspection():
    teacher, student = teacher_of(vision(8), LAYERS), split(vision(6), LAYERS)
    x = torch.zeros(1, 3, 64, 64)
    with pytest.raises(PairError, match="pass projector="):
        inspect(teacher, student, x)
    maps = make_projectors(teacher, student, x)
    report = inspect(teacher, student, x, projector=maps)
    assert report.projector_parameters == sum(p.numel() for p in maps.parameters()) > 0
    lines = str(report).splitlines()
    assert lines[3].split()[:4] == ["stem", "3x64x64", "->", "8x16x16"]
    assert lines[4].split()[:4] == ["student", "3x64x64", "->", "6x16x16"]
    assert "in training only" in lines[-1]


def test_projectors_of_another_pair_are_named():
    x = torch.zeros(1, 3, 64, 64)
    teacher = teacher_of(vision(8), LAYERS)
    maps = make_projectors(teacher, split(vision(6), LAYERS), x)
    with pytest.raises(PairError, match=r"section 1: .*make_projectors for this pair"):
        inspect(teacher, split(vision(4), LAYERS), x, projector=maps)
