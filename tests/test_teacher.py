"""The frozen teacher: every part gives what its module gives, lowered or not."""

from __future__ import annotations

import contextlib
import re
import time
import warnings
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from teacher_networks import IMAGES, NETWORKS, network
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lit_fast as lf
from lit_fast.errors import LoweringError, NotLowerable
from lit_fast.float32 import tf32
from lit_fast.loss.backends import native
from lit_fast.teacher import frozen as teacher_module
from lit_fast.teacher import lowering, programs
from lit_fast.teacher.frozen import FrozenTeacher
from lit_fast.teacher.instruction import FUSED, Instruction
from lit_fast.teacher.lowering import lower

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


@pytest.mark.parametrize("name", ["resnet8", "text"])
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
    model, images = network("resnet8")
    teacher = FrozenTeacher(model)
    teacher.run(images)
    convolutions = {plan.name: plan.instructions for plan in teacher.parts}
    # Two convolutions a section; sections 2 and 3 also slice twice and pad for the option A shortcut.
    assert convolutions == {"stem": 1, "section1": 2, "section2": 5, "section3": 5, "head": 3}


def test_inputs_and_irs_are_never_overwritten():
    model, images = network("resnet8")
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
    model, images = network("resnet8")
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
    model, _ = network("resnet8")
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
    model, _ = network("resnet8")
    teacher = FrozenTeacher(model)
    one, two, other = (torch.randn(IMAGES) for _ in range(3))
    right = [teacher.run(images)[1] for images in (one, two, other)]
    teacher.prefetch(one)
    first = teacher.run(one)[1]
    teacher.prefetch(two)
    torch.testing.assert_close(teacher.run(other)[1], right[2], rtol=0, atol=0)  # another batch than was announced
    torch.testing.assert_close(first, right[0], rtol=0, atol=0)


def test_several_batches_are_prefetched_in_one_forward_and_taken_in_turn():
    model, _ = network("resnet8")
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
    model, images = network("resnet8")
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
    model, _ = network("resnet8")
    teacher = FrozenTeacher(model)
    batches = [torch.randn(n, *IMAGES[1:]) for n in (2, 3, 1)]
    for (irs, logits), batch in zip(teacher.run_batches(batches), batches):
        right, right_logits = model.run(batch)
        for ours, expected in zip([*irs, logits], [*right, right_logits]):
            close(ours, expected, 1e-5)


def test_the_head_is_left_out_where_no_logits_are_wanted():
    model, images = network("resnet8")
    teacher = FrozenTeacher(model, logits=False)
    irs, logits = teacher.run(images)
    assert logits is None
    for ours, right in zip(irs, model.run(images)[0], strict=True):
        close(ours, right, 1e-5)
    assert [logits for _, logits in teacher.run_batches([images[:1], images[1:]])] == [None, None]


def test_a_wrong_lowering_is_found(monkeypatch):
    model, images = network("resnet8")
    fold = lowering.fold

    def wrong(step, scale, shift):
        fold(step, scale, shift + 0.1)

    monkeypatch.setattr(lowering, "fold", wrong)
    with pytest.raises(LoweringError, match="teacher, stem: lowered, it differs from the module by"):
        FrozenTeacher(model).run(images)


class Tf32(TorchDispatchMode):
    """Convolutions as a GPU computes them where TF32 is allowed: of operands with 10 bits of mantissa."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default and torch.backends.cudnn.conv.fp32_precision == "tf32":
            args = (*(self.rounded(tensor) for tensor in args[:2]), *args[2:])
        return function(*args, **(kwargs or {}))

    @staticmethod
    def rounded(tensor: Tensor) -> Tensor:
        bits = tensor.contiguous().view(torch.int32)
        return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


needs_names = pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch before 2.9")


@needs_names
@pytest.mark.parametrize("mended", [True, False])
def test_a_teacher_is_built_and_checked_without_tf32(monkeypatch, mended):
    model, images = network("resnet8")
    if not mended:
        monkeypatch.setattr(teacher_module, "full_float32", contextlib.nullcontext)
    expected = contextlib.nullcontext() if mended else pytest.raises(LoweringError, match="differs from the module")
    # Without oneDNN, whose packed weights the mode could not round.
    with torch.backends.mkldnn.flags(enabled=False), tf32(True), Tf32(), expected:
        teacher = FrozenTeacher(model)
        teacher.run(images)
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
        assert all(plan.lowered and plan.error < 1e-5 for plan in teacher.parts)


def broken(monkeypatch, wrong: Callable[[list[Instruction], torch.dtype, Tensor], Tensor]) -> None:
    """Programs whose results go through ``wrong``, which may raise."""
    program = programs._program

    def make(steps, output):
        run = program(steps, output)

        def run_wrong(x):
            out = run(x)
            return wrong(steps, out.dtype, out)

        return run_wrong

    monkeypatch.setattr(programs, "_program", make)


def unavailable(steps, dtype, out):
    raise RuntimeError("GET was unable to find an engine to execute this computation")


def fused(steps) -> bool:
    return any(step.op == "convolution" and step.numbers[FUSED] for step in steps)


FAILURES = [
    (unavailable, r"it fails \(RuntimeError: GET was unable to find an engine to execute this computation\)"),
    (lambda steps, dtype, out: out + 1, "it differs from the module by .* of the largest output in float32"),
    (lambda steps, dtype, out: out * torch.nan, "it differs from the module by nan"),
    (lambda steps, dtype, out: out[:1], "it gives .*, the module "),
]


@pytest.mark.parametrize(("wrong", "message"), FAILURES)
def test_a_part_that_fails_its_check_raises_or_runs_as_its_module(monkeypatch, wrong, message):
    model, images = network("resnet8")
    irs, logits = model.run(images)
    broken(monkeypatch, wrong)
    with pytest.raises(LoweringError, match=f"teacher, stem: lowered, {message}.* run it as it is"):
        FrozenTeacher(model).run(images)
    teacher = FrozenTeacher(model, strict=False)
    with pytest.warns(UserWarning, match=f"teacher, section2: lowered, {message}.*; it runs as its modules"):
        own_irs, own_logits = teacher.run(images)
    assert not any(plan.lowered for plan in teacher.parts)
    for ours, right in zip([*own_irs, own_logits], [*irs, logits], strict=True):
        close(ours, right, 1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("engine", ["auto", "runner"])
def test_a_first_batch_that_is_not_finite_gives_what_the_modules_give(engine, value):
    teacher, student = network("resnet8")[0], network("resnet8")[0]
    step = lf.LITStep(teacher, student, lf.LITLoss(), torch.optim.SGD(student.parameters(), lr=0.1), engine=engine)
    images = torch.randn(4, 3, 32, 32)
    images[:, 0, 0, 0] = value
    assert step(images, torch.arange(4)).total.isnan()
    assert step.nonfinite


def test_programs_are_checked_on_finite_numbers_where_the_first_batch_has_none(monkeypatch):
    model, images = network("resnet8")
    broken(monkeypatch, lambda steps, dtype, out: out + 1)
    with pytest.raises(LoweringError, match="stem: lowered, it differs from the module"):
        FrozenTeacher(model).run(images * torch.nan)


@pytest.mark.parametrize(("wrong", "message"), FAILURES)
def test_convolutions_that_fail_fused_run_unfused(monkeypatch, wrong, message):
    model, images = network("resnet8")
    broken(monkeypatch, lambda steps, dtype, out: wrong(steps, dtype, out) if fused(steps) else out)
    teacher = FrozenTeacher(model)
    close(teacher.run(images)[1], model.run(images)[1], 1e-5)
    assert all(plan.lowered for plan in teacher.parts)
    assert re.search(f"section1: 2 instructions: convolutions are not fused: fused, {message}", teacher.describe())


def test_what_a_fused_convolution_reads_of_dirty_memory_is_found(monkeypatch):
    """As an engine that multiplies what lies in its output with zero: right until that is NaN."""
    model, images = network("resnet8")
    dirty = []
    monkeypatch.setattr(programs, "_poison", lambda shapes, device, dtype: dirty.append(dtype))
    broken(monkeypatch, lambda steps, dtype, out: out * torch.nan if dirty and fused(steps) else out)
    teacher = FrozenTeacher(model, torch.bfloat16)
    assert teacher.run(images)[1].isfinite().all()
    assert {torch.float32, torch.bfloat16} == set(dirty)
    assert all(plan.lowered for plan in teacher.parts)
    assert "stem: 1 instructions: convolutions are not fused: fused, it differs" in teacher.describe()


@pytest.mark.parametrize("name", NETWORKS)
def test_unfused_convolutions_give_what_the_module_gives(monkeypatch, name):
    model, images = network(name)
    monkeypatch.setattr(programs, "lower", lambda part, x: _unfused(*lower(part, x)))
    teacher = FrozenTeacher(model)
    close(teacher.run(images)[1], model.run(images)[1], 1e-5)
    assert all(plan.lowered for plan in teacher.parts)


def _unfused(steps, output):
    return [step.unfused() for step in steps], output


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_program_is_checked_in_its_own_dtype(monkeypatch, dtype):
    model, images = network("resnet8")
    broken(monkeypatch, lambda steps, own, out: out * 2 if own == dtype else out)
    with pytest.raises(LoweringError, match=rf"differs from the module by 1 .* in {str(dtype)[6:]}"):
        FrozenTeacher(model, dtype).run(images)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_part_is_lowered_in_half_precision_too(name, dtype):
    model, images = network(name)
    teacher = FrozenTeacher(model, dtype)
    teacher.run(images)
    assert all(plan.lowered and not plan.reason for plan in teacher.parts), teacher.describe()


def test_running_out_of_memory_is_no_failed_check(monkeypatch):
    def out_of_memory(steps, dtype, out):
        raise torch.OutOfMemoryError

    model, images = network("resnet8")
    broken(monkeypatch, out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        FrozenTeacher(model, strict=False).run(images)


class Looks(nn.Module):
    """Sections that look at values, each in its own way."""

    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.how, self.fc = nn.Conv2d(3, 4, 3), Applies(how), how, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.first(x)).mean((2, 3)))


class Applies(nn.Module):
    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(x)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x + x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def prints(x: Tensor) -> Tensor:
    str(x)
    return F.relu(x)


def raises(x: Tensor) -> Tensor:
    """Only while it is traced."""
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None or _pre_dispatch():
        raise KeyError("odd")
    return F.relu(x)


def _pre_dispatch() -> bool:
    return torch._ops._get_dispatch_mode_pre_dispatch(torch._C._TorchDispatchModeKey.PROXY) is not None


LOOKS = {
    "if": lambda x: x + x if x.mean() > 0 else F.relu(x),
    "item": lambda x: F.leaky_relu(x, x.abs().max().item()),
    "shape": lambda x: F.relu(x) + x[x > 0].mean(),
    "numpy": lambda x: x + torch.from_numpy(x.detach().numpy().copy()),
    "numpy number": lambda x: F.leaky_relu(x, float(x.detach().numpy().max())),
    "tolist": lambda x: F.leaky_relu(x, x.flatten().tolist()[0]),
    "function": Doubled.apply,
    "print": prints,
    "raise": raises,
}


@pytest.mark.parametrize("how", LOOKS)
def test_a_part_that_looks_at_values_runs_as_its_module(how):
    torch.manual_seed(0)
    model = lf.split(Looks(LOOKS[how]).eval(), at=["first", "second"])
    teacher = FrozenTeacher(model, strict=False)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        teacher.run(torch.randn(IMAGES))
    harmless = ("function", "print")
    assert teacher.parts[2].lowered == (how in harmless), teacher.describe()
    for images in (torch.randn(IMAGES), -torch.rand(IMAGES)):
        close(teacher.run(images)[1], model.run(images)[1], 1e-5)


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


class Sum(nn.Module):
    """A convolution's result and what is added to it: shapes that broadcast, in either order."""

    def __init__(self, residual: Callable[[Tensor], Tensor], turned: bool, pooled: bool) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.residual, self.turned, self.pooled = residual, turned, pooled

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv(x.mean((2, 3), keepdim=True) if self.pooled else x)
        residual = self.gate(self.residual(x))
        return F.relu(residual + conv if self.turned else conv + residual)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(
    "residual",
    [lambda x: x, lambda x: x.mean((2, 3), keepdim=True), lambda x: x.mean(2, keepdim=True), lambda x: x[:1]],
)
def test_a_residual_is_fused_only_where_it_has_the_results_shape(residual, turned, pooled):
    torch.manual_seed(0)
    module = Sum(residual, turned, pooled).eval()
    model = lf.split(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), module, nn.Flatten(), nn.LazyLinear(2)), at=["1"])
    images = torch.randn(5, 3, 8, 8)
    model.model(images)
    teacher = FrozenTeacher(model)
    close(teacher.run(images)[1], model.run(images)[1], 1e-5)
    assert all(plan.lowered for plan in teacher.parts), teacher.describe()
    (steps, _) = lower(module, torch.randn(2, 4, 8, 8))
    adds = sum(step.op == "add" for step in steps)
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        conv, gate = (module.conv(x.mean((2, 3), keepdim=True) if pooled else x), module.gate(residual(x)))
    assert adds == int(conv.shape != gate.shape)


class Refuses(nn.Module):
    def __init__(self, look):
        super().__init__()
        self.look = look

    def forward(self, x):
        if self.look(x):
            raise ValueError("a value that it does not know")
        return x * 2


@pytest.mark.parametrize("look", [lambda x: x.min() == 0, lambda x: 0.0 in x.tolist(), lambda x: x.numpy().min() == 0])
def test_a_module_that_refuses_values_runs_as_it_is_on_those_it_knows(look):
    model = lf.split(nn.Sequential(nn.Conv2d(3, 4, 3), Refuses(look), nn.Flatten(), nn.Linear(144, 2)), at=["0", "2"])
    nn.init.ones_(model.model[0].weight)
    nn.init.ones_(model.model[0].bias)
    images = torch.rand(5, 3, 8, 8) + 1
    teacher = FrozenTeacher(model)
    close(teacher.run(images)[1], model.run(images)[1], 1e-5)
    assert [plan.name for plan in teacher.parts if not plan.lowered] == ["section2"]


def test_whatever_lowering_raises_is_a_reason_to_run_the_module(monkeypatch):
    def raises(*_):
        raise KeyError("an argument that nobody thought of")

    monkeypatch.setitem(lowering._EMITTERS, torch.ops.aten.tanh.default, raises)
    model = lf.split(nn.Sequential(nn.Conv2d(3, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(108, 2)), at=["0", "1"])
    images = torch.randn(5, 3, 8, 8)
    teacher = FrozenTeacher(model)
    close(teacher.run(images)[1], model.run(images)[1], 1e-5)
    assert "section2: as the module it is: its operations have no instructions (KeyError: " in teacher.describe()
    student = lf.split(deepcopy(model.model).requires_grad_(True), at=["0", "1"])
    assert "section2" in dict(lf.inspect(model, student, images).not_lowered)


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
        FrozenTeacher(network("resnet8")[0], torch.int8)


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
