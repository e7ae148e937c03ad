"""What callbacks and trackers are told of a run, and that nothing they do or raise changes it."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from training_helpers import differing, quiet

import lit_fast as lf
from lit_fast.errors import ConfigError
from lit_fast.runs.schema import RunResult
from lit_fast.training.callbacks import Listeners, RunInfo, StepEnd
from lit_fast.training.progress import EpochLines, ProgressBar, describe, wrapped

OVERRIDES = ("epochs=2", "batch_size=8", "logging.tensorboard=false", "step.device=cpu", "logging.every=2")
STEPS = 12  # two epochs of six
METHODS = ("on_train_begin", "on_step_end", "on_log", "on_sections", "on_epoch_end", "on_train_end")


class Net(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.low = nn.Sequential(*[nn.Linear(8, 8) for _ in range(depth)], nn.ReLU())
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.low(self.first(x.flatten(1))))


def data() -> lf.data.Data:
    labels = torch.arange(80) % 2
    images = (torch.randint(0, 60, (80, 1, 2, 3)) + 150 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    parts = [(images[part], labels[part]) for part in (slice(48), slice(48, 64), slice(64, 80))]
    return lf.data.from_arrays(train=parts[0], val=parts[1], test=parts[2])


def distill(folder: Path, *callbacks: lf.Callback, overrides: tuple[str, ...] = (), resume: bool = False) -> nn.Module:
    torch.manual_seed(0)
    given, teacher, student = data(), Net(2), Net(1)
    for images, labels in given.train_batches(0, batch_size=48, seed=0):
        optimizer = torch.optim.Adam(teacher.parameters(), lr=0.05)
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(teacher(images), labels).backward()
            optimizer.step()
    lf.distill(
        lf.split(teacher, at=["low"]),
        lf.split(student, at=["low"]),
        given,
        recipe="digits",
        run_dir=folder,
        overrides=[*OVERRIDES, "logging.sections_every=4", *overrides],
        resume=resume,
        console=quiet(),
        callbacks=callbacks,
    )
    return student


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The student's weights of a run that nobody but its own log listens to."""
    return dict(distill(tmp_path_factory.mktemp("alone") / "run").state_dict())


class Noting(lf.Callback):
    """Writes down what it is told; ``breaks`` names the method that raises ``error`` when it is called again."""

    def __init__(self, breaks: str = "", error: BaseException | None = None, again: int = 0) -> None:
        self.told: list[tuple[str, int]] = []
        self.breaks, self.error, self.again = breaks, error, again

    def _note(self, what: str, step: int) -> None:
        self.told.append((what, step))
        if what == self.breaks and self.error is not None:
            self.again -= 1
            if self.again < 0:
                raise self.error

    def on_train_begin(self, run: RunInfo) -> None:
        self.run = run
        self._note("on_train_begin", run.step)

    def on_step_end(self, end: StepEnd) -> None:
        self.losses = end.losses
        self._note("on_step_end", end.step)

    def on_log(self, step: int, values: Mapping[str, Any]) -> None:
        self.logged = values
        self._note("on_log", step)

    def on_sections(self, step: int, values: Mapping[str, Any]) -> None:
        self._note("on_sections", step)

    def on_epoch_end(self, step: int, values: Mapping[str, Any]) -> None:
        self.epoch = values
        self._note("on_epoch_end", step)

    def on_train_end(self, result: RunResult | None) -> None:
        self.result = result
        self._note("on_train_end", -1)


def test_a_callback_is_told_of_steps_logs_sections_epochs_and_the_end(
    undisturbed: dict[str, Tensor], tmp_path: Path
) -> None:
    noting = Noting()
    student = distill(tmp_path / "run", noting)
    steps = {what: [step for named, step in noting.told if named == what] for what in METHODS}
    assert steps["on_step_end"] == list(range(1, STEPS + 1))
    assert steps["on_log"] == list(range(2, STEPS + 1, 2))
    assert steps["on_sections"] == [4, 8, 12]
    assert steps["on_epoch_end"] == [6, 12]
    assert (noting.told[0], noting.told[-1]) == (("on_train_begin", 0), ("on_train_end", -1))
    assert (noting.run.name, noting.run.steps) == ("net-lit-seed0", STEPS)
    assert noting.run.settings["batch_size"] == 8
    assert noting.result == json.loads((noting.run.folder / "result.json").read_text())
    assert not differing(dict(student.state_dict()), undisturbed)
    lines = [json.loads(line) for line in (noting.run.folder / "log.jsonl").read_text().splitlines()]
    assert [line for line in lines if line["event"] == "epoch"][-1] == {"event": "epoch", "step": 12, **noting.epoch}
    assert [line for line in lines if line["event"] == "step"][-1] == {"event": "step", "step": 12, **noting.logged}


def test_the_losses_of_a_step_are_tensors_by_name(tmp_path: Path) -> None:
    noting = Noting()
    distill(tmp_path / "run", noting)
    assert set(noting.losses) == {"loss", "ce", "kl", "ir"}
    assert isinstance(noting.losses["loss"], Tensor)
    assert float(noting.losses["loss"]) == noting.logged["loss"]


def test_a_step_costs_nothing_where_nobody_listens_to_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*_: object) -> None:
        raise AssertionError("made for nobody")

    monkeypatch.setattr("lit_fast.training.callbacks.StepEnd", made)
    with Listeners([lf.Callback()]) as listeners:
        listeners.on_train_begin(RunInfo("run", Path(), {}, {}, 1))
        listeners.on_step_end(1, {}, lambda kind, row: {})


@pytest.mark.parametrize("method", METHODS)
def test_what_a_callback_raises_loses_neither_the_run_nor_a_bit_of_it(
    method: str, undisturbed: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    noting, other = Noting(method, ValueError("of the tracker")), Noting()
    student = distill(tmp_path / "run", noting, other)
    assert not differing(dict(student.state_dict()), undisturbed)
    assert [what for what, _ in noting.told].count(method) == 1
    assert noting.told[-1][0] == method  # told nothing more
    assert other.result is not None
    assert f"Noting.{method} failed (ValueError: of the tracker)" in caplog.text


@pytest.mark.parametrize("kind", [KeyboardInterrupt, "required"])
def test_what_ends_the_run_leaves_it_to_be_resumed_exactly(
    kind: Any, undisturbed: dict[str, Tensor], tmp_path: Path
) -> None:
    noting = Noting("on_log", KeyboardInterrupt() if kind is KeyboardInterrupt else OSError("full"), again=4)
    noting.required = kind == "required"
    with pytest.raises((KeyboardInterrupt, OSError)):
        distill(tmp_path / "run", noting)
    assert noting.result is None
    assert noting.told[-1] == ("on_train_end", -1)
    again = Noting()
    student = distill(tmp_path / "run", again, resume=True)
    assert again.told[0] == ("on_train_begin", 6)  # the end of the first epoch
    assert not differing(dict(student.state_dict()), undisturbed)


def test_what_is_no_callback_is_refused_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"derived from lf\.Callback, got <built-in function print>"):
        distill(tmp_path / "run", print)  # type: ignore[arg-type]


# -- the console -------------------------------------------------------------------------------------------------------


def test_on_80_columns_the_bar_keeps_its_time_and_no_line_breaks_within_a_number() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    values = {"epoch": 3, "phase": "lit", "lr": 0.02, "loss": 2.3021, "ce": 2.3021, "kl": 22.1234}
    values |= {"ir": [0.01234, 0.02345, 0.03456], "images_per_second": 12345.0, "seconds": 12.0}
    run = RunInfo("resnext20-c16-one_ir_teacher_input-seed0", Path(), {}, {}, steps=100_000)
    bar, lines = ProgressBar(console, describe), EpochLines(console, 12, describe)
    for callback in (bar, lines):
        callback.on_train_begin(run)
    bar.on_log(50_000, values)
    bar.on_epoch_end(50_000, values)
    bar._bar.refresh()
    lines.on_epoch_end(50_000, values)
    bar.on_train_end(None)
    printed = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]|\r", "\n", console.file.getvalue()).splitlines()  # type: ignore[attr-defined]
    assert max(map(len, printed)) <= 80
    assert any("50000/100000 --:--" in line for line in printed)
    assert "    ce 2.3021  kl 22.1234  ir 0.0123 0.0234 0.0346  12 s" in printed


def test_a_line_is_broken_between_its_parts_alone() -> None:
    assert wrapped("name  loss 2.3  ce 1.25  val 10.00 %", 20) == "name  loss 2.3\n    ce 1.25\n    val 10.00 %"


# -- trackers ------------------------------------------------------------------------------------------------------


def module(name: str, monkeypatch: pytest.MonkeyPatch, **content: Any) -> None:
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None)
    vars(made).update(content)
    monkeypatch.setitem(sys.modules, name, made)


class FakeWandB:
    """What `wandb.init` gives, and what was done with it; all runs by their id."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inits: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.summary: dict[str, float] = {}
        self.codes: list[int] = []
        module("wandb", monkeypatch, init=self.init)

    def init(self, **options: Any) -> Any:
        self.inits.append(options)
        return SimpleNamespace(
            define_metric=lambda *_, **__: None,
            log=self.logged.append,
            summary=self.summary,
            finish=lambda exit_code: self.codes.append(exit_code),
        )


class FakeMLflow:
    """What `mlflow.MlflowClient` keeps of runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[str] = []
        self.metrics: list[tuple[str, float, int]] = []
        self.params: dict[str, str] = {}
        self.ends: list[str] = []
        self.waited = 0
        module("mlflow", monkeypatch, MlflowClient=lambda: self)
        metric, param = (lambda key, value, _, step: (key, value, step)), (lambda key, value: (key, value))
        module("mlflow.entities", monkeypatch, Metric=metric, Param=param)

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return "7"

    def create_run(self, experiment: str, run_name: str) -> Any:
        self.runs.append(run_name)
        return SimpleNamespace(info=SimpleNamespace(run_id=f"id{len(self.runs)}"))

    def update_run(self, run_id: str, status: str) -> None:
        self.ends.append(f"{run_id} {status}")

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), synchronous: bool = True) -> Any:
        assert run_id == "id1"
        self.metrics += metrics
        self.params |= dict(params)
        return SimpleNamespace(wait=self.wait)

    def wait(self) -> None:
        self.waited += 1

    def set_terminated(self, run_id: str, status: str) -> None:
        self.ends.append(f"{run_id} {status}")


def test_trackers_are_told_the_settings_every_number_and_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb, mlflow = FakeWandB(monkeypatch), FakeMLflow(monkeypatch)
    distill(tmp_path / "run", overrides=("logging.trackers=[wandb, mlflow]",))
    (init,) = wandb.inits
    assert (init["name"], init["group"], init["project"]) == ("net-lit-seed0", "run", "lit_fast")
    assert init["config"]["loss"]["tau"] == 6.0
    assert mlflow.params["loss.tau"] == "6.0"
    by_step = {line["global_step"]: line for line in wandb.logged if "step/loss" in line}
    assert sorted(by_step) == list(range(2, STEPS + 1, 2))
    assert ("step/ir1", by_step[4]["step/ir1"], 4) in mlflow.metrics
    assert {"epoch/val_accuracy", "sections/teacher_fed1"} <= {key for line in wandb.logged for key in line}
    assert wandb.summary["accuracy/test_last"] == 100.0
    assert ("accuracy/test_last", 100.0, STEPS) in mlflow.metrics
    assert (wandb.codes, mlflow.ends) == ([0], ["id1 FINISHED"])
    assert mlflow.waited == len(wandb.logged) + 1


def test_a_resumed_run_goes_on_in_the_same_run_of_each_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb, mlflow = FakeWandB(monkeypatch), FakeMLflow(monkeypatch)
    chosen = ("logging.trackers=[wandb, mlflow]",)
    with pytest.raises(KeyboardInterrupt):
        distill(tmp_path / "run", Noting("on_log", KeyboardInterrupt(), again=4), overrides=chosen)
    distill(tmp_path / "run", overrides=chosen, resume=True)
    first, second = wandb.inits
    assert first["id"] == second["id"]
    assert second["resume"] == "allow"
    assert mlflow.runs == ["net-lit-seed0"]
    assert wandb.codes == [1, 0]
    assert mlflow.ends == ["id1 KILLED", "id1 RUNNING", "id1 FINISHED"]


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow-skinny")])
def test_a_tracker_that_is_not_installed_is_told_before_any_work(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_fast.training.callbacks.trackers.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=f"{name} is not installed here: pip install {package}"):
        distill(tmp_path / "run", overrides=(f"logging.trackers=[{name}]",))
    assert not (tmp_path / "run").exists()
