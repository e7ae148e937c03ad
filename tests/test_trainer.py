"""Whole runs: what they write, exact resumption from anywhere, and how they stop."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from everyday import but_first, exhaustive
from recorded_graphs import RecordedGraphs
from training_helpers import TINY, before_step, checkpoint, differing, interrupt, quiet, tiny, weights, without_times

from lit_fast.errors import Interrupted, NonFiniteLoss, RunFolderError, StoreError
from lit_fast.extension import EXTENSION
from lit_fast.runs import folder as folder_module
from lit_fast.runs.checkpoint import CheckpointStore
from lit_fast.settings import optimizer
from lit_fast.step import capture
from lit_fast.step.lit_step import LITStep
from lit_fast.teacher import programs
from lit_fast.training import classifier
from lit_fast.training import experiment as experiment_module
from lit_fast.training.experiment import run_experiment, train_model
from lit_fast.training.interrupt import SignalWatch

NAME = "resnet20-lit-seed0"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_experiment(tiny(), folder, console=quiet())
    return folder


def test_a_run_leaves_weights_results_and_logs(whole: Path) -> None:
    stored = json.loads((whole / "results.json").read_text())
    teacher, student = stored["results"]
    assert (teacher["role"], student["role"]) == ("teacher", "student")
    assert student["name"] == NAME
    assert student["teacher"] == "teacher-resnet20"
    assert [entry["phase"] for entry in student["history"]] == ["lit", "lit", "finetune"]
    assert len(student["history"][0]["ir"]) == 3
    assert student["history"][-1]["ir"] == []
    assert student["accuracy"]["val_last"] == student["history"][-1]["val_accuracy"]
    assert student["accuracy"]["val_best"] == max(entry["val_accuracy"] for entry in student["history"])
    assert student["history"][student["accuracy"]["best_epoch"] - 1]["val_accuracy"] == student["accuracy"]["val_best"]
    assert student["parameters"] > 260_000
    lines = [json.loads(line) for line in (whole / "runs" / NAME / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "step"] == [2, 4, 6, 8]
    assert [line["epoch"] for line in lines if line["event"] == "epoch"] == [1, 2, 3]


def test_the_sections_are_looked_at_every_so_often_and_after_each_epoch(whole: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (whole / "runs" / NAME / "log.jsonl").read_text().splitlines()]
    looks = [(line["step"], line["epoch"], line["phase"]) for line in lines if line["event"] == "sections"]
    assert looks == [(4, 2, "lit"), (8, 3, "finetune")]
    teacher, student = json.loads((whole / "results.json").read_text())["results"]
    assert not any("sections" in entry for entry in teacher["history"])  # it has none to be compared with
    for entry in student["history"]:
        found = entry["sections"]
        assert [len(found[key]) for key in ("teacher_fed", "composed", "cosines")] == [3, 3, 3]
        assert found["teacher_fed"][0] == found["composed"][0]
        assert (found["cosine"] is None) == (entry["phase"] == "finetune")
    without = run_experiment(tiny("logging.sections_every=0"), tmp_path / "run", console=quiet())[1]
    assert not any("sections" in entry for entry in without["history"])
    assert not differing(weights(tmp_path / "run", NAME), weights(whole, NAME))


def test_the_loss_parts_logged_add_up_to_the_loss(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "runs" / NAME / "log.jsonl").read_text().splitlines()]
    options = tiny().loss
    for line in lines:
        if line["event"] == "sections":
            continue
        kd = options.alpha * line["ce"] + (1 - options.alpha) * line["kl"]
        beta = options.beta if line["phase"] == "lit" else 1.0
        assert line["loss"] == pytest.approx(beta * kd + (1 - beta) * sum(line["ir"]), rel=1e-5)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the program's own runs after it, not even an except clause for Exception."""


@pytest.mark.parametrize("killed_at", but_first([4, 1, 3, 5, 7, 8]))  # 4, 7: an epoch, a phase begins
def test_resuming_after_a_kill_at_any_step_is_bit_identical(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    experiment = tiny("checkpoint.every_seconds=1e-6")  # after every step

    def die() -> None:
        raise Killed

    before_step(monkeypatch, killed_at, die)
    with pytest.raises(Killed):
        run_experiment(experiment, tmp_path / "run", console=quiet())
    monkeypatch.undo()
    results = run_experiment(experiment, tmp_path / "run", resume=True, console=quiet())
    for which in ("last", "best"):
        assert not differing(weights(tmp_path / "run", NAME, which), weights(whole, NAME, which))
    before = json.loads((whole / "results.json").read_text())["results"][1]
    assert without_times(results[1]["history"]) == without_times(before["history"])
    assert results[1]["accuracy"] == before["accuracy"]
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "runs" / NAME / "log.jsonl").open()]
    assert steps == sorted(steps)
    assert len(steps) == 9  # 4 steps, 2 looks at the sections, 3 epochs: none missing, none twice


@pytest.mark.parametrize("killed_at", but_first([2, 1, 3, 4]))
def test_a_kill_while_a_checkpoint_is_written_is_harmless(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    experiment = tiny("checkpoint.every_seconds=1e-6")
    original, calls = CheckpointStore._write, 0

    def dying(folder: Path, checkpoint: object) -> None:
        nonlocal calls
        if NAME in str(folder):
            calls += 1
            if calls == killed_at:
                (folder / "model.safetensors").write_bytes(b"half of it")
                raise Killed
        original(folder, checkpoint)

    monkeypatch.setattr(CheckpointStore, "_write", staticmethod(dying))
    with pytest.raises(Killed):
        run_experiment(experiment, tmp_path / "run", console=quiet())
    monkeypatch.undo()
    run_experiment(experiment, tmp_path / "run", resume=True, console=quiet())
    assert not differing(weights(tmp_path / "run", NAME), weights(whole, NAME))


@pytest.mark.parametrize("at", ["save_weights", "atomic_write"])
def test_a_kill_while_a_run_ends_is_harmless(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    module = experiment_module if at == "save_weights" else folder_module
    original = getattr(module, at)

    def dying(path: Path, *args: object) -> None:
        if NAME in str(path) and path.name in ("last.safetensors", "result.json"):
            raise Killed
        original(path, *args)

    monkeypatch.setattr(module, at, dying)
    with pytest.raises(Killed):
        run_experiment(tiny(), tmp_path / "run", console=quiet())
    monkeypatch.undo()
    results = run_experiment(tiny(), tmp_path / "run", resume=True, console=quiet())
    assert not differing(weights(tmp_path / "run", NAME), weights(whole, NAME))
    before = json.loads((whole / "results.json").read_text())["results"][1]
    assert results[1]["accuracy"] == before["accuracy"]


LONGER = ("epochs=8", "teacher.epochs=1")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As `launch` has it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def launch(run_dir: Path, *extra: str) -> subprocess.Popen[str]:
    sets = [part for override in (*TINY, *LONGER, *extra) for part in ("--set", override)]
    command = [sys.executable, "-m", "lit_fast", "distill", "--recipe", "digits", "--run-dir", str(run_dir), *sets]
    if run_dir.exists():
        command.append("--resume")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads that wait for each other crawl on a busy machine
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def wait_for_steps(log: Path, steps: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and log.read_text().count('"event": "step"') >= steps:
            return
        time.sleep(0.005)
    raise AssertionError(f"the run ended or hung before step {2 * steps}: {process.communicate()}")


@exhaustive
@pytest.mark.usefixtures("one_thread")
def test_a_process_killed_twice_ends_with_the_same_weights(tmp_path: Path) -> None:
    """The real thing: SIGKILL to a process, at two moments drawn at random, then resumed to the end."""
    run_experiment(tiny(*LONGER), tmp_path / "straight", console=quiet())
    log = tmp_path / "killed" / "runs" / NAME / "log.jsonl"
    done = 0
    for _ in range(2):
        process = launch(tmp_path / "killed", "checkpoint.every_seconds=0.05")
        done += random.randint(1, 5)  # of the 12 that are logged
        wait_for_steps(log, done, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    last = launch(tmp_path / "killed", "checkpoint.every_seconds=0.05")
    assert last.wait(timeout=300) == 0, last.communicate()
    assert not differing(weights(tmp_path / "killed", NAME), weights(tmp_path / "straight", NAME))


@pytest.mark.parametrize("number", but_first([signal.SIGINT, signal.SIGTERM]))
def test_a_signal_saves_says_so_and_exits(tmp_path: Path, number: signal.Signals) -> None:
    process = launch(tmp_path / "run", "epochs=40")
    wait_for_steps(tmp_path / "run" / "runs" / NAME / "log.jsonl", 2, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"stopped by {number.name} after step" in errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    saved = checkpoint(tmp_path / "run", NAME)
    assert saved is not None
    assert f"after step {saved.step};" in errors


@pytest.mark.parametrize(
    ("before", "after"), but_first([("torch", "resident"), ("auto", "auto"), ("resident", "torch")])
)
def test_interrupted_and_resumed_is_bit_identical_whatever_the_loader(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    before_step(monkeypatch, 4, interrupt)
    with pytest.raises(Interrupted, match=r"stopped by SIGINT after step 4"):
        run_experiment(tiny(f"data.loader={before}"), tmp_path / "run", console=quiet())
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    console = quiet()
    run_experiment(tiny(f"data.loader={after}"), tmp_path / "run", resume=True, console=console)
    assert not differing(weights(tmp_path / "run", NAME), weights(whole, NAME))
    # One for all runs: a resident dataset is there once.
    told = {"auto": "resident (37 kB on cpu; the dataset fits)", "resident": "resident (37 kB on cpu; requested)"}
    assert console.file.getvalue().count("loader: ") == 1
    assert f"loader: {told.get(after, 'torch (requested)')}" in console.file.getvalue()


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with SignalWatch() as watch:
            os.kill(os.getpid(), signal.SIGINT)
            assert watch.requested is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_finished_experiment_resumes_to_the_same_results(whole: Path, tmp_path: Path) -> None:
    before = json.loads((whole / "results.json").read_text())["results"]
    assert run_experiment(tiny(), whole, resume=True, console=quiet()) == before


class TestRunFolder:
    def test_without_resume_a_used_folder_is_refused(self, whole: Path) -> None:
        with pytest.raises(RunFolderError, match=r"holds this experiment already; pass --resume"):
            run_experiment(tiny(), whole, console=quiet())

    def test_another_experiment_is_refused_by_key(self, whole: Path) -> None:
        with pytest.raises(RunFolderError, match=r"another experiment; it differs in loss.tau \(6.0 there, 4.0 now\)"):
            run_experiment(tiny("loss.tau=4"), whole, resume=True, console=quiet())

    def test_other_data_are_refused(self, whole: Path) -> None:
        with pytest.raises(RunFolderError, match=r"the data; data.val_seed \(0 there, 5 now\)"):
            run_experiment(tiny("data.val_seed=5"), whole, resume=True, console=quiet())

    def test_logging_may_differ(self, whole: Path) -> None:
        run_experiment(tiny("logging.every=7"), whole, resume=True, console=quiet())

    def test_a_folder_of_something_else_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("mine")
        with pytest.raises(RunFolderError, match=r"not empty and holds no experiment"):
            run_experiment(tiny(), tmp_path, console=quiet())
        assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_file_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(RunFolderError, match=r"cannot write to the run directory"):
            run_experiment(tiny(), tmp_path / "file", console=quiet())


def test_a_loss_that_is_not_finite_stops_at_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = LITStep.__call__, 0

    def poisoned(self: LITStep, *args: object) -> object:
        nonlocal calls
        parts = original(self, *args)
        calls += self.options.beta < 1.0
        return parts._replace(total=parts.total * float("nan")) if calls == 5 else parts

    monkeypatch.setattr(LITStep, "__call__", poisoned)
    with pytest.raises(NonFiniteLoss, match=r"not finite at step 5 \(phase lit\): loss nan .*loss.beta") as caught:
        run_experiment(tiny(), tmp_path / "run", console=quiet())
    assert "lr" in str(caught.value)
    saved = checkpoint(tmp_path / "run", NAME)
    assert saved is not None
    assert saved.step == 3
    assert all(torch.isfinite(tensor).all() for tensor in saved.model.values() if tensor.is_floating_point())


def test_a_full_disk_ends_the_run_and_freeing_it_resumes(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = CheckpointStore._write, 0

    def full(folder: Path, checkpoint: object) -> None:
        nonlocal calls
        calls += NAME in str(folder)
        if calls == 2:
            raise OSError(28, "No space left on device")
        original(folder, checkpoint)

    monkeypatch.setattr(CheckpointStore, "_write", staticmethod(full))
    with pytest.raises(StoreError, match=r"No space left on device; the last checkpoint, .*step-000000003, is intact"):
        run_experiment(tiny(), tmp_path / "run", console=quiet())
    monkeypatch.undo()
    run_experiment(tiny(), tmp_path / "run", resume=True, console=quiet())
    assert not differing(weights(tmp_path / "run", NAME), weights(whole, NAME))


def test_variants_share_initial_weights_and_data_order(tmp_path: Path) -> None:
    results = run_experiment(
        tiny("variants=[scratch, kd, hint, multi_ir, one_ir_teacher_input]", "epochs=1"),
        tmp_path / "r",
        console=quiet(),
    )
    names = [result["variant"] for result in results[1:]]
    assert names == ["scratch", "kd", "hint", "multi_ir", "one_ir_teacher_input"]
    assert [len(result["history"][0]["ir"]) for result in results[1:]] == [0, 0, 1, 3, 1]
    assert results[1]["teacher"] is None
    assert results[1]["history"][0]["kl"] == 0.0


@pytest.mark.skipif(not EXTENSION.loaded, reason="no compiled extension")
def test_the_teacher_is_lowered_once_for_all_students_and_phases(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowered = []
    lower = programs.lower
    monkeypatch.setattr(programs, "lower", lambda part, x: lowered.append(part.name) or lower(part, x))
    checkpoint = whole / "runs" / "teacher-resnet20" / "last.safetensors"
    experiment = tiny(
        {"teacher": {"checkpoint": str(checkpoint)}}, "variants=[lit,kd]", "epochs=2", "logging.sections_every=0"
    )
    run_experiment(experiment, tmp_path / "shared", console=quiet())
    assert lowered == ["stem", "section1", "section2", "section3", "head"]
    monkeypatch.setattr(experiment_module, "frozen_teacher", lambda model, step: None)
    run_experiment(experiment, tmp_path / "own", console=quiet())
    assert len(lowered) == 5 * (1 + 3)  # a step for each phase: two of lit, one of kd
    for name in ("resnet20-lit-seed0", "resnet20-kd-seed0"):
        assert not differing(weights(tmp_path / "shared", name), weights(tmp_path / "own", name))


@pytest.fixture(scope="module")
def sequence(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict], list[dict[str, torch.Tensor]]]:
    """A run of a sequence of students, its results, and the weights of each teacher when it was frozen."""
    folder, given = tmp_path_factory.mktemp("sequence") / "run", []
    make = experiment_module.frozen_teacher

    def making(model, step):
        given.append({name: tensor.clone() for name, tensor in model.model.state_dict().items()})
        return make(model, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment_module, "frozen_teacher", making)
        experiment = tiny("student={models: [resnet32, resnet20], sequence: true}", "epochs=1")
        return folder, run_experiment(experiment, folder, console=quiet()), given


@pytest.mark.skipif(not EXTENSION.loaded, reason="no compiled extension")
def test_a_teacher_that_is_trained_in_the_experiment_is_frozen_afterwards(sequence) -> None:
    folder, _, given = sequence
    names = ["teacher-resnet20", "resnet32-lit-seed0", "resnet20-lit-seed0"]
    for name, at_the_time in zip(names, given[-3:], strict=True):
        assert not differing(weights(folder, name), at_the_time)


def test_a_sequence_hands_the_student_on_as_teacher(sequence) -> None:
    folder, results, _ = sequence
    assert [result["teacher"] for result in results] == [None, "teacher-resnet20", "resnet32-lit-seed0"]
    again = weights(folder, "resnet20-lit-seed0")
    handed = weights(folder, "resnet32-lit-seed0")
    assert torch.equal(again["conv1.weight"], handed["conv1.weight"])  # the stem was copied from it, and is frozen


def test_selective_compression_keeps_copied_sections_frozen_to_the_end(tmp_path: Path) -> None:
    experiment = tiny(
        "student={models: [resnet20], copied: [stem, section1, head], frozen_in_finetune: [stem, section1]}", "epochs=2"
    )
    run_experiment(experiment, tmp_path / "r", console=quiet())
    student, teacher = (weights(tmp_path / "r", name) for name in (NAME, "teacher-resnet20"))
    assert not [n for n in student if n.startswith(("conv1", "bn1", "layer1")) and not student[n].equal(teacher[n])]
    assert not student["layer2.0.conv1.weight"].equal(teacher["layer2.0.conv1.weight"])
    assert not student["linear.weight"].equal(teacher["linear.weight"])  # copied, trained in the fine-tune phase


def test_recalibrate_policy_averages_over_the_training_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = classifier.recalibrate
    monkeypatch.setattr(classifier, "recalibrate", lambda student, batches: seen.append(original(student, batches)))
    run_experiment(tiny("step.bn_policy=recalibrate"), tmp_path / "r", console=quiet())
    assert seen == [3]  # once, at the end of the LIT phase, 96 images in batches of 32


def test_an_untrained_teacher_is_refused(tmp_path: Path) -> None:
    from lit_fast import models

    file = tmp_path / "untrained.pt"
    torch.manual_seed(0)
    torch.save(models.resnet20(in_channels=1).state_dict(), file)
    with pytest.raises(ValueError, match=r"no better than chance"):
        run_experiment(tiny(f"teacher.checkpoint={file}"), tmp_path / "run", console=quiet())


def test_train_model_trains_only_the_teacher(tmp_path: Path) -> None:
    result = train_model(tiny("epochs=1"), tmp_path / "r", console=quiet())
    assert result["role"] == "teacher"
    assert sorted(p.name for p in (tmp_path / "r" / "runs").iterdir()) == ["teacher-resnet20"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.models=[resnext20]", "section 1"),
        ("student={models: [resnet20], copied: [stem, heads]}", "heads"),
        ("student={models: [resnet20], copied: [section1, section2, section3]}", "every one of them is frozen"),
        ("loss.section_weights=[1, 2]", "section_weights: expected 3"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_experiment(tiny(override), tmp_path / "run", console=quiet())
    assert not (tmp_path / "run" / "runs").exists()


def test_a_given_teacher_is_known_by_its_content_not_by_its_path(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment_module, "refuse_chance", lambda *_: None)  # three epochs teach it nothing
    trained = whole / "runs" / "teacher-resnet20" / "last.safetensors"
    file = tmp_path / "teacher.safetensors"
    file.write_bytes(trained.read_bytes())
    run_experiment(tiny(f"teacher.checkpoint={file}", "epochs=1"), tmp_path / "run", console=quiet())
    moved = file.rename(tmp_path / "moved.safetensors")
    run_experiment(tiny(f"teacher.checkpoint={moved}", "epochs=1"), tmp_path / "run", resume=True, console=quiet())
    moved.write_bytes((whole / "runs" / NAME / "last.safetensors").read_bytes())
    with pytest.raises(RunFolderError, match=r"teacher\.weights"):
        run_experiment(tiny(f"teacher.checkpoint={moved}", "epochs=1"), tmp_path / "run", resume=True, console=quiet())


def test_weight_files_can_be_read_by_whoever_the_umask_lets(whole: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    for file in (whole / "runs" / NAME / "last.safetensors", whole / "results.json"):
        assert file.stat().st_mode & 0o777 == 0o666 & ~mask


def test_section_weights_go_with_their_sections(tmp_path: Path) -> None:
    """Weights (1, 0, 0) on all sections are weight 1 on the first; for hint, the middle section's weight counts."""
    overrides = ("loss.section_weights=[2, 0, 0]", "loss.beta=0", "variants=[lit, hint]")
    lit, hint = run_experiment(tiny(*overrides), tmp_path / "run", console=quiet())[1:]
    assert lit["history"][0]["loss"] == pytest.approx(2 * lit["history"][0]["ir"][0], rel=1e-5)
    assert hint["history"][0]["loss"] == 0.0
    assert len(hint["history"][0]["ir"]) == 1


@exhaustive
def test_gradients_are_clipped(tmp_path: Path) -> None:
    def last(*overrides: str) -> dict[str, torch.Tensor]:
        path = tmp_path / "-".join(overrides)
        options = ("variants=[kd]", "data.train_size=40", "teacher.epochs=1", "optimizer.weight_decay=0", *overrides)
        run_experiment(tiny(*options), path, console=quiet())
        found = weights(path, "resnet20-kd-seed0")
        return {name: value for name, value in found.items() if "running" not in name and "num_b" not in name}

    clipped = last("optimizer.clip_grad_norm=1e-20", "epochs=1"), last("optimizer.clip_grad_norm=1e-20", "epochs=2")
    assert all(torch.allclose(value, clipped[1][name], rtol=0, atol=1e-15) for name, value in clipped[0].items())
    assert not torch.equal(clipped[0]["linear.weight"], last("epochs=1")["linear.weight"])


@pytest.mark.parametrize("chosen", ["sgd", pytest.param("adamw", marks=exhaustive)])
def test_captured_runs_resume_exactly_and_equal_eager_ones(
    chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On graphs recorded on the CPU; the rates are powers of two, which a float32 tensor holds exactly."""
    graphs = RecordedGraphs()
    monkeypatch.setattr(capture, "graphs_for", lambda device: graphs)
    monkeypatch.setattr(optimizer, "_FUSED", ("cpu",))
    rates = {"scratch": 0.125, "lit": 0.015625, "finetune": 0.0078125}
    phases = [f"phases.{name}.{key}" for name, lr in rates.items() for key in (f"lr={lr}", "gamma=0.5")]
    shared = (*phases, "data.train_size=80", "teacher.epochs=1", f"optimizer.name={chosen}")
    run_experiment(tiny(*shared, "step.capture=false"), tmp_path / "eager", console=quiet())
    assert graphs.captures == 0

    with monkeypatch.context() as patch:
        before_step(patch, 5, interrupt, "train_on")  # the dataset is resident: the graph makes its batches itself
        with pytest.raises(Interrupted, match=r"stopped by SIGINT after step 5"):
            run_experiment(tiny(*shared), tmp_path / "captured", console=quiet())
    console = quiet()
    run_experiment(tiny(*shared), tmp_path / "captured", resume=True, console=console)
    assert graphs.replays == 3 + 3 * 3  # every step of teacher and student, 80 images in batches of 32, 32 and 16
    assert "steps replayed as a CUDA graph" in console.file.getvalue()
    assert not differing(weights(tmp_path / "captured", NAME), weights(tmp_path / "eager", NAME))
