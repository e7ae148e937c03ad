"""The frozen teacher: every part gives what its module gives, lowered or not."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
from teacher_networks import IMAGES, NETWORKS, network
from torch import Tensor, nn

import lit_fast as lf
from lit_fast import lowering
from lit_fast.backends import native
from lit_fast.lowering import NotLowerable, lower
from lit_fast.teacher import FrozenTeacher, LoweringError

pytestmark = pytest.mark.skipif(not native.available()[0], reason=f"no compiled extension: {native.available()[1]}")


class Odd(nn.Module):
    """A section that no instruction does."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Softmax(dim=1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.first(x)).mean((2, 3)))


def close(ours: Tensor, right: Tensor, tolerance: float) -> None:
    assert ours.shape == right.shape
    assert (ours - right).abs().max() <= tolerance * right.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_every_part_is_lowered_and_gives_what_the_module_gives(name, dtype, tolerance):
    model, images = network(name)
    model = model.to(dtype)
    images = images.to(dtype) if images.is_floating_point() else images
    irs, logits = model.run(images)
    teacher = FrozenTeacher(model)
    own_irs, own_logits = teacher.run(images)
    assert all(plan.lowered for plan in teacher.parts), teacher.describe()
    for ours, right in zip([*own_irs, own_logits], [*irs, logits]):
        close(ours, right, tolerance)
    assert not own_logits.requires_grad


@pytest.mark.parametrize("name", NETWORKS)
def test_bf16_is_as_close_as_autocast(name):
    model, images = network(name)
    exact, _ = model.run(images)
    with torch.autocast("cpu", torch.bfloat16):
        plain, _ = model.run(images)
    ours, logits = FrozenTeacher(model, torch.bfloat16).run(images)
    assert logits.dtype == torch.bfloat16
    for mine, auto, right in zip(ours, plain, exact):
        scale = right.abs().max()
        assert (mine - right).abs().max() <= 2 * (auto - right).abs().max() + 0.01 * scale


@pytest.mark.parametrize("name", ["resnet20", "text"])
def test_a_module_in_half_precision_is_lowered_too(name):
    model, images = network(name)
    right, _ = model.run(images)
    half = model.to(torch.bfloat16)
    teacher = FrozenTeacher(half)
    irs, logits = teacher.run(images.bfloat16() if images.is_floating_point() else images)
    assert logits.dtype == torch.bfloat16
    assert next(half.parameters()).dtype == torch.bfloat16
    for ours, expected in zip(irs, right):
        assert (ours - expected).abs().max() <= 0.1 * expected.abs().max()


def test_convolutions_take_in_batchnorm_residual_and_relu():
    model, images = network("resnet20")
    teacher = FrozenTeacher(model)
    teacher.run(images)
    convolutions = {plan.name: plan.instructions for plan in teacher.parts}
    # Six convolutions a section; sections 2 and 3 also slice twice and pad for the option A shortcut.
    assert convolutions == {"stem": 1, "section1": 6, "section2": 9, "section3": 9, "head": 3}


def test_inputs_and_irs_are_never_overwritten():
    model, images = network("resnet20")
    teacher = FrozenTeacher(model)
    before = images.clone()
    irs, _ = teacher.run(images)
    copies = [ir.clone() for ir in irs]
    teacher.run(torch.randn(IMAGES))
    torch.testing.assert_close(images, before, rtol=0, atol=0)
    for ir, copy in zip(irs, copies):
        torch.testing.assert_close(ir, copy, rtol=0, atol=0)
    again, _ = teacher.run(images)
    for ir, copy in zip(again, copies):
        torch.testing.assert_close(ir, copy, rtol=0, atol=0)


def test_irs_can_be_saved_for_a_students_backward_pass():
    model, images = network("resnet20")
    irs, _ = FrozenTeacher(model).run(images)
    convolution = nn.Conv2d(16, 4, 3)
    convolution(irs[0]).sum().backward()
    assert convolution.weight.grad is not None


def test_a_part_without_instructions_runs_as_the_module_it_is():
    torch.manual_seed(0)
    model = lf.split(Odd().eval(), at=["first", "second"])
    images = torch.randn(IMAGES)
    teacher = FrozenTeacher(model)
    irs, logits = teacher.run(images)
    right, right_logits = model.run(images)
    for ours, expected in zip([*irs, logits], [*right, right_logits]):
        close(ours, expected, 1e-6)
    assert [plan.lowered for plan in teacher.parts] == [True, True, False, True]
    assert "section2: as the module it is: aten.softmax" in teacher.describe()


def test_other_batch_sizes_and_a_batch_of_one():
    model, _ = network("resnet20")
    teacher = FrozenTeacher(model)
    for batch in (1, 7, 2):
        images = torch.randn(batch, *IMAGES[1:])
        close(teacher.run(images)[1], model.run(images)[1], 1e-5)


class Crop(nn.Module):
    """A trace of this holds numbers that depend on the size of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x[:, :, : x.shape[2] // 2]).mean((2, 3)))


def test_images_of_another_size_are_traced_anew():
    torch.manual_seed(0)
    model = lf.split(Crop().eval(), at=["conv"])
    teacher = FrozenTeacher(model)
    for size in (8, 16, 8):
        images = torch.randn(2, 3, size, size)
        close(teacher.run(images)[1], model.run(images)[1], 1e-5)


def test_prefetched_results_are_those_of_run():
    model, _ = network("resnet20")
    teacher = FrozenTeacher(model)
    one, two, other = (torch.randn(IMAGES) for _ in range(3))
    right = [teacher.run(images)[1] for images in (one, two, other)]
    teacher.prefetch(one)
    first = teacher.run(one)[1]
    teacher.prefetch(two)
    torch.testing.assert_close(teacher.run(other)[1], right[2], rtol=0, atol=0)  # another batch than was announced
    torch.testing.assert_close(first, right[0], rtol=0, atol=0)


def test_several_batches_are_prefetched_in_one_forward_and_taken_in_turn():
    model, _ = network("resnet20")
    teacher = FrozenTeacher(model)
    batches = [torch.randn(n, *IMAGES[1:]) for n in (2, 3, 1)]
    teacher.prefetch(*batches)
    for batch in batches:
        irs, logits = teacher.run(batch)
        right, right_logits = model.run(batch)
        for ours, expected in zip([*irs, logits], [*right, right_logits]):
            close(ours, expected, 1e-5)
    teacher.prefetch(*batches)
    teacher.run(batches[0])
    close(teacher.run(batches[2])[1], model.run(batches[2])[1], 1e-5)  # out of turn: computed
    close(teacher.run(batches[1])[1], model.run(batches[1])[1], 1e-5)


def test_an_error_in_a_prefetched_batch_is_raised_by_run():
    model, images = network("resnet20")
    teacher = FrozenTeacher(model)
    teacher.run(images)
    with pytest.raises(RuntimeError, match="channels"):
        teacher.prefetch(torch.randn(2, 4, 16, 16))
    wrong = images.to(torch.complex64)
    teacher.prefetch(wrong)
    with pytest.raises(RuntimeError):
        teacher.run(wrong)
    close(teacher.run(images)[1], model.run(images)[1], 1e-5)


def test_several_batches_in_one_forward():
    model, _ = network("resnet20")
    teacher = FrozenTeacher(model)
    batches = [torch.randn(n, *IMAGES[1:]) for n in (2, 3, 1)]
    for (irs, logits), batch in zip(teacher.run_batches(batches), batches):
        right, right_logits = model.run(batch)
        for ours, expected in zip([*irs, logits], [*right, right_logits]):
            close(ours, expected, 1e-5)


def test_the_head_is_left_out_where_no_logits_are_wanted():
    model, images = network("resnet20")
    teacher = FrozenTeacher(model, logits=False)
    irs, logits = teacher.run(images)
    assert logits is None
    for ours, right in zip(irs, model.run(images)[0], strict=True):
        close(ours, right, 1e-5)
    assert [logits for _, logits in teacher.run_batches([images[:1], images[1:]])] == [None, None]


def test_a_wrong_lowering_is_found(monkeypatch):
    model, images = network("resnet20")
    fold = lowering._fold

    def wrong(step, scale, shift):
        fold(step, scale, shift + 0.1)

    monkeypatch.setattr(lowering, "_fold", wrong)
    with pytest.raises(LoweringError, match="teacher, stem: lowered, it differs from the module by"):
        FrozenTeacher(model).run(images)


class Two(nn.Module):
    """One tensor read under two names, and by two: fusing would change what the second reader gets."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        alias = y.detach()
        z = F.relu(y) + alias
        w = self.second(z) + z
        return F.relu(w) + w + x


def test_what_is_read_twice_is_not_fused():
    torch.manual_seed(0)
    module, x = Two().eval(), torch.randn(2, 3, 6, 6)
    steps, output = lower(module, x)
    program = torch.classes.lit_fast.Program([step.spec() for step in steps], output)
    with torch.no_grad():
        close(program.run(x.contiguous(memory_format=torch.channels_last)), module(x), 1e-5)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Conv2d(3, 3, 4, padding="same"), "pads one side more"),
        (nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, track_running_stats=False)), "batch's statistics"),
        (nn.AdaptiveAvgPool2d(2), "adaptive pooling to"),
        (nn.ReflectionPad2d(1), "padding by reflect"),
        (nn.Softmax(1), "softmax"),
    ],
)
def test_what_cannot_be_lowered_is_named(module, message):
    with pytest.raises(NotLowerable, match=message):
        lower(module.eval(), torch.randn(2, 3, 8, 8))


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match=r"use split\(teacher"):
        FrozenTeacher(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"dtype: expected .* got torch.int8"):
        FrozenTeacher(network("resnet20")[0], torch.int8)


@pytest.mark.parametrize(
    ("specs", "output", "message"),
    [
        ([("nothing", [0, -1, 1], [], [], [])], 1, "unknown op 'nothing'"),
        ([("relu", [3, -1, 1], [], [], [])], 1, "not written yet"),
        ([("relu", [0, -1, 5], [], [], [])], 1, "expected register 1 next, got 5"),
        ([("relu", [0, -1, 1], [], [], [])], 2, "no register 2"),
    ],
)
def test_the_runner_refuses_broken_programs(specs, output, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        torch.classes.lit_fast.Program(specs, output)


def test_python_goes_on_while_the_runner_runs():
    model = lf.split(lf.models.resnet56().eval())
    images = torch.randn(16, 3, 32, 32)
    teacher = FrozenTeacher(model)
    teacher.run(images)

    def longest_pause() -> float:
        """The longest time in which this thread got no turn, as a share of the runner's."""
        teacher.prefetch(images)
        start = last = time.perf_counter()
        longest = 0.0
        future = teacher._ahead[0][1].__self__
        while not future.done():
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        return longest / (time.perf_counter() - start)

    assert min(longest_pause() for _ in range(5)) < 0.2  # one section's program takes a third of the time
