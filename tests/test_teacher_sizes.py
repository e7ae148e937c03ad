"""The frozen teacher at many sizes of input: right at each, with bounded memory and few lowerings."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from teacher_networks import network
from torch import Tensor, nn

import lit_fast as lf
from lit_fast.errors import LoweringError
from lit_fast.loss.backends import native
from lit_fast.teacher import frozen, programs
from lit_fast.teacher.frozen import FrozenTeacher
from lit_fast.teacher.instruction import FUSED
from lit_fast.teacher.programs import MAX_PROGRAMS

pytestmark = pytest.mark.skipif(not native.available()[0], reason=f"no compiled extension: {native.available()[1]}")

WIDTHS = range(8, 38)


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the parts in the order they are lowered."""
    names: list[str] = []
    lower = programs.lower

    def counting(part, example):
        names.append(part.name)
        return lower(part, example)

    monkeypatch.setattr(programs, "lower", counting)
    return names


def images_of(width: int, rows: int = 2, height: int = 8) -> Tensor:
    return torch.randn(rows, 3, height, width, generator=torch.Generator().manual_seed(width))


def is_right(teacher: FrozenTeacher, images: Tensor) -> None:
    irs, logits = teacher.run(images)
    right, right_logits = teacher.module.run(images)
    for ours, expected in zip([*irs, logits], [*right, right_logits], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def weights_alive(teacher: FrozenTeacher) -> int:
    """Bytes of the weights of all its programs, each memory once."""
    weights = [weight for part in teacher._programs for program in part._programs for weight in program.weights]
    return sum({w.untyped_storage().data_ptr(): w.untyped_storage().nbytes() for w in weights}.values())


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def resident() -> float:
    """MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def test_a_network_that_does_the_same_at_all_sizes_is_lowered_once(lowered: list[str]) -> None:
    teacher = FrozenTeacher(network("resnet8")[0])
    is_right(teacher, images_of(WIDTHS[0]))
    alive = tensors_alive()
    weights = weights_alive(teacher)
    for width in WIDTHS[1:]:
        is_right(teacher, images_of(width))
    assert lowered == ["stem", "section1", "section2", "section3", "head"]
    assert tensors_alive() <= alive  # other tests' may go meanwhile
    assert weights_alive(teacher) == weights > 2e5


class Heavy(nn.Module):
    """4.5 MiB of weights, the sizes of images far below."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 256, 1), nn.Linear(256, 2)
        self.second = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 256, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x)).mean((2, 3)))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_memory_does_not_grow_with_the_sizes() -> None:
    teacher = FrozenTeacher(lf.split(Heavy().eval(), at=["second"]))
    for width in WIDTHS[:10]:
        teacher.run(images_of(width, height=2))
    before = resident()
    for width in WIDTHS[10:]:
        teacher.run(images_of(width, height=2))
    assert resident() - before < 30  # of 20 copies, each plain and packed: 180


class Crop(nn.Module):
    """Half of an image: a trace holds a number that depends on its width."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), Half()
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x)).mean((2, 3)))


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x[:, :, :, : x.shape[3] // 2])))


def test_a_part_whose_numbers_depend_on_the_size_has_so_many_programs_and_one_set_of_weights(
    lowered: list[str],
) -> None:
    teacher = FrozenTeacher(lf.split(Crop().eval(), at=["first", "second"]))
    is_right(teacher, images_of(WIDTHS[0]))
    weights = weights_alive(teacher)
    for width in [*WIDTHS[1:], *WIDTHS]:
        is_right(teacher, images_of(width))
        assert weights_alive(teacher) == weights
    assert lowered.count("section2") == MAX_PROGRAMS
    assert len(lowered) == MAX_PROGRAMS + 3
    for width in (WIDTHS[-1], WIDTHS[0]):  # the last is run by the module, the first by a program still
        teacher._sizes.clear()
        is_right(teacher, images_of(width))
        runs_as_module = "section2: as the module it is: it was lowered 8 times" in teacher.describe()
        assert runs_as_module == (width == WIDTHS[-1])
    assert len(lowered) == MAX_PROGRAMS + 3


def test_a_size_that_was_forgotten_is_checked_again_and_right(
    monkeypatch: pytest.MonkeyPatch, lowered: list[str]
) -> None:
    monkeypatch.setattr(frozen, "MAX_SIZES", 2)
    model = lf.split(Crop().eval(), at=["first", "second"])
    teacher = FrozenTeacher(model)
    for width in (8, 9, 10, 8, 9, 10, 10, 9):
        is_right(teacher, images_of(width))
        assert next(reversed(teacher._sizes)) == (3, 8, width)
        assert len(teacher._sizes) <= 2
    assert lowered.count("section2") == 2  # 8 and 9 are cut alike


def test_batches_of_many_sizes_can_be_prefetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the module of one part runs in a thread, the next size is prepared."""
    monkeypatch.setattr(frozen, "MAX_SIZES", 2)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Softmax(1), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    teacher = FrozenTeacher(lf.split(layers.append(nn.Linear(8, 2)).eval(), at=["1", "2"]))
    batches = [images_of(width, rows=64) for width in WIDTHS]
    teacher.prefetch(batches[0])
    for images, following in zip(batches, [*batches[1:], None]):
        if following is not None:
            teacher.prefetch(following)
        _, logits = teacher.run(images)
        torch.testing.assert_close(logits, teacher.module.run(images)[1], rtol=1e-4, atol=1e-5)
    assert [plan.lowered for plan in teacher.parts] == [True, False, True, True]


def test_no_size_is_prepared_while_a_module_runs_in_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Preparing takes the modules' attributes away for a moment."""
    busy, met, began = [], [], threading.Event()
    module_run, untouched = programs._module_run, frozen.untouched

    def slow(part, dtype):
        run = module_run(part, dtype)

        def running(x: Tensor) -> Tensor:
            busy.append(x)
            began.set()
            time.sleep(0.05)
            out = run(x)
            busy.pop()
            return out

        return running

    def watched(model):
        met.append(len(busy))
        return untouched(model)

    monkeypatch.setattr(programs, "_module_run", slow)
    monkeypatch.setattr(frozen, "untouched", watched)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Softmax(1), nn.Flatten(), nn.AdaptiveAvgPool1d(4), nn.Linear(4, 2))
    teacher = FrozenTeacher(lf.split(layers.eval(), at=["1"]))
    teacher.prefetch(images_of(8))
    assert began.wait(10)
    teacher.prefetch(images_of(9))
    assert met == [0, 0]


class Pooled(nn.Module):
    """Pooled over the whole width, by a number: a program of another width is right for blank images alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(F.avg_pool2d(x, (x.shape[2], x.shape[3] // 2 * 2)).flatten(1))


def test_a_size_that_comes_with_blank_images_first_is_right_for_others() -> None:
    teacher = FrozenTeacher(lf.split(Pooled().eval(), at=["first"]))
    is_right(teacher, images_of(8))
    teacher.run(torch.zeros(2, 3, 8, 10))
    is_right(teacher, images_of(10))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x.mean((2, 3), keepdim=True))


def test_a_residual_that_has_the_results_shape_at_one_size_alone() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 8, 1), Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    teacher = FrozenTeacher(lf.split(layers.eval(), at=["1"]))
    is_right(teacher, images_of(1, height=1))
    is_right(teacher, images_of(4))
    is_right(teacher, images_of(1, height=1))


class Chosen(nn.Module):
    """Two of its tensors, by the size of the image, without another operation."""

    def forward(self, x: Tensor) -> Tensor:
        small, large = F.relu(x), F.leaky_relu(x, 0.5)
        return small if x.shape[3] < 10 else large


def test_a_part_that_gives_another_of_its_tensors_at_another_size() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 8, 1), Chosen(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    teacher = FrozenTeacher(lf.split(layers.eval(), at=["1"]))
    for width in (8, 12, 9, 13):
        teacher.run(images_of(width).abs() * 0)
        is_right(teacher, images_of(width))


def where(monkeypatch: pytest.MonkeyPatch, wrong: Callable[[list, Tensor], Tensor]) -> None:
    """Programs whose results go through ``wrong``."""
    program = programs._program

    def make(steps, output):
        run = program(steps, output)
        return lambda x: wrong(steps, run(x))

    monkeypatch.setattr(programs, "_program", make)


def test_a_size_that_a_library_has_no_fused_convolution_for_gets_a_program_without(
    monkeypatch: pytest.MonkeyPatch, lowered: list[str]
) -> None:
    def unavailable(steps: list, out: Tensor) -> Tensor:
        if out.dim() == 4 and out.shape[3] == 20 and any(s.op == "convolution" and s.numbers[FUSED] for s in steps):
            raise RuntimeError("no engine")
        return out

    where(monkeypatch, unavailable)
    teacher = FrozenTeacher(lf.split(Heavy().eval(), at=["second"]))
    for width in (8, 20, 12, 20):
        is_right(teacher, images_of(width))
        assert all(plan.lowered for plan in teacher.parts)
    assert lowered == ["stem", "section1", "head", "stem", "section1"]
    assert "stem: 1 instructions: convolutions are not fused: fused, it fails" not in teacher.describe()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_further_size_is_checked_in_the_dtype_of_the_program(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    where(monkeypatch, lambda steps, out: out * 1.2 if out.dim() == 4 and out.shape[3] == 20 else out)
    model, _ = network("resnet8")
    teacher = FrozenTeacher(model, dtype)
    teacher.run(images_of(16))
    with pytest.raises(LoweringError, match=r"stem: lowered, it differs from the module by 0\.2"):
        teacher.run(images_of(20))


def test_a_further_size_of_a_half_precision_program_makes_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = network("resnet8")
    teacher = FrozenTeacher(model, torch.bfloat16)
    teacher.run(images_of(16))
    monkeypatch.setattr(programs, "_program", None)
    exact, _ = model.run(images_of(20))
    for ours, right in zip(teacher.run(images_of(20))[0], exact, strict=True):
        assert (ours - right).abs().max() <= 0.05 * right.abs().max()


def test_texts_of_any_length_share_the_program(lowered: list[str]) -> None:
    model, _ = network("text")
    teacher = FrozenTeacher(model)
    for length in range(20, 40):
        is_right(teacher, torch.randint(0, 70, (3, length)))
    assert len(lowered) == 4


@pytest.fixture
def shared() -> tuple[FrozenTeacher, lf.SplitModel]:
    model, images = network("resnet8")
    teacher = FrozenTeacher(model)
    teacher.run(images)
    return teacher, model


def change(model: lf.SplitModel, how: str) -> None:
    parameter, buffer = model.model.conv1.weight, model.model.bn1.running_mean
    with torch.no_grad():
        {
            "data": lambda: parameter.data.mul_(2),
            "in place": lambda: parameter.add_(1),
            "statistics": lambda: buffer.add_(0.1),
            "another": lambda: setattr(model.model.conv1, "weight", nn.Parameter(parameter * 1.5)),
        }[how]()


@pytest.mark.parametrize("how", ["data", "in place", "statistics", "another"])
def test_a_teacher_that_changed_is_not_shared(shared: tuple[FrozenTeacher, lf.SplitModel], how: str) -> None:
    teacher, model = shared
    teacher.check_shared(model, None, logits=True, strict=True)
    change(model, how)
    with pytest.raises(ValueError, match="parameters have changed since it copied them; make a new one"):
        teacher.check_shared(model, None, logits=True, strict=True)


def test_a_teacher_may_change_before_it_is_copied() -> None:
    model, images = network("resnet8")
    teacher = FrozenTeacher(model)
    change(model, "data")
    teacher.check_shared(model, None, logits=True, strict=True)
    is_right(teacher, images)


def test_other_layouts_are_no_change(shared: tuple[FrozenTeacher, lf.SplitModel]) -> None:
    teacher, model = shared
    model.to(memory_format=torch.channels_last)
    teacher.check_shared(model, torch.float32, logits=False, strict=True)
