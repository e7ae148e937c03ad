"""What "auto" makes of side_by_side and fused_norm: on where committed figures say so, on stand-ins of GPUs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import lit_fast as lf
from lit_fast.pair import measured
from lit_fast.settings.classifier import StepConfig
from lit_fast.triton import support

FIGURES = Path(__file__).parents[1] / "benchmarks" / "results" / "nvidia-h200.json"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU as it was measured; tests change what it says of itself."""
    found = SimpleNamespace(capability=measured.CAPABILITY, triton=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: found.capability)
    monkeypatch.setattr(support, "available", lambda *_: (found.triton, "as the test says"))
    return found


def on_gpu(student: lf.SplitModel) -> lf.SplitModel:
    """One that says it is there."""
    student.parameters = lambda: iter([SimpleNamespace(device=torch.device("cuda", 0))])  # type: ignore[method-assign]
    return student


def resnet() -> lf.SplitModel:
    return on_gpu(lf.split(lf.models.resnet20()))


def pays(student: lf.SplitModel, precision: str = "bf16", capture: bool = True, **options: Any) -> tuple[bool, bool]:
    """Whether each is on where nothing but these options is asked for."""
    found = measured.switches(options, student, precision, capture)
    return found["side_by_side"], found["fused_norm"]


def test_on_where_it_was_measured(gpu: SimpleNamespace) -> None:
    assert pays(resnet()) == (True, True)


def test_off_elsewhere(gpu: SimpleNamespace) -> None:
    assert pays(lf.split(lf.models.resnet20())) == (False, False)  # on the CPU
    assert pays(resnet(), "fp32") == pays(resnet(), "fp16") == (False, False)
    assert pays(resnet(), capture=False) == (False, False)
    for gpu.capability in [(8, 0), (8, 9), (10, 0)]:
        assert pays(resnet()) == (False, False)


def test_off_where_channels_are_more_or_none_are_normalised(gpu: SimpleNamespace) -> None:
    wide = nn.Sequential(nn.Conv2d(3, 65, 1), nn.Sequential(nn.BatchNorm2d(65), nn.ReLU()), nn.Flatten())
    assert pays(on_gpu(lf.split(wide, at=["1"]))) == (False, False)
    plain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Flatten())
    assert pays(on_gpu(lf.split(plain, at=["1"]))) == (False, False)


def test_never_where_true_is_refused(gpu: SimpleNamespace) -> None:
    assert pays(resnet(), bn_policy="both") == (False, True)
    recorded = on_gpu(lf.split(lf.models.resnet20(), how="recorded"))
    assert pays(recorded) == (False, False)
    gpu.triton = False
    assert pays(resnet()) == (True, False)


@pytest.mark.parametrize("batch", [32, 128, 1024])
def test_the_committed_figures_say_that_each_is_faster(batch: int) -> None:
    found = json.loads(FIGURES.read_text(encoding="utf-8"))
    assert tuple(map(int, str(found["capability"]).strip("[]").replace(".", ",").split(","))) == measured.CAPABILITY
    name = f"captured step, batch {batch}, {measured.PRECISION}"
    ms = {entry["name"]: entry["ms"] for entry in found["probe"] if entry["name"].startswith(name)}
    neither = ms[name]
    both = ms[f"{name}, side by side, fused norm"]
    assert both < min(ms[f"{name}, side by side"], ms[f"{name}, fused norm"]) < neither
    assert max(ms[f"{name}, side by side"], ms[f"{name}, fused norm"]) < 0.97 * neither


def step(**options: Any) -> lf.LITStep:
    teacher, student = lf.split(lf.models.resnet20()), lf.split(lf.models.resnet20()).train()
    return lf.LITStep(teacher, student, lf.LITLoss(), torch.optim.SGD(student.parameters(), lr=0.1), **options)


def test_what_is_asked_for_is_not_decided_here(gpu: SimpleNamespace) -> None:
    gpu.triton = False
    assert pays(resnet(), side_by_side=False, fused_norm=True) == (False, True)
    gpu.capability = (8, 0)
    assert pays(resnet(), "fp32", capture=False, side_by_side=True, fused_norm=False, bn_policy="both") == (True, False)


def test_a_step_is_built_with_what_was_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    taken = {"side_by_side": False, "fused_norm": True}
    monkeypatch.setattr(measured, "switches", lambda options, *others: asked.append(others[1:]) or taken)
    with pytest.raises(lf.UnavailableError, match="fused_norm is not available"):
        step(precision="bf16", capture=True)
    assert asked == [("bf16", True)]


def test_on_a_cpu_nothing_is() -> None:
    one = step()
    assert one.passes.streams is None
    assert one.passes.fused_norm is None


def test_the_settings_take_auto_and_refuse_other_words() -> None:
    assert (StepConfig().side_by_side, StepConfig().fused_norm) == ("auto", "auto")
    assert StepConfig(side_by_side=True).side_by_side is True
    assert StepConfig(bn_policy="both").side_by_side == "auto"
    with pytest.raises(ValueError, match="bn_policy 'both' lets both passes write the same running statistics"):
        StepConfig(side_by_side=True, bn_policy="both")
    with pytest.raises(ValueError, match="fused_norm"):
        StepConfig(fused_norm="perhaps")
