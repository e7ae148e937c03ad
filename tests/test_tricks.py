"""The suite "tricks": its variants train what the step trains, down to gradients and running statistics."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from everyday import exhaustive

sys.path.append(str(Path(__file__).resolve().parents[1]))  # benchmarks is no part of the installed package

import lit_fast as lf
from benchmarks import tables, tricks
from lit_fast.bench.ways import Problem


def problem(precision: str = "fp32", dtype: torch.dtype = torch.float32) -> Problem:
    torch.manual_seed(0)
    teacher, student = (lf.split(lf.models.ResNet(depth).to(dtype)) for depth in (14, 8))
    images, labels = torch.randn(6, 3, 8, 8, dtype=dtype), torch.arange(6)
    return Problem(teacher, student, images, labels, precision)


def test_joined_passes_have_the_gradients_and_the_statistics_of_the_step() -> None:
    exact = problem(dtype=torch.float64)
    steps = [tricks.built(exact, passes) for passes in (None, tricks.JoinedPasses)]
    for _ in range(3):
        for step in steps:
            step(exact.inputs, exact.labels)
    ours, joined = (dict(step.student.model.state_dict()) for step in steps)
    assert "layer2.0.bn1.running_var" in ours
    for name, value in ours.items():
        torch.testing.assert_close(joined[name], value, rtol=1e-10, atol=1e-12)


def test_modules_are_as_they_were_after_a_joined_pass() -> None:
    step = tricks.built(problem(), tricks.JoinedPasses)
    step(problem().inputs, problem().labels)
    assert not any("forward" in vars(module) for module in step.student.modules())


@exhaustive
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_trick_trains_the_same(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_fast.bench import pairing, step

    monkeypatch.setattr(pairing, "FEWEST", 1)  # what is measured is of no interest
    one = problem(precision)
    found = step.measured(one, tricks.tricks(one, compiled=False), against=tricks.LADDER, seconds=0.0)
    assert {row["status"] for row in found} == {"measured"}, found
    names = {row["variant"] for row in found}
    assert {"plain", "channels-last", "lowered", "runner", "prefetch", "teacher-batch", "joined", "fused-sgd"} <= names
    assert ("autocast-cache" in names) == (precision == "bf16")


def test_the_table_holds_each_rung_against_the_one_before() -> None:
    def row(variant: str, milliseconds: float, **times: float) -> dict[str, object]:
        ratios = {f"times_{name}": value for name, value in times.items()}
        return {"setting": "a pair", "variant": variant, "median_us": milliseconds * 1e3, **ratios}

    rows = [
        row("plain", 8),
        row("joined", 5, runner=0.8),
        row("eager", 4, plain=2.0, runner=0.5),
        row("runner", 2, eager=2.5),
    ]
    lines = [line.split(" | ") for line in tables.tricks_table(rows).splitlines()[2:]]
    assert [line[1:5] for line in lines] == [
        ["plain", "8", "-", "-"],
        ["eager", "4", "2", "0.5"],
        ["runner", "2", "2.5", "-"],
        ["joined", "5", "-", "0.8"],
    ]
