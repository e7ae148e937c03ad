"""Whole StarGAN experiments: what they write, exact resumption in every phase, and how they stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import fake_celeba
import pytest
import torch
from everyday import but_first
from gan_helpers import networks, tiny_gan
from image_files import cut_short
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from training_helpers import checkpoint, differing, quiet, without_times

from lit_fast import models
from lit_fast.data import DataError, open_data
from lit_fast.data.formats.folder import FolderSplit
from lit_fast.errors import ConfigError, Interrupted, NonFiniteLoss, RunFolderError
from lit_fast.extension import EXTENSION
from lit_fast.gan import experiment as experiment_module
from lit_fast.gan.experiment import run_gan_experiment
from lit_fast.gan.report import conclude
from lit_fast.gan.steps import AdversarialStep, BottleneckStep
from lit_fast.runs.checkpoint import CheckpointStore
from lit_fast.runs.weights import read_info
from lit_fast.settings.classifier import load_any_experiment, load_experiment
from lit_fast.teacher import programs
from lit_fast.training.distill import distill
from lit_fast.training.run import Run

TEACHER, SCRATCH, LIT = "teacher-stargan6", "stargan2-scratch-seed0", "stargan2-lit-seed0"
STEPS = 4  # an epoch: 32 images in batches of 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_celeba.write(tmp_path_factory.mktemp("celeba"))


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment that was never stopped."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    run_gan_experiment(tiny_gan(folder), run_dir, console=quiet())
    return run_dir


def results(run_dir: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run_dir / "results.json").read_text())["results"]
    return found


def test_an_experiment_leaves_weights_results_logs_and_grids(whole: Path) -> None:
    teacher, scratch, lit = results(whole)
    assert [run["name"] for run in (teacher, scratch, lit)] == [TEACHER, SCRATCH, LIT]
    assert [run["teacher"] for run in (teacher, scratch, lit)] == [None, None, TEACHER]
    assert [entry["phase"] for entry in lit["history"]] == ["lit", "finetune"]
    assert [entry["phase"] for entry in scratch["history"]] == ["scratch", "scratch"]
    assert lit["history"][0]["lit"] > 0
    assert "generator_reconstruction" in lit["history"][1]
    assert (teacher["layers"], lit["layers"]) == (18, 10)
    assert lit["macs_ratio"] > 1 < lit["compression"]
    for run in (teacher, scratch, lit):
        assert run["scores"].keys() == {"attributes", "reconstruction", "teacher_l1", "inception_score", "fid"}
        assert run["scores"]["fid"] is None
        lines = [json.loads(x) for x in (whole / "runs" / run["name"] / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if line["event"] == "step"] == [2, 4, 6, 8]
        assert [line["epoch"] for line in lines if line["event"] == "epoch"] == [1, 2]
        for epoch in (1, 2):
            assert (whole / "runs" / run["name"] / "samples" / f"epoch-{epoch:03d}.png").is_file()


def test_the_last_grid_shows_original_and_domains_for_teacher_scratch_and_student(whole: Path, folder: Path) -> None:
    with Image.open(whole / "samples.png") as image:
        # Columns: labels, original, 5 domains; rows: a header, and 2 images of 3 networks. 16 pixels and a margin each.
        assert image.size == (64 + 6 * 18, 14 + 2 * (3 * 18 + 2))
        pixels = image.convert("RGB").crop((64, 14, 80, 30))
    data = open_data("celeba", data_dir=folder, crop=22, image_size=16)
    original = data.test.fetch(torch.tensor([0]))[0].permute(1, 2, 0).contiguous().numpy().tobytes()
    assert pixels.tobytes() == original


def test_weights_tell_what_they_are_of(whole: Path) -> None:
    path = whole / "runs" / LIT / "generator.safetensors"
    info = read_info(path)
    assert info is not None
    assert (info.model, info.num_classes, info.width, info.image_size) == ("stargan2", 5, 2, 16)
    models.load_checkpoint(models.create_generator(info.model, domains=5, width=2), path)


def test_the_student_of_lit_starts_with_the_teachers_stem_head_and_discriminator(whole: Path, folder: Path) -> None:
    copied, teacher = networks(whole, LIT), networks(whole, TEACHER)
    lr_zero = tiny_gan(folder, "phases.lit.lr=1e-30", "phases.finetune.lr=1e-30", "variants=[lit]", _given(whole))
    frozen = whole.parent / "frozen"
    run_gan_experiment(lr_zero, frozen, console=quiet())
    still = networks(frozen, LIT)
    shared = [name for name in still if not name.startswith("generator.bottleneck.")]
    for name in shared:
        torch.testing.assert_close(still[name], teacher[name], rtol=0, atol=1e-12)
    assert any(not copied[name].equal(teacher[name]) for name in shared)  # the fine-tune phase moves them


def _given(run_dir: Path) -> dict[str, Any]:
    weights = run_dir / "runs" / TEACHER
    files = {"checkpoint": "generator", "discriminator": "discriminator"}
    return {"teacher": {key: str(weights / f"{name}.safetensors") for key, name in files.items()}}


@pytest.mark.skipif(not EXTENSION.loaded, reason="no compiled extension")
def test_the_teacher_is_lowered_once_for_all_students(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowered = []
    lower = programs.lower
    monkeypatch.setattr(programs, "lower", lambda part, x: lowered.append(part.name) or lower(part, x))
    run_gan_experiment(tiny_gan(folder, "variants=[lit]", "seeds=[0,1]"), tmp_path / "run", console=quiet())
    assert lowered == ["stem", "section1", "head"]
    assert not differing(networks(tmp_path / "run", LIT), networks(whole, LIT))


def test_a_given_teacher_gives_the_same_students(whole: Path, folder: Path, tmp_path: Path) -> None:
    found = run_gan_experiment(tiny_gan(folder, _given(whole)), tmp_path / "run", console=quiet())
    assert found[0]["variant"] == "checkpoint"
    assert found[0]["scores"] == results(whole)[0]["scores"]
    for name in (SCRATCH, LIT):
        assert not differing(networks(tmp_path / "run", name), networks(whole, name))


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the program's own runs after it."""


@pytest.mark.parametrize("step_class", [AdversarialStep, BottleneckStep])
@pytest.mark.parametrize("killed_at", but_first([4, 1, 3, 5, 8]))
def test_resuming_after_a_kill_in_any_phase_is_bit_identical(
    whole: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_class: type, killed_at: int
) -> None:
    """Adversarial: the teacher's steps 1 to 8; then everything that follows from them. LIT: its steps 1 to 4."""
    if step_class is BottleneckStep and killed_at > STEPS:
        pytest.skip("the LIT phase has four steps")
    original, calls = step_class.__call__, 0

    def dying(self: Any, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == killed_at:
            raise Killed
        return original(self, *args)

    monkeypatch.setattr(step_class, "__call__", dying)
    experiment = tiny_gan(folder, "checkpoint.every_seconds=1e-6", "variants=[lit]")  # after every step
    with pytest.raises(Killed):
        run_gan_experiment(experiment, tmp_path / "run", console=quiet())
    monkeypatch.undo()
    run_gan_experiment(experiment, tmp_path / "run", resume=True, console=quiet())
    for name in (TEACHER, LIT):
        assert not differing(networks(tmp_path / "run", name), networks(whole, name))
    teacher, lit = results(tmp_path / "run")
    before = results(whole)
    for name in (TEACHER, LIT):
        lines = [json.loads(x) for x in (tmp_path / "run" / "runs" / name / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if line["event"] == "step"] == [2, 4, 6, 8]
        assert [line["epoch"] for line in lines if line["event"] == "epoch"] == [1, 2]
    assert without_times(lit["history"]) == without_times(before[2]["history"])
    assert without_times(teacher["history"]) == without_times(before[0]["history"])
    assert lit["scores"] == before[2]["scores"]


@pytest.mark.parametrize("killed_at", but_first([2, 1, 4]))
def test_a_kill_in_the_fine_tune_phase_is_harmless(
    whole: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    original, calls = AdversarialStep.__call__, 0

    def dying(self: Any, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == killed_at:
            raise Killed
        return original(self, *args)

    monkeypatch.setattr(AdversarialStep, "__call__", dying)
    experiment = tiny_gan(folder, "checkpoint.every_seconds=1e-6", "variants=[lit]", _given(whole))
    with pytest.raises(Killed):
        run_gan_experiment(experiment, tmp_path / "run", console=quiet())
    monkeypatch.undo()
    run_gan_experiment(experiment, tmp_path / "run", resume=True, console=quiet())
    assert not differing(networks(tmp_path / "run", LIT), networks(whole, LIT))


def test_a_kill_while_a_checkpoint_is_written_is_harmless(
    whole: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = CheckpointStore._write, 0

    def dying(where: Path, checkpoint: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            (where / "model.safetensors").write_bytes(b"half of it")
            raise Killed
        original(where, checkpoint)

    monkeypatch.setattr(CheckpointStore, "_write", staticmethod(dying))
    experiment = tiny_gan(folder, "checkpoint.every_seconds=1e-6", "variants=[scratch]")
    with pytest.raises(Killed):
        run_gan_experiment(experiment, tmp_path / "run", console=quiet())
    monkeypatch.undo()
    run_gan_experiment(experiment, tmp_path / "run", resume=True, console=quiet())
    assert not differing(networks(tmp_path / "run", SCRATCH), networks(whole, SCRATCH))


def test_an_interrupt_finishes_the_step_saves_and_resumes(
    whole: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = AdversarialStep.__call__, 0

    def interrupting(self: Any, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args)

    monkeypatch.setattr(AdversarialStep, "__call__", interrupting)
    experiment = tiny_gan(folder, "variants=[scratch]", "data.loader=torch")  # any but DALI's gives the same batches
    with pytest.raises(Interrupted, match=r"teacher-stargan6: stopped by SIGINT after step 3; everything up to it"):
        run_gan_experiment(experiment, tmp_path / "run", console=quiet())
    monkeypatch.undo()
    with pytest.raises(RunFolderError, match="holds this experiment already; pass --resume"):
        run_gan_experiment(experiment, tmp_path / "run", console=quiet())
    experiment = tiny_gan(folder, "variants=[scratch]", "data.loader=resident")
    run_gan_experiment(experiment, tmp_path / "run", resume=True, console=quiet())
    for name in (TEACHER, SCRATCH):
        assert not differing(networks(tmp_path / "run", name), networks(whole, name))


@pytest.mark.parametrize("kind", ["critic", "generator"])
def test_the_first_update_that_is_not_finite_is_named_by_its_step(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The generator trains on steps 2, 4, 6 and 8; of both kinds the earlier one counts."""
    original, calls = AdversarialStep.__call__, 0

    def poisoned(self: AdversarialStep, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        rows = original(self, *args)
        if calls == 6:
            rows[kind] = rows[kind] * float("nan")
        return {name: row * (float("nan") if calls == 7 else 1.0) for name, row in rows.items()}

    monkeypatch.setattr(AdversarialStep, "__call__", poisoned)
    with pytest.raises(NonFiniteLoss, match=rf"not finite at step 6 \(phase scratch\): {kind}_\w+ nan"):
        run_gan_experiment(tiny_gan(folder, "logging.every=8"), tmp_path / "run", console=quiet())


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = AdversarialStep.__call__, 0

    def breaking(self: AdversarialStep, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            with torch.no_grad():
                next(self.generator.parameters()).fill_(float("nan"))
        return original(self, *args)

    monkeypatch.setattr(AdversarialStep, "__call__", breaking)
    message = (
        r"teacher-stargan6: the loss is not finite at step 6 \(phase scratch\): critic_real \S+  critic_fake nan .*"
        r"Try a smaller learning rate \(phases.scratch.lr, now 0.0001; 7.5e-05 at this point\)$"
    )
    with pytest.raises(NonFiniteLoss, match=message):
        run_gan_experiment(tiny_gan(folder), tmp_path / "run", console=quiet())
    kept = checkpoint(tmp_path / "run", TEACHER)
    assert kept is not None
    assert kept.step == STEPS
    assert all(tensor.isfinite().all() for tensor in kept.model.values())


def test_a_run_whose_runs_have_ended_is_not_trained_again(
    whole: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole, tmp_path / "run")

    def never(*args: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(Run, "run", never)
    (tmp_path / "run" / "samples.png").unlink()
    run_gan_experiment(tiny_gan(folder), tmp_path / "run", resume=True, console=quiet())
    assert results(tmp_path / "run") == results(whole)
    assert (tmp_path / "run" / "samples.png").read_bytes() == (whole / "samples.png").read_bytes()


def test_inception_score_and_fid_are_added_to_a_finished_run(
    whole: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchmetrics")

    class Means(nn.Module):
        """A stand-in for Inception: the mean colours."""

        num_features = 3

        def forward(self, images: Tensor) -> Tensor:
            assert images.dtype == torch.uint8
            return images.float().mean((2, 3)) / 255

    monkeypatch.setattr(experiment_module, "check_inception", lambda path: None)
    monkeypatch.setattr(experiment_module, "inception_features", lambda path: (Means(), Means()))
    shutil.copytree(whole, tmp_path / "run")
    experiment = tiny_gan(folder, "metrics.inception=weights.pth")
    run_gan_experiment(experiment, tmp_path / "run", resume=True, console=quiet())
    for before, after in zip(results(whole), results(tmp_path / "run"), strict=True):
        assert after["scores"]["fid"] > 0
        assert 1 <= after["scores"]["inception_score"] <= 3
        known = {key: after["scores"][key] for key in ("attributes", "reconstruction", "teacher_l1")}
        assert {**before, "scores": known} == {**after, "scores": known}


def test_another_experiment_is_refused_by_the_keys_that_differ(whole: Path, folder: Path) -> None:
    with pytest.raises(RunFolderError, match=r"n_critic \(2 there, 3 now\)"):
        run_gan_experiment(tiny_gan(folder, "n_critic=3"), whole, resume=True, console=quiet())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["student.models=[stargan4]"],
            "student.models: unknown generator 'stargan4'; did you mean stargan6 or stargan2[?]",
        ),
        (["teacher.model=resnet20"], "teacher.model: unknown generator 'resnet20'"),
        (["variants=[kd]"], "variants.0: Input should be 'scratch' or 'lit'"),
        (["variants=[lit, lit]"], "variants repeats an entry"),
        (["loss.beta=0.5"], "loss.beta: unknown key"),
        (["phases.scratch.linear=21"], "linear: 21 epochs are more than the phase's 20"),
        (["teacher.checkpoint=nowhere.th"], "no such file: nowhere.th"),
        ([f"teacher.checkpoint={__file__}"], "checkpoint and discriminator belong together"),
    ],
)
def test_an_impossible_config_is_explained(folder: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_gan(folder, *overrides)


def test_what_cannot_work_is_refused_before_training(folder: Path, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"image_size must be divisible by 16 .* got 20"):
        run_gan_experiment(tiny_gan(folder, "data.image_size=20"), tmp_path / "a", console=quiet())
    with pytest.raises(ValueError, match=r"no file .*Inception-v3 weights.*nothing is downloaded"):
        run_gan_experiment(tiny_gan(folder, "metrics.inception=nowhere.pth"), tmp_path / "b", console=quiet())
    assert not (tmp_path / "b").exists()


# -- files that cannot be decoded --------------------------------------------------------------------------------------


def test_a_file_that_breaks_during_a_run_costs_no_step(
    whole: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = shutil.copytree(folder, tmp_path / "faces")
    experiment = tiny_gan(faces, "data.loader=torch", "variants=[lit]")
    fetch, calls, kept = FolderSplit.fetch, [], {}

    def breaks(split: FolderSplit, indices: Tensor) -> Tensor:
        calls.append(len(indices))
        if len(calls) == 3:  # of the teacher's first epoch's four batches
            path = split.files[int(indices[0])]
            kept[path] = path.read_bytes()
            cut_short(path)
        return fetch(split, indices)

    with monkeypatch.context() as patch:
        patch.setattr(FolderSplit, "fetch", breaks)
        with pytest.raises(DataError, match=r"\.jpg: cannot be decoded as an image"):
            run_gan_experiment(experiment, tmp_path / "run", console=quiet())
    saved = checkpoint(tmp_path / "run", TEACHER)
    assert saved is not None
    assert saved.step == 2
    for path, content in kept.items():
        path.write_bytes(content)
    run_gan_experiment(experiment, tmp_path / "run", resume=True, console=quiet())
    assert not differing(networks(tmp_path / "run", TEACHER), networks(whole, TEACHER))


def test_bad_images_are_left_out_where_the_recipe_says_so(folder: Path, tmp_path: Path) -> None:
    faces = shutil.copytree(folder, tmp_path / "faces")
    bad = sorted((faces / "img_align_celeba").iterdir())[5]
    cut_short(bad)
    with pytest.raises(DataError, match=rf"{bad.name}: cannot be decoded"):
        run_gan_experiment(tiny_gan(faces), tmp_path / "stopped", console=quiet())
    console, run_dir = quiet(), tmp_path / "run"
    experiment = tiny_gan(faces, "data.on_bad_image=skip", "epochs=1", "variants=[scratch]")
    run_gan_experiment(experiment, run_dir, console=console)
    assert f"images left out: 1, such as {bad}: cannot be decoded" in console.file.getvalue().replace("\n", "")
    (left_out,) = json.loads((run_dir / "results.json").read_text())["left_out"]
    assert bad.name in left_out
    conclude(run_dir)
    report = (run_dir / "report.md").read_text()
    assert "## Images left out: 1" in report
    assert bad.name in report


def test_recipes_of_the_two_kinds_are_not_mistaken_for_each_other(folder: Path) -> None:
    with pytest.raises(ConfigError, match="recipe stargan-celeba trains a generator, not a classifier"):
        load_experiment("stargan-celeba", None, [{"data": {"dir": str(folder)}}])
    with pytest.raises(ConfigError, match="task: unknown key"):
        load_any_experiment("digits", None, ["task=dance"])


def test_a_classifier_is_not_trained_on_attributes(folder: Path, tmp_path: Path) -> None:
    data = open_data("celeba", data_dir=folder, crop=22, image_size=16)
    net = models.resnet20(num_classes=5)
    with pytest.raises(ConfigError, match="its images have several attributes each, a classifier needs one class each"):
        distill(net, net, data, recipe="digits", run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_saved_config_runs_again(folder: Path, whole: Path) -> None:
    again = load_any_experiment(None, whole / "experiment.yaml")
    assert again == tiny_gan(folder)


def test_the_checkpoint_holds_both_networks_and_both_optimizers(folder: Path, tmp_path: Path) -> None:
    experiment = tiny_gan(folder, "variants=[scratch]", "epochs=1", "teacher.epochs=1", "checkpoint.every_seconds=1e-6")
    run_gan_experiment(experiment, tmp_path / "run", console=quiet())
    newest = sorted((tmp_path / "run" / "runs" / TEACHER / "checkpoints").iterdir())[0]
    roles = {name.partition(".")[0] for name in load_file(newest / "model.safetensors")}
    assert roles == {"generator", "discriminator"}
    state = torch.load(newest / "state.pt", weights_only=True)
    assert state["step"]["optimizers"].keys() == {"generator", "discriminator"}
