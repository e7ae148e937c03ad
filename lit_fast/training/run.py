"""One run, whatever it trains: its phases, from the first step to the last.

A training batch is a pure function of (seed, epoch, step) and a learning rate one of the step, so a checkpoint needs
only the tensors, the position and the generators' states to make a resumed run bit-identical to one never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from lit_fast.errors import DataError, NonFiniteLoss, NotFinite
from lit_fast.runs.environment import tf32
from lit_fast.settings.schedule import Phase
from lit_fast.training.callbacks import Listeners, RunInfo
from lit_fast.training.interrupt import SignalWatch, stopped
from lit_fast.training.run_state import Position, RunState, Step, load_into
from lit_fast.training.tally import LossTally
from lit_fast.training.task import Task

__all__ = ["Outcome", "Run"]


@dataclass(frozen=True)
class Outcome:
    """What a run ends with: the weights that were best on validation, if it looks for them, the history, the cost."""

    best: dict[str, Tensor] | None
    best_epoch: int
    history: list[dict[str, Any]]
    seconds: float
    images: int


class Run:
    """Trains the networks of ``task`` through the phases of its spec, with checkpoints under ``folder``.

    Args:
        task: what is trained, and by what.
        folder: of the run; a checkpoint found there is continued, if it is of this run.
        of: the run, as its checkpoints say (`RunFolder.of`).
        console, signals: where the engine is told; who may ask to stop.
        listeners: who is told of the run, in rank 0; its beginning and all but its end.

    Raises:
        NonFiniteLoss, Interrupted, StoreError: see there; ``--resume`` then goes on from the last checkpoint.
    """

    def __init__(
        self, task: Task, folder: Path, of: str, *, console: Console, signals: SignalWatch, listeners: Listeners
    ) -> None:
        self.task, self.folder = task, folder
        self.spec, self.settings, self.workers = task.spec, task.settings, task.workers
        self.console, self.signals, self.listeners = console, signals, listeners
        self.steps_per_epoch = task.data.steps_per_epoch(self.settings.batch_size)
        self.state = RunState(folder, task.networks, self.workers, of)
        self.position = self.state.position
        self.step: Step | None = None
        self._told_engine = False

    # -- the whole run -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Build every phase's step once, so that what cannot work is refused before anything is trained."""
        self.task.prepare()
        for phase in self.spec.phases:
            self.task.enter(phase)

    def run(self) -> Outcome:
        """Train what is left to train."""
        self.task.prepare()
        owed, at = self.state.restore(), self.position
        self.listeners.on_train_begin(self._info())
        self.task.begin()
        with tf32(self.settings.step.tf32):
            while at.phase < len(self.spec.phases):
                self._enter(self.spec.phases[at.phase], owed)
                owed = None
                self._train_phase(self.spec.phases[at.phase])
        return Outcome(self.state.best, at.best_epoch, at.history, at.seconds, at.images)

    def _info(self) -> RunInfo:
        steps, done = self.spec.epochs * self.steps_per_epoch, self.position.total_steps
        settings = self.settings.model_dump(mode="json")
        return RunInfo(self.spec.name, self.folder, settings, self.task.networks, steps, done)

    # -- phases ------------------------------------------------------------------------------------------------------

    def _enter(self, phase: Phase, owed: Mapping[str, Any] | None) -> None:
        """Build the phase's step; ``owed`` is a checkpoint's state of it."""
        self.step = self.task.enter(phase)
        if owed is not None:
            load_into(self.step, owed)
        engine = self.task.engine()
        if engine is not None and not self._told_engine:
            self._told_engine = True
            self.console.print(f"{self.spec.name}: {engine}", highlight=False, markup=False)

    def _train_phase(self, phase: Phase) -> None:
        at = self.position
        while at.epoch < phase.epochs:
            try:
                self._train_epoch(phase)
            except DataError:  # a file in the middle of the epoch: what was done before it is kept
                self._read(phase)
                self.state.save(self.step)
                raise
            self._end_epoch(phase)
        at.phase, at.epoch, self.step = at.phase + 1, 0, None
        self.state.save(None)

    def _train_epoch(self, phase: Phase) -> None:
        at, every = self.position, self.settings.logging.every
        saved_at = logged_at = time.perf_counter()
        logged_images, clock = at.images, _Clock(at)
        try:
            for train in self.task.steps(at):
                self._set_rate(phase.lr_at(at.epoch * self.steps_per_epoch + at.step, self.steps_per_epoch))
                images = self._batch_images(at.step)
                if train is None:
                    at.step, at.total_steps = at.step + 1, at.total_steps + 1
                    continue
                rows = train()
                at.step += 1
                at.total_steps += 1
                at.images += images
                self.state.tally.add(rows, images, at.total_steps)
                self.listeners.on_step_end(at.total_steps, rows, self.task.named)
                if at.total_steps % every == 0:
                    parts, now = self._read(phase), time.perf_counter()
                    self._log_step(phase, parts, (at.images - logged_images) / (now - logged_at))
                    logged_at, logged_images = now, at.images
                if self.task.look_is_due(at.total_steps):
                    spent = self._look(phase)
                    clock.leave_out(spent)
                    logged_at += spent
                if at.step == self.steps_per_epoch:
                    continue  # the end of an epoch is saved with what belongs to it
                stop = self._asked_to_stop(at.total_steps % every == 0)
                if stop or time.perf_counter() - saved_at > self.settings.checkpoint.every_seconds:
                    self._read(phase)
                    clock.stop()
                    self.state.save(self.step)
                    clock.start()
                    saved_at = time.perf_counter()
                if stop:
                    self._leave()
            self._read(phase)
        finally:
            clock.stop()

    def _set_rate(self, lr: float) -> None:
        assert self.step is not None
        for optimizer in self.step.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr

    def _last_rate(self, phase: Phase) -> float:
        """The learning rate of the last step."""
        last = self.position.epoch * self.steps_per_epoch + self.position.step - 1
        return phase.lr_at(last, self.steps_per_epoch)

    def _batch_images(self, step: int) -> int:
        """Images of an epoch's batch, over all workers."""
        size = self.settings.batch_size
        return min(size, len(self.task.data.train) - step * size)

    def _end_epoch(self, phase: Phase) -> None:
        at = self.position
        lr = self._last_rate(phase)
        at.epoch, at.step = at.epoch + 1, 0
        at.total_epochs += 1
        if at.epoch == phase.epochs:
            self.task.end_phase(phase, at.total_epochs)
        # Every worker looks: BatchNorm may be shared by all of them.
        sections = self.task.look()
        if self.workers.leads:
            self._record_epoch(phase, lr, sections)
        self.state.tally = LossTally()
        if at.epoch < phase.epochs:  # the end of a phase is saved once the next one's position is known
            self.state.save(self.step)
            if self._asked_to_stop(at_meeting=True):
                self._leave()

    # -- what is seen of it ------------------------------------------------------------------------------------------

    def _look(self, phase: Phase) -> float:
        """Look at the sections and log what is seen; returns the seconds that it took."""
        if self.task.device.type == "cuda":
            torch.cuda.synchronize(self.task.device)  # steps that are still under way are training
        began, at = time.perf_counter(), self.position
        seen = self.task.look() or {}
        where = {"epoch": at.total_epochs + 1, "phase": phase.name}
        self.listeners.on_sections(at.total_steps, {**where, **seen})
        return time.perf_counter() - began

    def _record_epoch(self, phase: Phase, lr: float, sections: dict[str, Any] | None) -> None:
        """Evaluate on the validation split, keep the best weights, write and show it."""
        at = self.position
        entry: dict[str, Any] = {
            "epoch": at.total_epochs,
            "phase": phase.name,
            "lr": lr,
            **self._named(self.state.tally.means()),
            **self.task.validate(),
            "seconds": at.seconds,
            "images": at.images,
            **({} if sections is None else {"sections": sections}),
        }
        at.history.append(entry)
        score = None if self.task.best_by is None else entry[self.task.best_by]
        if score is not None and score > at.best_score:
            at.best_score, at.best_epoch = score, at.total_epochs
            self.state.keep_best()
        self.listeners.on_epoch_end(at.total_steps, entry)
        self.task.draw(self.folder, at.total_epochs)

    def _log_step(self, phase: Phase, parts: Mapping[str, Any], speed: float) -> None:
        at = self.position
        where = {"epoch": at.total_epochs + 1, "phase": phase.name, "lr": self._last_rate(phase)}
        self.listeners.on_log(at.total_steps, {**where, **parts, "images_per_second": speed})

    def _read(self, phase: Phase) -> dict[str, Any]:
        """The parts of the last updates, with all steps since the last reading checked and added up."""
        try:
            return self._named(self.state.tally.read())
        except NotFinite as broken:
            raise NonFiniteLoss(self._advice(phase, broken)) from None

    def _named(self, rows: Mapping[str, list[float]]) -> dict[str, Any]:
        return {name: value for kind, row in rows.items() for name, value in self.task.named(kind, row).items()}

    def _advice(self, phase: Phase, broken: NotFinite) -> str:
        precision = self.settings.step.precision
        key = f"phases.{phase.name}" if self.spec.sparsity is None else "pruning.finetune"
        tries = [f"a smaller learning rate ({key}.lr, now {phase.lr:g}; {self._last_rate(phase):g} at this point)"]
        if precision != "fp32":
            tries.append(f"step.precision=fp32 (now {precision})")
        tries += self.task.advice(phase)
        shown = self.task.describe(self._named({broken.kind: broken.row}))
        return (
            f"{self.spec.name}: the loss is not finite at step {broken.step} (phase {phase.name}): {shown}. The last "
            f"good checkpoint is kept in {self.state.store.folder}. Try {', or '.join(tries)}"
        )

    # -- stopping ----------------------------------------------------------------------------------------------------

    def _asked_to_stop(self, at_meeting: bool) -> bool:
        """Whether any worker was. They stop after the same step, so several ask each other, now and then."""
        requested = self.signals.requested is not None
        if self.workers.size == 1:
            return requested
        return at_meeting and self.workers.any(requested)

    def _leave(self) -> None:
        self.workers.first(lambda: None)  # who leaves early has the others killed before rank 0 has saved
        by = self.signals.requested or "a signal to another process"
        raise stopped(self.spec.name, by, self.position.total_steps)


class _Clock:
    """Adds the seconds that it runs to those of ``at``."""

    def __init__(self, at: Position) -> None:
        self._at = at
        self.start()

    def start(self) -> None:
        self._since: float | None = time.perf_counter()

    def stop(self) -> None:
        """It may have been stopped already."""
        if self._since is not None:
            self._at.seconds += time.perf_counter() - self._since
        self._since = None

    def leave_out(self, seconds: float) -> None:
        """These were no training."""
        assert self._since is not None
        self._since += seconds
