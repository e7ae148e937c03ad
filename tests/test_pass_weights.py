"""Casts of weights, sums of gradients and counts of batches by few launches: how many there are, and the numbers."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from recorded_graphs import RecordedGraphs
from tiny_networks import CLASSES, Net, split
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lit_fast as lf
from lit_fast.models import resnet
from lit_fast.step import capture

# Operations of ATen that start no kernel, and those that start two: zeros first, then a copy into them.
NO_LAUNCH = {
    "view",
    "_unsafe_view",
    "detach",
    "slice",
    "as_strided",
    "expand",
    "permute",
    "transpose",
    "t",
    "unsqueeze",
}
NO_LAUNCH |= {"select", "unbind", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "alias"}
NO_LAUNCH |= {
    "narrow",
    "squeeze",
    "as_strided_",
    "split",
    "split_with_sizes",
    "_record_function_enter_new",
    "_record_function_exit",
}
TWO_LAUNCHES = {"constant_pad_nd", "slice_backward"}


class Launches(TorchDispatchMode):
    """How many launches each operation makes, or would on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[-1]
        if name not in NO_LAUNCH:
            self.count[name] += 2 if name in TWO_LAUNCHES else 1
        return func(*args, **(kwargs or {}))


def step_of(student: nn.Module, shared: bool, precision: str = "bf16", **options: Any) -> lf.LITStep:
    torch.manual_seed(0)
    teacher, student = split(copy.deepcopy(student)), split(copy.deepcopy(student)).train()
    student.to(memory_format=torch.channels_last)  # as in runs: else convolutions convert their weights
    optimizer = torch.optim.SGD(student.parameters(), lr=0.125, momentum=0.5, fused=True)
    step = lf.LITStep(teacher, student, lf.LITLoss(beta=0.5), optimizer, precision=precision, **options)
    step.passes.weights.on = shared
    return step


def batches(size: int = 8, count: int = 4) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.randn(4, 3, size, size, generator=generator), torch.randint(0, CLASSES, (4,), generator=generator)


def trained(step: lf.LITStep) -> dict[str, Tensor]:
    """The student's state after some batches, and the losses."""
    losses = {f"loss {i}": step(*batch).total.clone() for i, batch in enumerate(batches())}
    return {**step.student.model.state_dict(), **losses}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def launches(step: lf.LITStep, size: int = 16) -> Counter[str]:
    """Of one step beside those of the teacher, whose forward is left out, and the copy of the images."""
    first, *others = batches(size, 3)
    step(*first)
    assert step.teacher is not None
    with torch.no_grad(), step.passes.autocast():
        known = step.teacher.run(first[0])
    step.model._run_teacher = lambda *_: known
    step(*others[0])
    with Launches() as counted:
        step(*others[1])
    return counted.count


# --- how many


@pytest.mark.parametrize(("precision", "most"), [("bf16", 238), ("fp32", 235)])
def test_a_step_starts_no_more_than_it_must(precision: str, most: int) -> None:
    torch.manual_seed(0)
    counts = launches(step_of(lf.models.resnet20(), True, precision))
    norms, shortcuts = counts["native_batch_norm"], 15
    assert norms == 31  # 19 of the composed pass, 12 of the teacher-fed ones
    assert counts["convolution"] == counts["native_batch_norm_backward"] == counts["relu_"] == norms
    assert counts["add_"] == shortcuts
    assert (counts["_foreach_copy_"], counts["_to_copy"]) == ((2, 1) if precision == "bf16" else (0, 0))  # the images'
    assert counts["_foreach_add"] == counts["_foreach_add_"] == counts["lit_loss"] == 1
    unwanted = "constant_pad_nd", "slice_backward", "ones_like", "rescale_", "mul", "isfinite"
    assert not any(counts[name] for name in unwanted)
    assert counts.total() <= most, counts


def test_without_it_every_parameter_has_launches_of_its_own() -> None:
    torch.manual_seed(0)
    counts = launches(step_of(lf.models.resnet20(), False))
    assert counts["_to_copy"] == 67
    assert counts["add"] == 14 + 36
    assert counts["add_"] == 15 + 19


# --- the numbers


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("bn_policy", ["composed", "both", "teacher_fed"])
def test_same_bits(precision: str, bn_policy: str) -> None:
    torch.manual_seed(0)
    net = Net()
    assert_same(*(trained(step_of(net, shared, precision, bn_policy=bn_policy)) for shared in (True, False)))


@pytest.mark.parametrize("options", [{"accumulate": 2}, {"ir_sections": [2]}, {"student_input": "composed"}])
def test_same_bits_with(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = Net()
    assert_same(*(trained(step_of(net, shared, **options)) for shared in (True, False)))


def test_same_bits_in_an_autocast_of_the_callers() -> None:
    torch.manual_seed(0)
    net = Net()
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(*(trained(step_of(net, shared, "fp32")) for shared in (True, False)))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_same_bits_captured(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = RecordedGraphs()
    monkeypatch.setattr(capture, "graphs_for", lambda _: graphs)
    torch.manual_seed(0)
    net = Net()
    captured, eager = (trained(step_of(net, True, precision, capture=on)) for on in (True, False))
    assert graphs.replays == 4
    assert_same(captured, eager)


def test_parameters_are_the_students_own_afterwards() -> None:
    step = step_of(Net(), True)
    before = dict(step.student.model.named_parameters())
    for batch in batches():
        step(*batch)
    after = dict(step.student.model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert all(parameter.grad is not None for parameter in after.values())


# --- what is left alone


class Wide(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


class PartlyWide(nn.Module):
    """A block whose convolution runs outside of autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.conv(x.float())


def changed(change: Callable[[Net], None]) -> Net:
    torch.manual_seed(0)
    net = Net()
    change(net)
    return net


def with_wide_part(net: Net) -> None:
    net.layer2.insert(0, PartlyWide())


def with_own_class(net: Net) -> None:
    net.layer2[0] = Wide(8, 8, 3, padding=1, stride=2, bias=False)


def with_a_shared_weight(net: Net) -> None:
    net.layer3[0].weight = net.layer2[0].weight


def with_a_cumulative_average(net: Net) -> None:
    net.layer2[1].momentum = None


def with_a_hook(net: Net) -> None:
    net.layer2[0].register_forward_hook(_doubled)


def with_a_frozen_weight(net: Net) -> None:
    net.layer2[0].weight.requires_grad_(False)


def with_a_module_used_twice(net: Net) -> None:
    net.layer2.append(net.layer2[1])


def _doubled(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    assert isinstance(module.weight, nn.Parameter)
    return 2 * output


CHANGES = [
    with_wide_part,
    with_own_class,
    with_a_shared_weight,
    with_a_cumulative_average,
    with_a_hook,
    with_a_frozen_weight,
    with_a_module_used_twice,
]


@pytest.mark.parametrize("change", CHANGES)
def test_same_bits_of_a_network(change: Callable[[Net], None]) -> None:
    net = changed(change)
    assert_same(*(trained(step_of(net, shared, engine="eager")) for shared in (True, False)))


def test_compiled_modules_hold_their_own_parameters() -> None:
    step = step_of(Net(), True)
    seen: list[type] = []
    section = step.student.sections[1]
    run = section.forward
    section.forward = lambda x: (seen.append(type(step.student.model.layer2[0].weight)), run(x))[1]  # type: ignore
    for batch in batches():
        step(*batch)
    assert set(seen) == {nn.Parameter}


# --- option A


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_shortcut_without_padding_is_the_padded_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    shortcut = resnet.OptionA(4, 8)
    x = torch.randn(2, 4, 6, 6, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    out, grad = torch.randn(2, 8, 3, 3, dtype=dtype), torch.randn(2, 8, 3, 3, dtype=dtype)
    left = shortcut.added_to(out.clone(), x)
    right = out + shortcut(x)
    assert torch.equal(left, right)
    assert torch.equal(*(torch.autograd.grad(total, x, grad)[0] for total in (left, right)))


def test_the_shortcut_without_padding_is_differentiable_twice() -> None:
    torch.manual_seed(0)
    shortcut = resnet.OptionA(2, 4)
    inputs = (torch.randn(1, 4, 2, 2).double().requires_grad_(), torch.randn(1, 2, 4, 4).double().requires_grad_())
    assert torch.autograd.gradgradcheck(lambda out, x: shortcut.added_to(out.clone(), x) ** 3, inputs)


def test_transforms_of_a_block_in_training_see_the_padding() -> None:
    torch.manual_seed(0)
    block, x = resnet.BasicBlock(4, 8, 2).train(), torch.randn(3, 4, 6, 6)
    block.bn1.track_running_stats = block.bn2.track_running_stats = False  # which no transform may write
    (right,) = torch.autograd.grad(block(x.requires_grad_()).sum(), x)
    torch.testing.assert_close(torch.func.grad(lambda x: block(x).sum())(x.detach()), right)
