"""All studies at a glance: what has been run, and what has not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lit_fast.cli import app
from lit_fast.errors import ReportError
from lit_fast.paper import studies
from lit_fast.paper.budgets import BUDGETS
from lit_fast.paper.overview import overview


def ran(accuracy: float, variant: str = "lit", arm: str = "LIT", **changes: Any) -> dict[str, Any]:
    return {
        "group": "ResNet-110 to 20",
        "arm": arm,
        "at": None,
        "paper": 93.25,
        "paper_deviation": None,
        "network": "resnet20",
        "variant": variant,
        "seed": 0,
        "status": "done",
        "parameters": 270_000,
        "accuracy": {"test_last": accuracy, "test_best": accuracy},
        "teacher": {"network": "resnet56", "accuracy": {"test_last": 93.39}},
        **changes,
    }


def results(folder: Path, budget: str, *runs: dict[str, Any]) -> None:
    content = {
        "study": "ablation",
        "title": "Ablation of LIT",
        "source": "paper, table 3",
        "axis": None,
        "budget": {"name": budget, **BUDGETS[budget].model_dump(mode="json")},
        "dataset": ["cifar10"],
        "environment": {"device": "a device", "torch": "2.x"},
        "runs": list(runs),
    }
    (folder / f"ablation-{budget}.json").write_text(json.dumps(content))


def test_without_results_every_study_is_there_and_nothing_was_run(tmp_path: Path) -> None:
    found = overview(tmp_path)
    assert list(found) == list(studies.names())
    assert all("not run" in text and "budget" not in text for text in found.values())
    assert "ResNet-110 to 20: not run (15 runs)" in found["beta"]  # the paper gives a figure, no numbers
    (row,) = [
        line.split() for line in found["precision"].splitlines() if line.startswith("fp32") and "resnet20" in line
    ]
    assert row == ["fp32", "resnet20", "lit", "93.20±0.04", "not", "run", "-", "0", "of", "3", "-"]
    assert "3.56" in found["stargan"]


def test_budgets_stand_below_each_other_and_what_is_left_at_the_end(tmp_path: Path) -> None:
    results(tmp_path, "cpu", ran(64.5), ran(60.0, "kd", "KD", status="not run"))
    results(tmp_path, "paper", ran(93.0))
    text = overview(tmp_path)["ablation"]
    cpu, paper, left = text.split("\n\n")
    assert cpu.startswith(f"budget cpu: {BUDGETS['cpu'].about}\ndevice a device, torch 2.x\n")
    assert "ResNet-110 to 20: teacher resnet56, 93.39 %" in cpu
    (lit,) = [line.split() for line in cpu.splitlines() if line.startswith("LIT ")]
    assert lit == ["LIT", "resnet20", "lit", "93.25", "64.50", "64.50", "1", "-28.75"]
    assert "not run" in next(line for line in cpu.splitlines() if line.startswith("KD "))
    assert paper.startswith("budget paper: ")
    assert left.startswith("ResNeXt-110 to 20\n")


def test_a_file_that_is_no_study_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "ablation-cpu.json").write_text("{}")
    with pytest.raises(ReportError, match=r"ablation-cpu\.json is not the results file of a study"):
        overview(tmp_path)


def test_the_command_prints_it(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["reproduce", "--overview", "--run-dir", str(tmp_path)])
    assert done.exit_code == 0
    assert done.output.rstrip("\n").split("\n\n\n") == [f"{name}\n{text}" for name, text in overview(tmp_path).items()]
    refused = CliRunner().invoke(app, ["reproduce", "ablation", "--overview"])
    assert refused.exit_code == 2
    assert "--overview shows all studies: leave out ablation" in refused.output
