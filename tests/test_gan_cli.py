"""Generators from the command line: distill, inspect, export, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import fake_celeba
import pytest
from everyday import exhaustive
from gan_helpers import TINY
from test_cli import lit_fast_command, refused

from lit_fast.runs.weights import read_info

LIT = "stargan2-lit-seed0"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run folder, and what the command printed."""
    folder = tmp_path_factory.mktemp("gan")
    fake_celeba.write(folder / "celeba")
    settings = [word for setting in TINY for word in ("--set", setting)]
    where = ["--data-dir", folder / "celeba", "--run-dir", folder / "run"]
    result = lit_fast_command("distill", "--recipe", "stargan-celeba", *where, *settings)
    assert result.exit_code == 0, result.output
    return folder / "run", result.stdout


def weights(run: tuple[Path, str]) -> Path:
    return run[0] / "runs" / LIT / "generator.safetensors"


def test_distill_prints_a_table_and_where_everything_lies(run):
    folder, printed = run
    rows = [line.split() for line in printed.splitlines()]
    assert [row[:2] for row in rows[2:5]] == [["stargan6", "teacher"], ["stargan2", "scratch"], ["stargan2", "lit"]]
    for name in ("report.md", "report.png", "samples.png"):
        assert (folder / name).is_file()
        assert str(folder / name) in printed
    assert str(weights(run)) in printed


@pytest.mark.usefixtures("drawn")
def test_report_writes_it_again_from_the_results(run):
    folder, printed = run
    (folder / "report.md").unlink()
    result = lit_fast_command("report", folder)
    assert result.exit_code == 0, result.output
    assert result.stdout == printed
    report = (folder / "report.md").read_text()
    for entry in json.loads((folder / "results.json").read_text())["results"]:
        assert f"| {entry['mmacs']:.1f} |" in report


@exhaustive
def test_inspect_shows_the_pair_at_full_size():
    result = lit_fast_command("inspect", "--teacher", "stargan6", "--student", "stargan2", "--image-size", "128")
    assert result.exit_code == 0, result.output
    assert "teacher stargan6, student stargan2, images 8 x 128 x 128, 5 domains" in result.stdout
    assert result.stdout.rstrip().endswith("compression 2.27x in parameters, 1.94x in MACs")


def test_inspect_takes_size_and_width_from_the_teachers_weights(run):
    teacher = run[0] / "runs" / "teacher-stargan6" / "generator.safetensors"
    pair = ["--teacher", "stargan6", "--student", "stargan2"]
    result = lit_fast_command("inspect", *pair, "--teacher-checkpoint", teacher)
    assert result.exit_code == 0, result.output
    assert "images 8 x 16 x 16, 5 domains" in result.stdout
    assert "8x4x4 -> 8x4x4" in result.stdout  # four times the width of 2


@pytest.mark.parametrize("form", ["safetensors", pytest.param("onnx", marks=exhaustive), "torch-export"])
def test_a_generator_is_exported(run, tmp_path, form):
    out = tmp_path / f"student.{form}"
    result = lit_fast_command("export", "--checkpoint", weights(run), "--to", form, "--out", out)
    assert result.exit_code == 0, result.output
    assert out.stat().st_size > 0
    if form == "safetensors":
        assert read_info(out) == read_info(weights(run))
    if form == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(out.read_bytes(), providers=["CPUExecutionProvider"])
        assert [value.name for value in session.get_outputs()] == ["generated"]
        assert session.get_inputs()[0].shape[1:] == [8, 16, 16]


def test_bench_measures_the_ir_step_of_a_pair(tmp_path):
    pair = ["--teacher", "stargan6", "--student", "stargan2", "--width", "2", "--image-size", "16", "--batch-size", "2"]
    result = lit_fast_command("bench", *pair, "--seconds", "0.1", "--no-compile")
    assert result.exit_code == 0, result.output
    assert "stargan6 to stargan2, batch 2 of 8 x 16 x 16, fp32" in result.stdout


def test_what_has_no_meaning_for_a_generator_is_refused(run, tmp_path):
    assert "is a generator's, which has no accuracy" in refused("evaluate", "--checkpoint", weights(run))
    pair = ["--teacher", "stargan6", "--student", "stargan2"]
    assert "a generator has no accuracy" in refused("inspect", *pair, "--dataset", "celeba")
    assert "do not fit the student's" in refused("inspect", "--teacher", "stargan6", "--student", "resnet20")
    message = refused("train", "--recipe", "stargan-celeba", "--data-dir", tmp_path)
    assert "trains a generator, not a classifier" in message


def test_a_run_that_is_there_is_refused_without_resume(run):
    settings = [word for setting in TINY for word in ("--set", setting)]
    where = ["--data-dir", run[0].parent / "celeba", "--run-dir", run[0]]
    message = refused("distill", "--recipe", "stargan-celeba", *where, *settings)
    assert "pass --resume to go on with it" in message
    again = lit_fast_command("distill", "--recipe", "stargan-celeba", *where, *settings, "--resume")
    assert again.exit_code == 0, again.output
    assert again.stdout == run[1]
