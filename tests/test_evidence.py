"""The scripts beside the results pages: tables and figures of many runs, and what a step of each variant takes."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
PAGES = sorted(path.parent for path in RESULTS.glob("*/runs"))


@pytest.fixture(scope="module")
def evidence() -> dict[str, Any]:
    pytest.importorskip("matplotlib")
    return runpy.run_path(str(RESULTS / "evidence.py"))


@pytest.mark.parametrize("folder", PAGES, ids=lambda folder: folder.name)
def test_a_page_shows_the_table_of_its_runs(folder: Path, evidence: dict[str, Any]) -> None:
    """After new results: python docs/results/evidence.py FOLDER, and paste."""
    assert evidence["table"](folder) in (folder / "README.md").read_text(encoding="utf-8")


def result(variant: str, seed: int, score: float, role: str = "student") -> dict[str, Any]:
    accuracy = {"test_last": score, "val_best": score + 1}
    return {"role": role, "variant": variant, "seed": seed, "epochs": 3, "accuracy": accuracy}


def test_the_table_and_the_figure_are_of_all_seeds(tmp_path: Path, evidence: dict[str, Any]) -> None:
    (tmp_path / "runs").mkdir()
    for name, runs in {
        "random-steps-seed0": [result("checkpoint", 0, 90, "teacher"), result("lit", 0, 80.0), result("kd", 0, 70.0)],
        "random-steps-seed1": [result("lit", 1, 82.0)],
        "copied-time-seed0": [result("scratch", 0, 60.0)],
    }.items():
        (tmp_path / "runs" / f"{name}.json").write_text(json.dumps({"results": runs}))
    assert evidence["table"](tmp_path).splitlines()[2:] == [
        "| random blocks | KD | 3 | 70.00 | 70.00 | 71.00 |",
        "| random blocks | LIT | 3 | 80.00, 82.00 | 81.00 | 82.00 |",
        "| blocks of the teacher | labels alone, LIT's time | 3 | 60.00 | 60.00 | 61.00 |",
    ]
    evidence["draw"](tmp_path)
    assert (tmp_path / "students.png").stat().st_size > 5_000


def test_steps_of_all_variants_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "{recipe: digits, data: {name: 'toy_tasks:texts'}, teacher: {model: 'toy_tasks:bert_teacher'}, "
        "student: {models: ['toy_tasks:bert_student']}, blocks: encoder.layer, sections: 2, batch_size: 8, "
        "variants: [scratch, kd, lit]}"
    )
    out = tmp_path / "timing.json"
    monkeypatch.setattr(sys, "argv", ["timing.py", str(config), "--seconds", "0.05", "--out", str(out)])
    runpy.run_path(str(RESULTS / "timing.py"), run_name="__main__")
    found = json.loads(out.read_text())
    assert {variant: set(row["step_ms"]) for variant, row in found.items()} == {
        "scratch": {"scratch"},
        "kd": {"kd"},
        "lit": {"lit", "finetune"},
    }
    assert found["scratch"]["times_scratch"] == 1
    lit = (8 * found["lit"]["step_ms"]["lit"] + 4 * found["lit"]["step_ms"]["finetune"]) / 12  # of the recipe's epochs
    assert found["kd"]["epochs_in_lits_time"] == pytest.approx(12 * lit / found["kd"]["step_ms"]["kd"], rel=0.02)
    assert found["lit"]["epochs_in_lits_time"] == 12
