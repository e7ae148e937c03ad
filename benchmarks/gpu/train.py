"""Trains the students of train.sh, one after the other in one process, until all have ended or the time is up."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import hashlib
import io
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console

import lit_fast as lf
from benchmarks.gpu import train_data, train_plan, train_report
from benchmarks.gpu.train_plan import Run, Speed
from benchmarks.machine import describe
from lit_fast import models
from lit_fast.data import Data
from lit_fast.data.formats.cifar import FAMILIES
from lit_fast.errors import Interrupted
from lit_fast.files import atomic_write, write_json
from lit_fast.models.resnet import ResNet
from lit_fast.runs.weights import normalization_of
from lit_fast.sections.model import SplitModel
from lit_fast.settings.classifier import Experiment, load_experiment

RECIPE = "resnet-cifar10"
TEACHER, STUDENT = "resnet56", "resnet20"
MORE_TO_DO = 75
_TRIAL_STEPS, _DRY_TRIAL_STEPS, _TRIAL_EPOCHS = 50, 2, 3
# Beside the batch. Nothing that a run does not need is done between its epochs. The learning rates are the recipe's:
# 0.1 is also what the authors of ResNet use at batch 128.
_SETTINGS = (
    "step.precision=bf16",
    "step.capture=true",
    "logging.every=100",
    "logging.sections_every=0",
    "logging.tensorboard=false",
)
_BATCH, _DRY_BATCH = 128, 48
_CARRIED = (
    "plan.json",
    "results.json",
    "weights.safetensors",
)  # enough for a call elsewhere to go on with the next run


class TrainError(ValueError):
    """Arguments or folders that do not fit; the message says how to mend it."""


class Lines(io.TextIOBase):
    """The trainer's progress: shown, added to log.txt, and what follows an epoch is done after each."""

    def __init__(self, log: Path) -> None:
        self._log = log.open("a", encoding="utf-8")
        self.after_epoch: Any = lambda: None

    def write(self, text: str) -> int:
        sys.stdout.write(text)
        sys.stdout.flush()
        self._log.write(text)
        self._log.flush()
        if "  epoch " in text:
            self.after_epoch()
        return len(text)


class Deadline:
    """Asks this process to stop, as `kill` would, when the time is up; between two runs that ends it, too."""

    def __init__(self, seconds: float, started: float) -> None:
        self._reserve = min(8.0, 0.1 * seconds)  # for the last table and its figure
        self._ends = started + seconds - self._reserve
        self._timer = threading.Timer(max(0.0, self.left()), os.kill, (os.getpid(), signal.SIGTERM))
        self._timer.daemon = True

    def left(self) -> float:
        """Seconds for training."""
        return self._ends - time.time()

    def __enter__(self) -> Deadline:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    @staticmethod
    def ignore() -> None:
        """Let what is written now be written to its end."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    @classmethod
    def _stop(cls, number: int, frame: FrameType | None) -> None:
        cls.ignore()
        raise Interrupted(f"stopped by {signal.Signals(number).name}")


@dataclass
class Students:
    """What every run shares.

    Attributes:
        out: folder of the results.
        state: folder of runs and checkpoints, which may be the same.
        plan: as in plan.json.
        finished: results of runs by their names, as in results.json.
        failed: messages of runs that ended with an error in this call.
    """

    out: Path
    state: Path
    cifar: train_data.Cifar
    teacher: SplitModel
    normalisation: train_data.Normalisation
    settings: tuple[str, ...]
    dry_run: bool
    facts: dict[str, Any]
    plan: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)  # the teacher's result
    finished: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    _saved_at: float = 0.0

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.state.mkdir(parents=True, exist_ok=True)
        self._adopt()
        self.lines = Lines(self.out / "log.txt")
        self.console = Console(file=self.lines, width=200)  # type: ignore[arg-type]
        self.data = self.cifar.data(self.normalisation)

    # -- what is kept ------------------------------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Take over what earlier calls left, from the state or else from the results alone."""
        for name in _CARRIED:
            if not (self.state / name).exists() and (self.out / name).exists():
                shutil.copy(self.out / name, self.state / name)
        if (self.state / "plan.json").exists():
            self.plan = json.loads((self.state / "plan.json").read_text(encoding="utf-8"))
            there, mine = self.plan["identity"], self.identity()
            differing = [
                f"{key} ({there.get(key)!r} there, {mine[key]!r} now)" for key in mine if there.get(key) != mine[key]
            ]
            if differing:
                raise TrainError(
                    f"{self.state} holds other students; they differ in {'; '.join(differing)}. Choose another OUT"
                )
        if (self.state / "results.json").exists():
            content = json.loads((self.state / "results.json").read_text(encoding="utf-8"))
            self.given = content["teacher"]
            self.finished = {run["name"]: run for run in content["runs"]}
        if (self.state / "weights.safetensors").exists():
            from safetensors.torch import load_file

            self.weights = load_file(self.state / "weights.safetensors")

    def identity(self) -> dict[str, Any]:
        """What two calls must have in common."""
        return {
            "images": self.cifar.digest,
            "teacher": self.facts["teacher_sha256"],
            "settings": list(self.settings),
            "dry_run": self.dry_run,
        }

    def save(self, *, figure: bool = False) -> None:
        """Write the results as they are now; each file is there whole or not at all."""
        self._saved_at = time.monotonic()
        if not self.given:
            self._find_teacher()
        content = {
            **self.facts,
            "data": self.cifar.share,
            "partial": self.cifar.partial,
            "splits": {name: len(self.data.split(name)) for name in ("train", "val", "test")},
            "settings": list(self.settings),
            "plan": self.plan,
            "schedules": {way: self._schedule(way) for way in train_plan.WAYS} if self.plan else {},
            "teacher": self.given,
            "runs": list(self.finished.values()),
            "begun": self._begun(),
            "failed": self.failed,
            "warnings": self.warnings,
        }
        folders = {self.out, self.state}
        for folder in folders:
            write_json(folder / "results.json", content)
            if self.plan:
                write_json(folder / "plan.json", self.plan)
        train_report.write(content, self.out, figure=figure)

    def _find_teacher(self) -> None:
        """What the teacher was measured at, from the first run, whether it has ended or not."""
        for file in (self.state / "runs").glob("*/results.json"):
            self.given = json.loads(file.read_text(encoding="utf-8"))["results"][0]
            return

    def _after_epoch(self) -> None:
        if time.monotonic() - self._saved_at > 5.0:  # an epoch may take less than a second
            self.save()

    def warn(self, message: str) -> None:
        """Note a warning, once: that steps are not captured, say."""
        if message not in self.warnings:
            self.warnings.append(message)
            self.lines.write(f"warning: {message}\n")

    def _begun(self) -> dict[str, list[dict[str, Any]]]:
        """The epochs so far of runs that have not ended."""
        found = {}
        for run in self.runs():
            logs = list((self.state / "runs" / run.name / "runs").glob("*/log.jsonl"))
            if run.name not in self.finished and logs:
                found[run.name] = train_report.epochs_in(logs[0])
        return found

    def _keep_weights(self, name: str, file: Path) -> None:
        """Add a run's last weights to those of the others: one file, so that few have to be brought back."""
        from safetensors.torch import load_file, save_file

        self.weights |= {f"{name}/{key}": tensor for key, tensor in load_file(file).items()}
        for folder in {self.out, self.state}:
            atomic_write(folder / "weights.safetensors", lambda path: save_file(self.weights, path))

    # -- training ----------------------------------------------------------------------------------------------------

    def runs(self) -> list[Run]:
        return list(train_plan.runs(self.plan, self.facts["seeds"])) if self.plan else []

    def _experiment(self, way: str, epochs: int) -> Experiment:
        return load_experiment(
            RECIPE, None, [*self.settings, f"epochs={epochs}", f"variants=[{way}]"], own_objects=True
        )

    def _schedule(self, way: str) -> list[dict[str, Any]]:
        plan = self._experiment(way, self.plan["epochs"]).plan(way)  # type: ignore[arg-type]
        return [phase.model_dump() for phase in plan]

    def distill(self, way: str, epochs: int, seed: int, data: Data, folder: Path) -> list[dict[str, Any]]:
        """One run of the library, begun or gone on with: the results of the teacher and of the student."""
        torch.manual_seed(seed)
        student = lf.split(ResNet(train_data.STUDENT_DEPTH) if self.dry_run else models.create(STUDENT))
        try:
            return lf.distill(
                self.teacher,
                student,
                data,
                recipe=RECIPE,
                run_dir=folder,
                variant=way,
                seed=seed,
                resume=True,
                overrides=[*self.settings, f"epochs={epochs}"],
                console=self.console,
            ).results
        finally:
            gc.collect()  # a captured step's memory goes with the step
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def trial(self, way: str) -> Speed:
        """A few short epochs: how fast a way of training is here."""
        batch = self._experiment(way, 1).batch_size
        size = min(len(self.data.train), (_DRY_TRIAL_STEPS if self.dry_run else _TRIAL_STEPS) * batch)
        data = self.cifar.data(self.normalisation, train_size=size // batch * batch or size, test_size=2 * batch)
        began, ends = time.monotonic(), []
        self.lines.after_epoch = lambda: ends.append(time.monotonic())
        with tempfile.TemporaryDirectory(dir=self.state, prefix="trial-") as folder:
            student = self.distill(way, _TRIAL_EPOCHS, 0, data, Path(folder) / "run")[1]
        self.lines.after_epoch = lambda: None
        first, second = student["history"][:2]  # of the same phase: LIT's fine-tuning is the third
        training = second["seconds"] - first["seconds"]
        beside = ends[1] - ends[0] - training
        start = time.monotonic() - began - _TRIAL_EPOCHS * (training + beside)
        return Speed(training / len(data.train), max(beside, 0.0), max(start, 0.0))

    def make_plan(self, seconds: float, epochs: int | None) -> None:
        """Decide on the epochs, by trials, and keep that for all calls."""
        began = time.monotonic()
        speeds = {way: self.trial(way) for way in reversed(train_plan.WAYS)}  # the simplest first
        # The first trial has started CUDA, too; from scratch is never slower to begin than with a teacher.
        speeds["scratch"] = replace(speeds["scratch"], start=min(speeds["scratch"].start, speeds["kd"].start))
        images = len(self.data.train)
        fitting = train_plan.epochs_that_fit(speeds, images, seconds - (time.monotonic() - began))
        self.plan = {
            "identity": self.identity(),
            "seconds": seconds,
            "epochs": epochs or fitting,
            "equal_time": {},
            "speeds": {way: asdict(speed) for way, speed in speeds.items()},
        }
        rates = ", ".join(f"{way} {1 / speed.image:,.0f} images/s" for way, speed in speeds.items())
        self.console.print(
            f"trials: {rates}; {self.plan['epochs']} epochs each fit into {seconds:.0f} s", highlight=False
        )
        self.save()

    def train(self, run: Run) -> None:
        """One run to its end; an error of its own is noted, and the others go on."""
        self.lines.after_epoch = self._after_epoch
        folder = self.state / "runs" / run.name
        try:
            self.given, student = self.distill(run.way, run.epochs, run.seed, self.data, folder)
        except Interrupted:
            raise
        except Exception as error:
            self.failed[run.name] = f"{type(error).__name__}: {error}"
            self.lines.write(traceback.format_exc())
        else:
            keep = ("epochs", "seconds", "images_per_second", "accuracy", "history", "layers", "parameters", "mmacs")
            images = student["history"][-1]["images"]
            self.finished[run.name] = {
                **asdict(run),
                "name": run.name,
                "images": images,
                **{k: student[k] for k in keep},
            }
            self.plan["equal_time"] = train_plan.partner_epochs(self.plan, self.finished)
            self._keep_weights(run.name, folder / student["files"]["last"])
        self.save()

    def next_run(self, left: float) -> Run | None:
        """The first that has not ended; of a further seed only if its time is left."""
        speeds = {way: Speed(**speed) for way, speed in self.plan["speeds"].items()}
        for run in self.runs():
            if run.name in self.finished or run.name in self.failed:
                continue
            if run.seed and train_plan.expected_seconds(run, speeds, len(self.data.train)) > left:
                return None
            return run
        return None

    @property
    def complete(self) -> bool:
        """Whether all runs of the first seed have ended."""
        return bool(self.plan) and all(run.name in self.finished for run in self.runs() if run.seed == 0)


def main() -> int:
    """Exit status: 0 once every run of the first seed has ended, 75 while there is more to do, 1 after an error."""
    options = _options()
    if scratch := os.environ.get("LIT_FAST_SCRATCH"):  # of train.sh, which this process replaced
        atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    started = float(os.environ.get("LIT_FAST_STARTED", time.time()))
    try:
        with Deadline(options.seconds, started) as deadline, _students(options) as students:
            warnings.showwarning = lambda message, *_: students.warn(str(message))
            students.console.print(_opening(students), highlight=False)
            if not students.plan:
                later = max(0.0, (options.in_all or 0.0) - options.seconds)
                students.make_plan(deadline.left() + later, options.epochs)
            while (run := students.next_run(deadline.left())) is not None:
                students.train(run)
    except (TrainError, train_data.pack.PackError) as error:
        print(f"train.sh: {error}", file=sys.stderr)
        return 1
    except Interrupted as stop:  # before there was anything to keep
        print(f"train.sh: {stop}", file=sys.stderr)
        return MORE_TO_DO
    if students.failed:
        return 1
    return 0 if students.complete else MORE_TO_DO


@contextlib.contextmanager
def _students(options: argparse.Namespace) -> Iterator[Students]:
    """The students; however it ends, by time or by an error, what there is has been written."""
    students = open_students(options)
    try:
        yield students
    except Interrupted as stop:
        students.console.print(f"{stop}", highlight=False, markup=False)
    finally:
        Deadline.ignore()
        students.save(figure=True)
        print((students.out / "table.md").read_text(encoding="utf-8"))


def open_students(options: argparse.Namespace) -> Students:
    """The students of a call, with what earlier calls left."""
    out = options.out.resolve()
    state = Path(os.environ.get("LIT_FAST_STATE") or out).resolve()
    if options.dry_run:
        state.mkdir(parents=True, exist_ok=True)
        options.data, options.teacher = train_data.make_dry(state / "dry-data")
    teacher = ResNet(train_data.TEACHER_DEPTH) if options.dry_run else models.create(TEACHER)
    if not options.teacher.is_file():
        raise TrainError(f"TEACHER: no such file: {options.teacher}; expected the weights of a {TEACHER}")
    models.load_checkpoint(teacher, options.teacher)
    family = FAMILIES["cifar10"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    facts = {
        **describe(device),
        "command": shlex.join(["benchmarks/gpu/train.sh", *sys.argv[1:]]),
        "dry_run": options.dry_run,
        "seeds": options.seeds,
        "teacher_sha256": hashlib.sha256(options.teacher.read_bytes()).hexdigest(),
        "networks": [f"resnet{train_data.TEACHER_DEPTH}", f"resnet{train_data.STUDENT_DEPTH}"]
        if options.dry_run
        else [TEACHER, STUDENT],
    }
    return Students(
        out,
        state,
        train_data.read(options.data),
        lf.split(teacher),
        normalization_of(options.teacher) or (family.mean, family.std),
        (f"batch_size={_DRY_BATCH if options.dry_run else _BATCH}", *_SETTINGS, *options.set),
        options.dry_run,
        facts,
    )


def _opening(students: Students) -> str:
    cifar = students.cifar
    digests = "their digests are right" if cifar.images.checked and cifar.packed else "no digests to check"
    return f"{students.facts['device']}; {cifar.share}, {len(cifar.images.test.labels):,} test images; {digests}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu/train.sh",
        usage="train.sh DATA TEACHER OUT SECONDS [options]\n       train.sh --dry-run OUT [SECONDS] [options]",
    )
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--dry-run", action="store_true", help="a tiny network on images made here, through all of it")
    parser.add_argument("--in-all", type=float, metavar="S", help="plan for calls of S seconds together, not this one")
    parser.add_argument("--epochs", type=int, help="of LIT, KD and scratch; default: as many as SECONDS allow")
    parser.add_argument(
        "--seeds", type=int, help="at most, while time is left after the first (default: 3; dry run: 1)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe; repeatable")
    options = parser.parse_intermixed_args()
    given = options.arguments
    if options.dry_run and len(given) in (1, 2):
        options.out, options.seconds = Path(given[0]), float(given[1]) if len(given) == 2 else 40.0
    elif not options.dry_run and len(given) == 4:
        options.data, options.teacher, options.out = given[0], Path(given[1]), Path(given[2])
        options.seconds = float(given[3])
    else:
        parser.error(f"expected {'OUT [SECONDS]' if options.dry_run else 'DATA TEACHER OUT SECONDS'}, got {given}")
    options.seeds = options.seeds or (1 if options.dry_run else 3)
    return options


if __name__ == "__main__":
    sys.exit(main())
