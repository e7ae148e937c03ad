"""The pre-flight check: a report of pairs that fit, all problems by name of those that do not, and no trace left."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from example_networks import ViT, vision_resnet18, vision_resnet50
from torch import Tensor, nn

from lit_fast import models
from lit_fast.errors import PairError
from lit_fast.pair.inspect import inspect
from lit_fast.sections.copying import copy_parts
from lit_fast.sections.cutting import split
from lit_fast.sections.model import SplitModel

X = (1, 3, 16, 16)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def teacher_of(model: nn.Module, *args, **kwargs) -> SplitModel:
    return split(model.eval().requires_grad_(False), *args, **kwargs)


def problems(teacher: SplitModel, student: SplitModel, x: Tensor | None = None, **options) -> tuple[str, ...]:
    with pytest.raises(PairError) as caught:
        inspect(teacher, student, torch.randn(X) if x is None else x, **options)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


def one_problem(*args, **options) -> str:
    (problem,) = problems(*args, **options)
    return problem


# -- the report -----------------------------------------------------------------------------------------------------


def test_report_gives_shapes_sizes_and_marks_of_every_part():
    teacher, student = teacher_of(models.resnet56()), split(models.resnet20())
    copy_parts(teacher, student)
    student.freeze("stem", "section2")
    report = inspect(teacher, student, torch.randn(1, 3, 32, 32))
    assert [row.part for row in report.rows] == ["stem", "section1", "section2", "section3", "head"]
    row = report.rows[2]
    assert (row.teacher.input, row.teacher.output, row.teacher.dtype) == ((16, 32, 32), (32, 16, 16), "float32")
    assert (row.student.input, row.student.output) == ((16, 32, 32), (32, 16, 16))
    assert [row.copied for row in report.rows] == [True, False, False, False, True]
    assert [row.frozen for row in report.rows] == [True, False, True, False, False]
    assert (report.teacher.parameters, report.student.parameters) == (853_018, 269_722)
    assert sum(row.student.parameters for row in report.rows) == 269_722
    assert sum(row.teacher.macs for row in report.rows) == report.teacher.macs == 125_485_696
    assert report.student.macs == 40_551_040
    assert report.compression == pytest.approx(853_018 / 269_722)
    assert (report.teacher_layers, report.student_layers) == (56, 20)


def test_report_prints_an_aligned_table_within_120_columns():
    teacher, student = (
        teacher_of(vision_resnet50(), ["layer1", "layer4"]),
        split(vision_resnet50(), ["layer1", "layer4"]),
    )
    copy_parts(teacher, student)
    student.freeze("stem", "head")
    report = inspect(teacher, student, torch.randn(1, 3, 64, 64))
    assert [row.copied for row in report.rows] == [True, False, False, True]
    text = str(report)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    assert "32x16x16 -> 256x2x2" in text
    assert "copied, frozen" in text
    assert "compression 1.00x in parameters" in lines[-1]
    table = [line for line in lines if line.startswith(("stem", "section", "head", "total"))]
    assert len({line.index("float32") for line in table}) == 1
    ends = [line.index(number) + len(number) for line, number in zip(table[:1], ["1,192"])]
    assert lines[1].index("teacher") + len("teacher") == ends[0]


def test_a_batch_of_one_is_enough_though_the_student_has_batchnorm_over_single_pixels():
    cuts = ["layer1", "layer2", "layer3", "layer4"]
    inspect(teacher_of(vision_resnet18(), cuts), split(vision_resnet18(), cuts), torch.randn(1, 3, 32, 32))


def test_transformers_with_dropout_can_be_inspected():
    cuts = {"at": ["layers.0", "layers.1"], "stem": "embed"}
    report = inspect(teacher_of(ViT(2), **cuts), split(ViT(2), **cuts), torch.randn(X))
    assert report.rows[1].teacher.output == (5, 32)


def test_inspection_leaves_no_trace():
    teacher, student = teacher_of(ViT(2), ["layers.0"], stem="embed"), split(ViT(2), ["layers.0"], stem="embed")
    teacher2, student2 = teacher_of(models.resnet20()), split(models.resnet20())
    student2.model.layer2.eval()
    student2.freeze("stem")
    student.eval()
    for t, s in ((teacher, student), (teacher2, student2)):
        x = torch.randn(X)
        before = [copy.deepcopy(m.state_dict()) for m in (t, s)]
        modes = [module.training for m in (t, s) for module in (*m.modules(), *m.parts)]
        state, example = torch.get_rng_state(), x.clone()
        inspect(t, s, x)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(x, example)
        assert [module.training for m in (t, s) for module in (*m.modules(), *m.parts)] == modes
        for model, old in zip((t, s), before):
            assert all(torch.equal(value, old[key]) for key, value in model.state_dict().items())
            for module in model.modules():
                assert not module._forward_hooks
        assert all(p.grad is None for p in s.parameters())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_inspection_works_in_any_gradient_mode(context):
    teacher, student = teacher_of(models.resnet20()), split(models.resnet20())
    with context():
        inspect(teacher, student, torch.randn(X))


# -- problems ---------------------------------------------------------------------------------------------------------


def test_all_problems_are_listed_at_once():
    found = problems(split(models.resnet20(num_classes=7)), split(models.resnext20(cardinality=2)))
    subjects = [problem.split(":")[0] for problem in found]
    assert subjects == ["teacher", "teacher", "section 1", "section 2", "section 3", "logits"]


def test_pair_errors_survive_pickling():
    error = PairError(["one", "two"])
    twin = pickle.loads(pickle.dumps(error))
    assert twin.problems == ("one", "two")
    assert str(twin) == str(error)


def test_numbers_of_sections_must_agree():
    teacher, student = teacher_of(models.resnet20()), split(models.resnet20(), ["layer1", "layer3"])
    assert "the teacher has 3 sections ['layer1', 'layer2', 'layer3'], the student 2" in one_problem(teacher, student)


def test_unequal_widths_come_with_both_mends():
    teacher, student = teacher_of(vision_resnet50(), ["layer1"]), split(vision_resnet18(), ["layer1"])
    found = problems(teacher, student, torch.randn(1, 3, 64, 64))
    assert found == (
        "section 1: student gives (B, 8, 16, 16) float32, teacher (B, 32, 16, 16) float32; choose students of the "
        "teacher's width or pass projector=make_projectors(teacher, student, example) (in runs student.projector=true)",
    )


def test_unequal_sizes_and_ranks_name_the_cut():
    wide = torch.randn(1, 3, 64, 64)
    problem = one_problem(teacher_of(vision_resnet18(), ["conv1"]), split(vision_resnet18(), ["maxpool"]), wide)
    assert "section 1: student gives (B, 8, 16, 16) float32, teacher (B, 8, 32, 32) float32" in problem
    assert "after the same strides and poolings" in problem
    problem = one_problem(teacher_of(models.resnet20(), ["layer3"]), split(models.resnet20(), ["linear"]))
    assert "the ranks differ" in problem


def test_unequal_logits_are_named():
    problem = one_problem(teacher_of(models.resnet20(num_classes=100)), split(models.resnet20()))
    assert (
        problem == "logits: student gives (B, 10), teacher (B, 100); build both for the same classes (num_classes=...)"
    )


def test_unequal_dtypes_are_named():
    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = models.resnet20().bfloat16()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.bfloat16())

    teacher = teacher_of(Casts(), ["inner.layer1", "inner.layer2"])
    found = problems(teacher, split(models.resnet20(), ["layer1", "layer2"]))
    assert "section 1: student gives (B, 16, 16, 16) float32, teacher (B, 16, 16, 16) bfloat16; convert one" in found[0]


def test_a_teacher_in_train_mode_is_refused():
    teacher = teacher_of(models.resnet20())
    teacher.model.layer2[1].bn1.train()
    problem = one_problem(teacher, split(models.resnet20()))
    assert "1 modules are in train mode (layer2.1.bn1)" in problem
    assert "teacher.eval()" in problem


def test_a_teacher_that_requires_gradients_is_refused():
    teacher = teacher_of(models.resnet20())
    teacher.model.linear.weight.requires_grad_(True)
    problem = one_problem(teacher, split(models.resnet20()))
    assert "1 parameters require gradients (linear.weight)" in problem
    assert "teacher.requires_grad_(False)" in problem


def test_a_model_that_was_not_split_is_named():
    assert "teacher: expected a split model, got ResNet" in one_problem(models.resnet20(), split(models.resnet20()))


@pytest.mark.parametrize("example", [torch.zeros(0, 3, 8, 8), torch.tensor(1.0), [1, 2]])
def test_an_example_that_is_no_batch_is_refused(example):
    problem = one_problem(teacher_of(models.resnet20()), split(models.resnet20()), example)
    assert problem.startswith("example: expected a batch of inputs")


def test_a_model_elsewhere_is_named():
    teacher = teacher_of(models.resnet20()).to("meta")
    assert one_problem(teacher, split(models.resnet20())).startswith("teacher: it is on meta, the example on cpu")


def test_an_input_that_a_part_cannot_take_is_named():
    found = problems(teacher_of(models.resnet20()), split(models.resnet20()), torch.randn(1, 1, 16, 16))
    assert found[0].startswith("stem: the teacher fails on its own input (B, 1, 16, 16) float32: RuntimeError")
    assert found[1].startswith("stem: the student fails")


class Chain(nn.Module):
    """Four named steps, to be exchanged."""

    def __init__(self, **steps: nn.Module) -> None:
        super().__init__()
        for name in "abcd":
            self.add_module(name, steps.get(name) or nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x))))


class Transpose(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class View(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1)


def test_a_teachers_ir_that_the_students_next_section_cannot_take_is_named():
    flat = {"c": View(), "d": nn.Linear(16, 4)}
    teacher = teacher_of(Chain(b=Transpose(), **{**flat, "c": nn.Flatten()}), ["b", "c"])
    problem = one_problem(teacher, split(Chain(**flat), ["b", "c"]), torch.randn(2, 4, 4))
    assert problem.startswith(
        "section 2 fed with the teacher's IR 1: it takes (B, 4, 4) float32, the teacher gives (B, 4, 4) float32, "
        "and it fails (RuntimeError: view size is not compatible"
    )


class Tuple(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Words(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"score": x}


class First(nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return pair[0]


def test_a_section_that_gives_no_tensor_is_named():
    x = torch.randn(2, 4)
    student = split(Chain(b=Tuple(), c=First()), ["b", "c"])
    problem = one_problem(teacher_of(Chain(), ["b", "c"]), student, x)
    assert problem == "section1: the student gives tuple, expected one tensor; cut where a single tensor passes"
    inspect(teacher_of(Chain(d=Tuple()), ["b"]), split(Chain(), ["b"]), x)  # a model may: the first are the logits
    problem = one_problem(teacher_of(Chain(d=Words()), ["b"]), split(Chain(), ["b"]), x)
    assert problem.startswith("head: the teacher's targets: found no logits in the model's output, dict with score;")


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        ({"c": nn.ReLU(True)}, {}, "the teacher's 'c' overwrites the teacher's IR 1 in place"),
        ({"d": nn.ReLU(True)}, {}, "the teacher's 'd' overwrites the teacher's IR 2 in place"),
        ({}, {"d": nn.Sequential(nn.ReLU(True), nn.Linear(4, 4))}, "the student's 'd.0' overwrites the student's IR 2"),
        ({"a": nn.ReLU(True)}, {}, "the teacher's 'a' overwrites the images, which teacher and student share"),
        ({}, {"a": nn.Dropout(0.5, inplace=True)}, "the student's 'a' overwrites the images"),
    ],
)
def test_a_module_that_overwrites_a_kept_tensor_is_named(teacher, student, message):
    cuts = ["b", "c"]
    x = torch.randn(2, 4)
    before = x.clone()
    found = problems(teacher_of(Chain(**teacher), cuts), split(Chain(**student), cuts), x)
    assert any(problem.startswith(message) for problem in found), found
    assert torch.equal(x, before)
    assert all("inplace=False" in problem for problem in found)


def test_a_student_section_that_overwrites_the_teachers_ir_is_named():
    found = problems(teacher_of(Chain(), ["b", "c"]), split(Chain(c=nn.ReLU(True)), ["b", "c"]), torch.randn(2, 4))
    assert any(problem.startswith("the student's 'c' overwrites the teacher's IR 1") for problem in found), found


def test_a_statement_that_overwrites_an_ir_is_named():
    class Adds(Chain):
        def forward(self, x: Tensor) -> Tensor:
            x = self.b(self.a(x))
            x += 1
            return self.d(self.c(x))

    found = problems(teacher_of(Adds(), ["b", "c"]), split(Chain(), ["b", "c"]), torch.randn(2, 4))
    assert any(p.startswith("a statement before 'c' in the teacher's forward overwrites") for p in found), found


def test_a_last_statement_that_overwrites_the_ir_it_was_fed_is_named_by_part():
    class AddsLate(Chain):
        def forward(self, x: Tensor) -> Tensor:
            x = self.b(self.a(x))
            y = self.c(x)
            x.add_(y)
            return self.d(y)

    found = problems(teacher_of(Chain(), ["b", "c"]), split(AddsLate(), ["b", "c"]), torch.randn(2, 4))
    assert [problem.split(" in place")[0] for problem in found] == [
        "the student's section2 overwrites the student's IR 1",
        "the student's section2 overwrites the teacher's IR 1",
    ]


def test_in_place_modules_that_overwrite_nothing_kept_are_accepted():
    cuts = ["layer1", "layer2", "layer3", "layer4"]  # torchvision's blocks are full of inplace ReLUs
    inspect(teacher_of(vision_resnet18(), cuts), split(vision_resnet18(), cuts), torch.randn(2, 3, 64, 64))


def test_a_value_fixed_at_the_split_that_changed_since_is_found():
    class Scaled(Chain):
        scale = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return self.d(self.c(self.b(self.a(x)) * 1.0)) * self.scale

    student = split(Scaled(), ["b"])
    student.model.scale = 2.0
    problem = one_problem(teacher_of(Chain(), ["b"]), student, torch.randn(2, 4))
    assert problem.startswith("student: its parts in sequence do not give what its own forward gives")


# -- a teacher at chance ----------------------------------------------------------------------------------------------


def labelled(images: int, right: int, classes: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Batches on which the identity network is right for ``right`` images of ``images``."""
    labels = torch.arange(images) % classes
    predicted = torch.where(torch.arange(images) < right, labels, (labels + 1) % classes)
    x = torch.nn.functional.one_hot(predicted, classes).float()
    return list(zip(x.split(64), labels.split(64)))


def identity_pair() -> tuple[SplitModel, SplitModel]:
    steps = {name: nn.Identity() for name in "abcd"}
    return teacher_of(Chain(**steps), ["b"]), split(Chain(), ["b"])


# Chance is 25 %, its standard error over 400 images sqrt(0.25 * 0.75 / 400) = 2.165 %: the line is at 125.98 images.
def test_a_teacher_above_chance_by_three_standard_errors_passes():
    inspect(*identity_pair(), torch.randn(2, 4), loader=labelled(400, 126))


def test_a_teacher_at_chance_is_refused_with_the_numbers():
    problem = one_problem(*identity_pair(), torch.randn(2, 4), loader=labelled(400, 125))
    assert "accuracy 31.25% on 400 images, expected above 31.50%" in problem
    assert "1/4 = 25.00%, and 3 standard errors of 2.17%" in problem
    assert "load a checkpoint" in problem


def test_an_untrained_network_is_refused():
    teacher, student = teacher_of(models.resnet20()), split(models.resnet20())
    loader = [(torch.randn(100, 3, 8, 8), torch.randint(10, (100,))) for _ in range(2)]
    assert "weights look untrained" in one_problem(teacher, student, torch.randn(X), loader=loader)


def test_only_as_many_images_as_needed_are_looked_at():
    taken = []

    def many():
        for _ in range(50):
            taken.append(1)
            yield labelled(64, 64)[0]

    inspect(*identity_pair(), torch.randn(2, 4), loader=many())
    assert len(taken) == 16  # 1,000 images of 64


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "loader: it gave no images"),
        (labelled(2, 2), "2 images are too few to tell 4 classes from chance"),
        ([(torch.zeros(3, 4), torch.zeros(5, dtype=torch.long))], "loader: logits are (B, 4) for labels (5,)"),
    ],
)
def test_a_loader_that_tells_nothing_is_named(loader, message):
    assert message in one_problem(*identity_pair(), torch.randn(2, 4), loader=loader)


# --- what the runner cannot take


def test_a_part_that_cannot_be_lowered_is_reported_with_its_share_of_the_work():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high = (
                nn.Conv2d(3, 4, 3, padding=1),
                nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Softmax(1)),
            )
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.high(self.low(x)).mean((2, 3)))

    teacher, student = (split(Gated(), at=["low", "high"]) for _ in range(2))
    teacher.eval().requires_grad_(False)
    report = inspect(teacher, student, torch.randn(2, 3, 8, 8))
    assert report.not_lowered == (("section2", "aten.softmax.int"),)
    share = 64 * 4 * 4 * 9 / (64 * 4 * 3 * 9 + 64 * 4 * 4 * 9 + 8)
    line = f"the teacher's section2 ({share:.0%} of its MACs) is not lowered and runs as modules: aten.softmax.int"
    assert str(report).splitlines()[-1] == line
