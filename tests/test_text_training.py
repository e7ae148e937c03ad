"""Networks of texts through recipe, trainer and commands, on small reviews."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from everyday import but_first, exhaustive
from small_reviews import write
from training_helpers import before_step, differing, interrupt, quiet, weights, without_times
from typer.testing import CliRunner, Result

from lit_fast import models
from lit_fast.bench import pairing
from lit_fast.cli import app
from lit_fast.errors import ConfigError, Interrupted
from lit_fast.runs.weights import read_info
from lit_fast.settings.classifier import Experiment, load_experiment
from lit_fast.training.experiment import open_experiment_data, run_experiment

NAME = "vdcnn9-lit-seed0"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "amazon_review_polarity_csv", train=60, test=20).parent


def small(folder: Path, *overrides: str | dict[str, Any]) -> Experiment:
    """The recipe with VDCNN-9 as its own teacher, 64 tokens, two epochs of three steps."""
    settings = [
        {"data": {"dir": str(folder)}},
        *("data.length=64", "data.train_size=24", "data.val_size=12", "batch_size=8", "epochs=2", "logging.every=2"),
        *("logging.tensorboard=false", "teacher.model=vdcnn9", "student.models=[vdcnn9]", "student.sequence=false"),
    ]
    return load_experiment("vdcnn-amazon-polarity", None, [*settings, *overrides])


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    run = tmp_path_factory.mktemp("runs") / "whole"
    return run, run_experiment(small(folder), run, console=quiet())


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_interrupted_and_resumed_is_bit_identical(
    folder: Path,
    whole: tuple[Path, list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before_step(monkeypatch, 2, interrupt)
    with pytest.raises(Interrupted, match="after step 2"):
        run_experiment(small(folder), tmp_path / "run", console=quiet())
    monkeypatch.undo()
    results = run_experiment(small(folder), tmp_path / "run", resume=True, console=quiet())
    assert not differing(weights(tmp_path / "run", NAME), weights(whole[0], NAME))
    assert without_times(results[1]["history"]) == without_times(whole[1][1]["history"])


def test_a_lit_student_goes_through_both_phases_with_an_ir_loss_per_section(
    whole: tuple[Path, list[dict[str, Any]]],
) -> None:
    first, second = whole[1][1]["history"]
    assert (first["phase"], second["phase"]) == ("lit", "finetune")
    assert len(first["ir"]) == 4
    assert all(value > 0 for value in first["ir"])


@exhaustive
def test_bf16_and_a_sequence_of_depths(folder: Path, tmp_path: Path) -> None:
    experiment = small(folder, "step.precision=bf16", "epochs=1", "student={models: [vdcnn17, vdcnn9], sequence: true}")
    results = run_experiment(experiment, tmp_path / "run", console=quiet())
    assert [(r["name"], r["teacher"]) for r in results] == [
        ("teacher-vdcnn9", None),
        ("vdcnn17-lit-seed0", "teacher-vdcnn9"),
        (NAME, "vdcnn17-lit-seed0"),
    ]


def test_an_image_network_is_refused_before_anything_is_trained(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="resnet20 takes images, dataset amazon-polarity has texts"):
        run_experiment(small(folder, "student.models=[resnet20]"), tmp_path / "run", console=quiet())
    digits = load_experiment("digits", None, ["teacher.model=vdcnn9", "student.models=[vdcnn9]"])
    with pytest.raises(ConfigError, match="vdcnn9 takes texts, dataset digits has images"):
        run_experiment(digits, tmp_path / "other", console=quiet())
    assert not (tmp_path / "run" / "runs").exists()


def test_too_few_characters_are_refused_before_anything_is_trained(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected at least 57 characters .* got 40"):
        run_experiment(small(folder, "data.length=40"), tmp_path / "run", console=quiet())
    assert not (tmp_path / "run" / "runs").exists()


# -- weights and commands ----------------------------------------------------------------------------------------------


def checkpoint(whole: tuple[Path, list[dict[str, Any]]]) -> Path:
    return whole[0] / "runs" / NAME / "last.safetensors"


def test_a_weight_file_tells_what_it_reads(whole: tuple[Path, list[dict[str, Any]]], folder: Path) -> None:
    info = read_info(checkpoint(whole))
    assert info is not None
    assert (info.model, info.shape, info.in_channels, info.mean) == ("vdcnn9", (64,), None, ())
    given = {"teacher": {"checkpoint": str(checkpoint(whole))}, "data": {"length": None}}
    assert open_experiment_data(small(folder, given)).shape == (64,)  # the length the teacher knows


def test_evaluate_gives_the_accuracy_of_the_run(whole: tuple[Path, list[dict[str, Any]]], folder: Path) -> None:
    done = command("evaluate", "--checkpoint", checkpoint(whole), "--data-dir", folder, "--val-size", 12)
    assert done.exit_code == 0, done.output
    assert "amazon-polarity, test split, 20 texts of 64 tokens" in done.output
    assert f"{whole[1][1]['accuracy']['test_last']:.2f} %" in done.output
    assert "normalisation" not in done.output


def test_data_of_the_other_kind_are_named_before_they_are_opened(
    whole: tuple[Path, list[dict[str, Any]]], folder: Path
) -> None:
    texts, digits = ["--checkpoint", checkpoint(whole)], ["--dataset", "digits"]
    done = command("evaluate", *texts, *digits)
    assert (done.exit_code, done.stderr) == (
        2,
        "error: vdcnn9 takes texts, dataset digits has images: choose another network or dataset\n",
    )
    pair = ["--teacher", "vdcnn9", "--student", "vdcnn9", "--teacher-checkpoint", checkpoint(whole)]
    assert "vdcnn9 takes texts, dataset digits has images" in command("inspect", *pair, *digits).stderr
    told = command("evaluate", *texts, "--model", "resnet20", "--data-dir", folder).stderr
    assert "resnet20 takes images, dataset amazon-polarity has texts" in told


def test_inspect_takes_length_from_the_weights_or_the_option(whole: tuple[Path, list[dict[str, Any]]]) -> None:
    done = command("inspect", "--teacher", "vdcnn9", "--student", "vdcnn9", "--teacher-checkpoint", checkpoint(whole))
    assert "tokens 64, 2 classes" in done.output, done.output
    done = command("inspect", "--teacher", "vdcnn9", "--student", "vdcnn9", "--num-classes", 5, "--length", 80)
    assert "tokens 80, 5 classes" in done.output, done.output
    assert "64x80" in done.output
    assert "not lowered" not in done.output


def test_inspect_refuses_a_network_of_images_beside_one_of_texts() -> None:
    done = command("inspect", "--teacher", "vdcnn9", "--student", "resnet20")
    assert done.exit_code == 2
    assert "resnet20 takes images, the data are texts" in done.stderr


@exhaustive
def test_bench_measures_a_step_on_random_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing, "FEWEST", 1)
    pair = ["--teacher", "vdcnn17", "--student", "vdcnn9", "--num-classes", "2", "--length", "64", "--batch-size", "4"]
    done = command("bench", *pair, "--seconds", "0.1", "--no-compile", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "vdcnn17 to vdcnn9, batch 4 of 64, fp32" in done.output
    assert "not measured" not in done.output


@pytest.mark.parametrize("extra", but_first([[], ["--model", "vdcnn9", "--num-classes", "2", "--length", "64"]]))
def test_export_writes_a_program_for_tokens(
    whole: tuple[Path, list[dict[str, Any]]], tmp_path: Path, extra: list[str]
) -> None:
    source = checkpoint(whole)
    if extra:  # a file that tells nothing of itself
        source = tmp_path / "bare.pt"
        model = models.vdcnn9(2)
        models.load_checkpoint(model, checkpoint(whole))
        torch.save(model.state_dict(), source)
    done = command("export", "--checkpoint", source, "--to", "torch-export", "--out", tmp_path / "net.pt2", *extra)
    assert done.exit_code == 0, done.output
    assert "against PyTorch on random tokens" in done.output
    logits = torch.export.load(str(tmp_path / "net.pt2")).module()(torch.zeros(3, 64, dtype=torch.int64))
    assert logits.shape == (3, 2)
