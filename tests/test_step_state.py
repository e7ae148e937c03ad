"""Momentum of fused SGD that torch leaves uninitialised or mixes up, and snapshots that are put back in place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils import deterministic

import lit_fast as lf
from lit_fast.step.state import LearningRates, OptimizerTensors, Snapshot, prepare_momentum


@pytest.fixture
def uninitialised_is_nan(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory that nobody has written to holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    monkeypatch.setattr(deterministic, "fill_uninitialized_memory", True)
    yield
    torch.use_deterministic_algorithms(False)


def fused_sgd(parameters: list[nn.Parameter], **options: float) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.125, momentum=0.5, fused=True, **options)


def overflowing_then_finite(p: nn.Parameter, optimizer: torch.optim.SGD) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor in (float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale((p * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.usefixtures("uninitialised_is_nan")
def test_fused_sgd_of_torch_leaves_momentum_uninitialised() -> None:
    """The bug that is worked around: when torch mends it, so can we."""
    p = nn.Parameter(torch.ones(3))
    overflowing_then_finite(p, fused_sgd([p]))
    assert p.isnan().all()


@pytest.mark.usefixtures("uninitialised_is_nan")
def test_a_first_step_that_overflows_leaves_the_momentum_zero() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = fused_sgd([p])
    prepare_momentum(optimizer)
    overflowing_then_finite(p, optimizer)
    assert p.tolist() == [0.875] * 3
    assert optimizer.state[p]["momentum_buffer"].tolist() == [1.0] * 3


@pytest.mark.usefixtures("uninitialised_is_nan")
def test_an_eager_step_that_overflows_first_goes_on_finite() -> None:
    teacher, student = lf.split(lf.models.resnet20()), lf.split(lf.models.resnet20()).train()
    optimizer = fused_sgd(list(student.parameters()))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60, backoff_factor=2.0**-50)
    step = lf.LITStep(teacher, student, lf.LITLoss(), optimizer, precision="fp16", scaler=scaler)
    for _ in range(3):
        step(torch.randn(4, 3, 8, 8), torch.randint(0, 10, (4,)))
    assert scaler.get_scale() == 2.0**10  # the first step overflowed, the others did not
    assert all(p.isfinite().all() for p in student.parameters())
    assert all(s["momentum_buffer"].isfinite().all() for s in optimizer.state.values())
    assert not step.nonfinite


def test_momentum_in_another_layout_is_laid_out_anew() -> None:
    values = torch.arange(24.0).reshape(2, 3, 2, 2)
    p = nn.Parameter(torch.zeros(2, 3, 2, 2).contiguous(memory_format=torch.channels_last))
    optimizer = fused_sgd([p])
    optimizer.state[p]["momentum_buffer"] = values.clone()
    prepare_momentum(optimizer)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(p.detach(), -0.125 * 0.5 * values)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
        lambda p: torch.optim.Adam(p),
    ],
    ids=["unfused", "no momentum", "adam"],
)
def test_other_optimizers_are_left_alone(optimizer: object) -> None:
    built = optimizer([nn.Parameter(torch.ones(2))])
    prepare_momentum(built)
    assert not any("momentum_buffer" in state for state in built.state.values())


def test_a_snapshot_is_put_back_in_place() -> None:
    p, flag = nn.Parameter(torch.ones(2)), torch.zeros((), dtype=torch.bool)
    optimizer = torch.optim.Adam([p], fused=True)
    torch.manual_seed(3)
    before = Snapshot([p, flag], optimizer, torch.device("cpu"))
    drawn, address = torch.rand(2), p.data_ptr()
    p.grad = torch.ones(2)
    optimizer.step()  # makes its state
    flag.fill_(True)
    made = dict(optimizer.state[p])
    before.restore()
    assert p.tolist() == [1.0, 1.0]
    assert p.data_ptr() == address
    assert not flag
    assert torch.equal(torch.rand(2), drawn)
    assert all(optimizer.state[p][name] is tensor and not tensor.any() for name, tensor in made.items())


def test_a_snapshot_keeps_the_state_that_there_was() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = fused_sgd([p])
    p.grad = torch.ones(2)
    optimizer.step()
    before = Snapshot([p], optimizer, torch.device("cpu"))
    optimizer.step()
    assert optimizer.state[p]["momentum_buffer"].tolist() == [1.5, 1.5]
    before.restore()
    assert optimizer.state[p]["momentum_buffer"].tolist() == [1.0, 1.0]


def test_assigned_state_is_copied_into_the_kept_tensors() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = fused_sgd([p])
    prepare_momentum(optimizer)
    mine = optimizer.state[p]["momentum_buffer"]
    kept = OptimizerTensors(optimizer)
    optimizer.state[p]["momentum_buffer"] = torch.full((2,), 7.0)
    kept.keep(optimizer)
    assert optimizer.state[p]["momentum_buffer"] is mine
    assert mine.tolist() == [7.0, 7.0]
    del optimizer.state[p]
    kept.keep(optimizer)
    assert optimizer.state[p]["momentum_buffer"] is mine
    assert mine.tolist() == [0.0, 0.0]


def test_learning_rates_are_tensors_only_inside() -> None:
    first, second = (nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.5}, {"params": [second], "lr": torch.tensor(0.25)}])
    rates = LearningRates(2, torch.device("cpu"))
    rates.write(optimizer)
    with rates.used_by(optimizer):
        inside: list[Tensor] = [group["lr"] for group in optimizer.param_groups]
        assert [float(lr) for lr in inside] == [0.5, 0.25]
    assert optimizer.param_groups[0]["lr"] == 0.5
    optimizer.param_groups[0]["lr"] = 0.125
    optimizer.param_groups[1]["lr"].fill_(2.0)
    rates.write(optimizer)
    assert [float(lr) for lr in inside] == [0.125, 2.0]
