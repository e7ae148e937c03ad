"""``--json``: every command prints what it found as one document, alone on standard output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import refused

import lit_fast
from lit_fast import models
from lit_fast.cli import main
from lit_fast.paper.report import StudyReport
from lit_fast.paper.search import plot as search_plot
from lit_fast.paper.search import run as search_run
from lit_fast.report import plots
from lit_fast.runs.weights import WeightInfo, save_weights

TINY = (
    *("--epochs", "1", "--set", "batch_size=32", "--set", "data.train_size=64", "--set", "data.image_size=8"),
    *("--set", "logging.tensorboard=false", "--set", "logging.sections_every=0"),
    *("--set", "teacher.model=resnet20", "--quiet"),
)
PAIR = ("--teacher", "resnet20", "--student", "resnet20", "--image-size", "8")


@pytest.fixture
def printed(capfd: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> Any:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main([*map(str, arguments), "--json"])
        out, err = capfd.readouterr()
        assert end.value.code == 0, err
        return json.loads(out, parse_constant=pytest.fail)

    return run


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    model = models.create("resnet20", num_classes=10, in_channels=1)
    save_weights(path, model.state_dict(), WeightInfo("resnet20", 10, 1, 8, "digits", (0.25,), (0.5,)))
    return path


def without_figures(*_: object) -> None:
    raise ImportError("drawing takes longer than all the rest")


def test_distill_train_and_report(printed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "draw", without_figures)
    found = printed("distill", *TINY, "--student", "resnet20", "--variant", "lit", "--run-dir", tmp_path / "both")
    assert [(result["role"], result["variant"]) for result in found["results"]] == [
        ("teacher", "scratch"),
        ("student", "lit"),
    ]
    assert Path(found["report"]).is_file()
    assert "history" not in found["results"][0]
    assert printed("report", tmp_path / "both") == found
    alone = printed("train", *TINY, "--run-dir", tmp_path / "one")
    assert [result["name"] for result in alone["results"]] == ["teacher-resnet20"]


def test_evaluate_inspect_and_export(printed: Any, weights: Path, tmp_path: Path) -> None:
    measured = printed("evaluate", "--checkpoint", weights)
    assert (measured["network"], measured["dataset"], measured["images"]) == ("resnet20", "digits", 360)
    assert measured["accuracy"] == pytest.approx(100 * measured["right"] / 360)
    looked = printed("inspect", *PAIR)
    assert looked["student"]["parameters"] == 269_722
    assert [row["part"] for row in looked["rows"]] == ["stem", "section1", "section2", "section3", "head"]
    out = tmp_path / "again.safetensors"
    exported = printed("export", "--checkpoint", weights, "--to", "safetensors", "--out", out)
    assert (exported["path"], exported["size"]) == (str(out), out.stat().st_size)


def test_bench(printed: Any) -> None:
    found = printed("bench", *PAIR, "--batch-size", 2, "--seconds", 0, "--no-compile", "--quiet")
    assert {row["variant"] for row in found["rows"]} == {"plain", "eager", "runner"}


def test_search(printed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = {"tau": 4.0, "alpha": 0.9, "beta": 0.5}
    found = search_run.Found(best, 91.5, tmp_path / "sequential.json")
    monkeypatch.setattr(search_run, "sequential", lambda *_, **__: found)
    monkeypatch.setattr(search_plot, "draw", without_figures)
    assert printed("search", *TINY) == {
        "best": best,
        "val_accuracy": 91.5,
        "results_file": str(found.path),
        "figure": None,
    }


def test_reproduce(printed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "size-smoke.json").write_text('{"runs": []}')
    monkeypatch.setattr("lit_fast.paper.run.run_study", lambda *_, **__: tmp_path / "size-smoke.json")
    written = StudyReport("table", tmp_path / "size.md", None, None)
    monkeypatch.setattr("lit_fast.paper.report.write_report", lambda _: written)
    found = printed("reproduce", "size", "--quiet")
    assert (found["report"], found["runs"]) == (str(tmp_path / "size.md"), [])


def test_reproduce_lists_studies(printed: Any) -> None:
    assert "ablation" in printed("reproduce")


def test_recipes_and_build_info(printed: Any) -> None:
    assert printed("build-info")["torch"] == torch.__version__
    assert printed("recipes")["digits"]
    assert printed("recipes", "--show", "digits")["loss"] == lit_fast.recipes.load("digits")["loss"]


def test_an_error_leaves_standard_output_empty(capfd: pytest.CaptureFixture[str]) -> None:
    assert "unknown recipe" in refused("distill", "--recipe", "vgg", "--json")
    assert not capfd.readouterr().out
