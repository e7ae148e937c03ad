"""Where BatchNorm, addition and ReLU of networks that do not call `norm_act` become one call of it, and where not.

The kernels' results are tested in tests/triton_norm_interpreted.py, which tests/test_triton.py runs.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import hub_networks
import norm_networks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lit_fast as lf
from lit_fast.models import fused_norm
from lit_fast.models.norm_pattern import FusedForwards


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[nn.Module, bool]]:
    """The calls that the kernels could take: the norm, and whether there is a residual. None is taken."""
    found: list[tuple[nn.Module, bool]] = []
    monkeypatch.setattr(fused_norm, "_applies", lambda norm, x, other: bool(found.append((norm, other is not None))))
    return found


def trained(student: lf.SplitModel, x: Tensor, used: bool) -> tuple[list[Tensor], Tensor]:
    """The IRs and logits of one pass, with gradients."""
    if not used:
        irs, logits = student.run(x)
    else:
        with FusedForwards(student).used():
            irs, logits = student.run(x)
    (logits.sum() + sum(ir.square().mean() for ir in irs)).backward()
    return irs, logits


def assert_same(student: lf.SplitModel, x: Tensor) -> None:
    """Bit for bit, as long as PyTorch computes."""
    other = copy.deepcopy(student)
    torch.manual_seed(1)
    ours, logits = trained(student, x, used=True)
    torch.manual_seed(1)
    right, right_logits = trained(other, x, used=False)
    assert torch.equal(logits, right_logits)
    assert all(torch.equal(ir, same) for ir, same in zip(ours, right))
    for (name, parameter), same in zip(student.named_parameters(), other.parameters()):
        assert (parameter.grad is None) == (same.grad is None), name
        assert parameter.grad is None or torch.equal(parameter.grad, same.grad), name
    for (name, buffer), same in zip(student.named_buffers(), other.buffers()):
        assert torch.equal(buffer, same), name


def test_every_place_of_a_network_is_found_and_computes_the_same(asked: list[tuple[nn.Module, bool]]) -> None:
    student = norm_networks.split()
    assert_same(student, torch.randn(2, 3, 8, 8))
    names = {id(module): name for name, module in student.model.named_modules()}
    assert [(names[id(norm)], residual) for norm, residual in asked] == [
        ("norm", False),
        ("layer1.0.bn1", False),
        ("layer1.0.bn2", True),
        ("layer2.0.bn1", False),
        ("layer2.0.bn2", True),
        ("layer2.1", False),
        ("layer3.0.bn1", False),
        ("layer3.0.bn2", True),
    ]


def test_the_model_stays_as_it_is() -> None:
    student = norm_networks.split()
    before = [dict(vars(module)) for module in student.modules()]
    forwards = FusedForwards(student)
    with forwards.used():
        assert all("forward" in vars(module) for module in forwards.modules)
    with pytest.raises(KeyError), forwards.used():
        raise KeyError
    assert [dict(vars(module)) for module in student.modules()] == before
    pickle.dumps(student)


def test_in_eval_mode_the_own_forward_runs(asked: list[tuple[nn.Module, bool]]) -> None:
    student = norm_networks.split().eval()
    with FusedForwards(student).used():
        student.run(torch.randn(2, 3, 8, 8))
    assert not asked


def test_a_frozen_section_keeps_its_forward(asked: list[tuple[nn.Module, bool]]) -> None:
    student = norm_networks.split()
    student.freeze("section2")
    with FusedForwards(student).used():
        student.run(torch.randn(2, 3, 8, 8))
    assert len(asked) == norm_networks.FUSED - 3


@pytest.mark.parametrize("name", ["layer3.0", "layer3.0.bn2", "layer3.0.act2", "layer3.0.drop_block"])
def test_hooks_fire(name: str, asked: list[tuple[nn.Module, bool]]) -> None:
    student, seen = norm_networks.split(), []
    forwards = FusedForwards(student)
    student.model.get_submodule(name).register_forward_hook(lambda *_: seen.append(1))
    with forwards.used():
        student.run(torch.randn(2, 3, 8, 8))
    assert seen == [1]
    assert len(asked) == norm_networks.FUSED - (0 if name == "layer3.0" else 2)


def test_a_module_that_has_changed_since_runs_as_it_is(asked: list[tuple[nn.Module, bool]]) -> None:
    student = norm_networks.split()
    forwards = FusedForwards(student)
    student.model.layer2.append(nn.Dropout(1.0))
    with forwards.used():
        irs, _ = student.run(torch.randn(2, 3, 8, 8))
    assert not irs[1].any()
    student.model.layer3[0].act2 = nn.Sigmoid()
    with forwards.used():
        irs, _ = student.run(torch.randn(2, 3, 8, 8))
    assert (irs[2] == 0.5).all()  # of zeros; a ReLU would give zeros


class Pair(nn.Module):
    """What the blocks below have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.scale = 1.0


class ReadsItsMode(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(x)) if self.training else x


class ReadsAValue(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(x)) * self.scale


class UsesTheNormTwice(Pair):
    def forward(self, x: Tensor) -> Tensor:
        out = self.bn(self.conv(x))
        return self.relu(out + x) + out


class AddsToTheOther(Pair):
    def forward(self, x: Tensor) -> Tensor:
        total = self.conv(x)
        total += self.bn(self.conv(x))
        return self.relu(total)


class WritesInBetween(Pair):
    def forward(self, x: Tensor) -> Tensor:
        other = self.conv(x)
        out = self.bn(self.conv(x)) + other
        other.add_(1)
        return self.relu(out) + other


class TakesTheInputTwice(Pair):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.relu(self.bn(x) + x)


class AnotherAct(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(x))


OTHERS = [ReadsItsMode, ReadsAValue, UsesTheNormTwice, AddsToTheOther, WritesInBetween, TakesTheInputTwice, AnotherAct]


@pytest.mark.parametrize("block", OTHERS, ids=lambda block: block.__name__)
def test_forwards_that_do_something_else_are_left_alone(block: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), block(), nn.Flatten(), nn.Linear(64, 2))
    student = lf.split(model, at=["1"]).train()
    assert FusedForwards(student).modules == []
    assert_same(student, torch.randn(2, 3, 4, 4))


class Gate(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)) + x.mean((2, 3), keepdim=True))


class AddsANumber(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)) + 0.5)


class Doubles(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x.double().add(self.bn(self.conv(x)))).float()


@pytest.mark.parametrize("block", [Gate, AddsANumber, Doubles], ids=lambda block: block.__name__)
def test_residuals_of_other_shapes_and_types(block: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(block(), nn.BatchNorm2d(4), nn.ReLU()), nn.Flatten(1))
    assert_same(lf.split(model, at=["1"]).train(), torch.randn(2, 3, 4, 4))


@pytest.mark.parametrize(("library", "found"), [("torchvision", 17), ("timm", 17)])
def test_resnets_of_libraries(library: str, found: int, asked: list[tuple[nn.Module, bool]]) -> None:
    hub_networks.require_vision()
    if library == "timm":
        import timm

        model = timm.create_model("resnet18", num_classes=4)
    else:
        import torchvision

        model = torchvision.models.resnet18(num_classes=4)
    student = lf.split(model, at=["layer1", "layer2", "layer3", "layer4"]).train()
    assert_same(student, torch.randn(2, 3, 32, 32))
    assert len(asked) == found  # of 20: behind those of the three shortcuts there is no ReLU
    assert sum(residual for _, residual in asked) == 8
