"""One run: the phases of one student (or teacher), from its first step to its weights and scores.

A training batch is a pure function of (seed, epoch, step) and a learning rate one of the step, so a checkpoint needs
only the tensors, the position and the generators' states to make a resumed run bit-identical to one never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from lit_fast.backends.options import LossParts
from lit_fast.data.loaders import Loader
from lit_fast.data.loaders.resident import ResidentLoader
from lit_fast.errors import DataError, NonFiniteLoss, NotFinite
from lit_fast.parallel import ALONE, Workers
from lit_fast.projector import Projectors
from lit_fast.running_stats import recalibrate
from lit_fast.sections import SplitModel, copy_parts
from lit_fast.step import LITStep
from lit_fast.training.config import Experiment
from lit_fast.training.environment import cudnn_benchmark, tf32
from lit_fast.training.evaluation import Scores, evaluate
from lit_fast.training.interrupt import SignalWatch, stopped
from lit_fast.training.logs import RunLog
from lit_fast.training.phase_step import build_step
from lit_fast.training.progress import RunProgress, describe, epoch_line
from lit_fast.training.run_state import RunState, load_into
from lit_fast.training.schedule import Phase
from lit_fast.training.section_looks import SectionLooks
from lit_fast.training.tally import LossTally, named
from lit_fast.training.variants import VARIANTS

__all__ = ["Outcome", "RunSpec", "Trainer"]

_EVAL_BATCH = 256
_LEAST_ROWS = 2  # that BatchNorm can train on


@dataclass(frozen=True)
class RunSpec:
    """What one run trains: its name, its variant, its seed and the phases it goes through.

    With a ``sparsity`` it is the fine-tuning of a student that was trained and pruned (`lit_fast.training.pruning`).
    """

    name: str
    variant: str
    seed: int
    phases: tuple[Phase, ...]
    sparsity: float | None = None

    @property
    def epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases)


@dataclass(frozen=True)
class Outcome:
    """What a run ends with: weights (last, and best on validation), the history, and its cost."""

    last: dict[str, Tensor]
    best: dict[str, Tensor]
    best_epoch: int
    history: list[dict[str, Any]]
    seconds: float
    images: int


class Trainer:
    """Trains ``student`` through ``spec.phases``, with checkpoints under ``folder``.

    Args:
        spec: the run.
        folder: its folder; a checkpoint found there is continued.
        loader: of the dataset, train and validation splits of which are used; left open.
        student: the split student, on its device, freshly initialised. Trained in place.
        teacher: the split teacher; ``None`` for the variant ``scratch``.
        settings: batch size, loss, optimizer, step, copied parts.
        projector: where the widths differ.
        workers: the processes that train this run together; rank 0 evaluates and writes.
        console, signals: where progress goes; who may ask to stop.

    Raises:
        NonFiniteLoss, Interrupted, StoreError: see there; ``--resume`` then goes on from the last checkpoint.
    """

    def __init__(
        self,
        spec: RunSpec,
        folder: Path,
        loader: Loader,
        student: SplitModel,
        teacher: SplitModel | None,
        settings: Experiment,
        *,
        console: Console,
        signals: SignalWatch,
        projector: Projectors | None = None,
        workers: Workers = ALONE,
    ) -> None:
        self.workers = workers
        self.spec, self.folder, self.settings = spec, folder, settings
        self.loader, self.data = loader, loader.data
        self.student, self.teacher, self.projector = student, teacher, projector
        self.console, self.signals = console, signals
        self._said_engine = False
        self.device = next(student.parameters()).device
        self.steps_per_epoch = self.data.steps_per_epoch(settings.batch_size)
        self.switches = VARIANTS[spec.variant]
        self.state = RunState(folder, student, projector, workers)
        self.position = self.state.position
        self.step: LITStep | None = None
        self.looks: SectionLooks | None = None

    # -- the whole run -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Build every phase's step once, so that what cannot work is refused before anything is trained."""
        self._prepare()
        for phase in self.spec.phases:
            self._enter(phase, None)

    def run(self) -> Outcome:
        """Train what is left to train."""
        self._prepare()
        pending = self.state.restore()
        self.log = self._open_log()
        self.looks = self._section_looks()
        total = self.spec.epochs * self.steps_per_epoch
        try:
            with (
                tf32(self.settings.step.tf32),
                cudnn_benchmark(self.settings.step.cudnn_benchmark),
                RunProgress(self.console, self.spec.name, total, self.position.total_steps) as self.progress,
            ):
                while self.position.phase < len(self.spec.phases):
                    phase = self.spec.phases[self.position.phase]
                    self._enter(phase, pending)
                    pending = None
                    self._say_engine()
                    while self.position.epoch < phase.epochs:
                        try:
                            self._train_epoch(phase)
                        except DataError:  # a file in the middle of the epoch
                            self._keep(phase)
                            raise
                        self._end_epoch(phase)
                    self.position.phase += 1
                    self.position.epoch = 0
                    self.step = None
                    self.state.save(None)
        finally:
            if self.log is not None:
                self.log.close()
        return Outcome(
            last=self.state.weights(),
            best=self.state.best if self.state.best is not None else self.state.weights(),
            best_epoch=self.position.best_epoch,
            history=self.position.history,
            seconds=self.position.seconds,
            images=self.position.images,
        )

    def scores(self, split: str) -> Scores:
        """Accuracy and loss of the student as it is now on a split of the data."""
        return evaluate(self.student.model, self.loader.eval_batches(split, batch_size=_EVAL_BATCH))

    def _open_log(self) -> RunLog | None:
        if not self.workers.leads:
            return None
        tensorboard = self.settings.logging.tensorboard
        return RunLog(self.folder, resume_step=self.position.total_steps, tensorboard=tensorboard)

    def _section_looks(self) -> SectionLooks | None:
        """Who looks at the sections: nobody without a teacher, or where a projector stands between the networks."""
        every, rows = self.settings.logging.sections_every, min(self.settings.batch_size, len(self.data.val))
        if self.teacher is None or self.projector is not None or every == 0 or rows < _LEAST_ROWS:
            return None
        return SectionLooks(self.data, rows, self.device, every)

    def _prepare(self) -> None:
        """Give the student what it starts with."""
        if self.teacher is not None and self.switches.ir != "none":
            copy_parts(self.teacher, self.student, self.settings.student.copied)

    def _say_engine(self) -> None:
        step = self.step
        if step is not None and step.teacher is not None and not self._said_engine:
            self._said_engine = True
            line = f"{self.spec.name}: engine {step.engine} ({step.engine_reason})"
            if step.captured:
                line += ", steps replayed as a CUDA graph"
            elif self.device.type == "cuda":
                line += f", steps not captured ({step.capture_reason})"
            self.console.print(line, highlight=False)

    # -- phases ------------------------------------------------------------------------------------------------------

    def _enter(self, phase: Phase, pending: Mapping[str, Any] | None) -> None:
        """Freeze what the phase freezes and build its step; ``pending`` is a checkpoint's state for it."""
        in_lit = phase.name == "lit"
        chosen = self.settings.student
        if self.switches.ir != "none":
            self.student.unfreeze(*self.student.part_names)
            frozen = chosen.copied if in_lit else chosen.frozen_in_finetune
            self.student.freeze(*frozen)
        self.student.train()
        self.step = build_step(
            self.settings, self.switches, self.student, self.teacher, self.projector, self.workers, in_lit=in_lit
        )
        if pending is not None:
            load_into(self.step, pending)

    def _train_epoch(self, phase: Phase) -> None:
        step, at = self.step, self.position
        assert step is not None
        every = self.settings.logging.every
        logged_at, logged_images = time.perf_counter(), at.images
        saved_at = started = time.perf_counter()
        before = at.seconds
        for train in self._steps(step):
            lr = phase.lr_at(at.epoch * self.steps_per_epoch + at.step, self.steps_per_epoch)
            for group in step.optimizer.param_groups:
                group["lr"] = lr
            rows = self._batch_rows(at.step)
            parts = train()
            at.step += 1
            at.total_steps += 1
            at.images += rows
            self.state.tally.add(parts, rows)
            self.progress.step(at.total_steps)
            if at.total_steps % every == 0:
                row = self._read(phase, lr)
                now = time.perf_counter()
                self._log_step(phase, lr, row, (at.images - logged_images) / (now - logged_at))
                logged_at, logged_images = now, at.images
            if self.looks is not None and self.looks.due(at.total_steps):
                spent = self._look(self.looks, phase)
                started, logged_at = started + spent, logged_at + spent
            if at.step == self.steps_per_epoch:
                continue  # the end of an epoch is saved with what belongs to it
            stop = self._asked_to_stop(at.total_steps % every == 0)
            if stop or time.perf_counter() - saved_at > self.settings.checkpoint.every_seconds:
                self._read(phase, lr)
                at.seconds = before + time.perf_counter() - started
                self.state.save(self.step)
                saved_at = time.perf_counter()
                before, started = at.seconds, saved_at
            if stop:
                self._leave()
        self._read(phase, phase.lr_at((at.epoch + 1) * self.steps_per_epoch - 1, self.steps_per_epoch))
        at.seconds = before + time.perf_counter() - started

    def _steps(self, step: LITStep) -> Iterator[Callable[[], LossParts]]:
        """What is left of the epoch: a call for each step."""
        at, loader = self.position, self.loader
        options: dict[str, Any] = {
            "batch_size": self.settings.batch_size,
            "seed": self.spec.seed,
            "start_step": at.step,
            "augment": self.settings.data.augment,
        }
        if step.captured and isinstance(loader, ResidentLoader):  # the graph makes its batches itself
            for rows in loader.begin(at.total_epochs, **options):
                yield partial(step.train_on, loader.training, rows)
            return
        shard = (self.workers.rank, self.workers.size)
        for images, labels in loader.train_batches(at.total_epochs, **options, shard=shard):
            yield partial(step, images, labels)

    def _keep(self, phase: Phase) -> None:
        """Save the steps that were done before the data failed."""
        at = self.position
        self._read(phase, phase.lr_at(at.epoch * self.steps_per_epoch + at.step, self.steps_per_epoch))
        self.state.save(self.step)

    def _batch_rows(self, step: int) -> int:
        """Images of an epoch's batch, over all workers."""
        size = self.settings.batch_size
        return min(size, len(self.data.train) - step * size)

    def _asked_to_stop(self, at_meeting: bool) -> bool:
        """Whether any worker was. They stop after the same step, so several ask each other, now and then."""
        requested = self.signals.requested is not None
        if self.workers.size == 1:
            return requested
        return at_meeting and self.workers.any(requested)

    def _end_epoch(self, phase: Phase) -> None:
        at = self.position
        at.epoch, at.step = at.epoch + 1, 0
        at.total_epochs += 1
        ends_lit = phase.name == "lit" and at.epoch == phase.epochs
        if ends_lit and self.settings.step.bn_policy == "recalibrate":
            self._recalibrate()
        # Every worker looks: BatchNorm may be shared by all of them.
        sections = None if self.looks is None or self.step is None else self.looks.look(self.step)
        if self.workers.leads:
            self._record_epoch(phase, sections)
        self.state.tally = LossTally([], 0)
        if at.epoch < phase.epochs:  # the end of a phase is saved once the next one's position is known
            self.state.save(self.step)
            if self._asked_to_stop(at_meeting=True):
                self._leave()

    def _look(self, looks: SectionLooks, phase: Phase) -> float:
        """Look at the sections and log what is seen; returns the seconds that it took."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # steps that are still under way are training
        began = time.perf_counter()
        assert self.step is not None
        found = looks.look(self.step)
        if self.log is not None:
            at = self.position
            self.log.write("sections", at.total_steps, epoch=at.total_epochs + 1, phase=phase.name, **found)
        return time.perf_counter() - began

    def _record_epoch(self, phase: Phase, sections: dict[str, Any] | None) -> None:
        """Evaluate on the validation split, keep the best weights, write and show it."""
        at = self.position
        scores = self.scores("val")
        entry = {
            "epoch": at.total_epochs,
            "phase": phase.name,
            "lr": phase.lr_at(at.epoch * self.steps_per_epoch - 1, self.steps_per_epoch),
            **named(self.state.tally.means()),
            "val_accuracy": scores.accuracy,
            "val_loss": scores.loss,
            "seconds": at.seconds,
            "images": at.images,
            **({} if sections is None else {"sections": sections}),
        }
        at.history.append(entry)
        if scores.accuracy > at.best_accuracy:
            at.best_accuracy, at.best_epoch = scores.accuracy, at.total_epochs
            self.state.best = self.state.weights()
        if self.log is not None:
            self.log.write("epoch", at.total_steps, **entry)
        self.progress.say(epoch_line(self.spec.name, entry, self.spec.epochs))

    def _recalibrate(self) -> None:
        # Every worker on whole batches: then all have the statistics of the whole training set, and none waits.
        batches = self.loader.train_batches(
            self.position.total_epochs,
            batch_size=self.settings.batch_size,
            seed=self.spec.seed,
            augment=self.settings.data.augment,
        )
        recalibrate(self.student, (images for images, _ in batches))

    def _log_step(self, phase: Phase, lr: float, row: list[float], speed: float) -> None:
        at, parts = self.position, named(row)
        if self.log is not None:
            where = {"epoch": at.total_epochs + 1, "phase": phase.name, "lr": lr}
            self.log.write("step", at.total_steps, **where, **parts, images_per_second=speed)
        self.progress.status(describe(parts), speed)

    def _read(self, phase: Phase, lr: float) -> list[float]:
        """The parts of the last step, with all steps since the last reading checked and added up."""
        try:
            return self.state.tally.read()
        except NotFinite as found:
            step = self.position.total_steps - found.back
            raise NonFiniteLoss(self._advice(step, phase, lr, found.row)) from None

    def _advice(self, step: int, phase: Phase, lr: float, row: list[float]) -> str:
        precision = self.settings.step.precision
        key = f"phases.{phase.name}" if self.spec.sparsity is None else "pruning.finetune"
        tries = [f"a smaller learning rate ({key}.lr, now {phase.lr:g}; {lr:g} at this point)"]
        if precision != "fp32":
            tries.append(f"step.precision=fp32 (now {precision})")
        if phase.name == "lit":
            tries.append(f"a larger loss.beta (now {self.settings.loss.beta:g}), which weighs the IR loss less")
        return (
            f"{self.spec.name}: the loss is not finite at step {step} (phase {phase.name}): {describe(named(row))}. "
            f"The last good checkpoint is kept in {self.state.store.folder}. Try {', or '.join(tries)}"
        )

    def _leave(self) -> None:
        self.workers.first(lambda: None)  # who leaves early has the others killed before rank 0 has saved
        by = self.signals.requested or "a signal to another process"
        raise stopped(self.spec.name, by, self.position.total_steps)
