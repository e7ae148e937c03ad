"""One run: the phases of one generator, from its first step to its last.

Images, flips, wanted domains and penalties' points are pure functions of (seed, epoch, step) and a learning rate one of
the step, so a checkpoint of the networks, both optimizers and the position makes a resumed run bit-identical to one
never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from lit_fast.data.base import Batch
from lit_fast.data.loaders import Loader
from lit_fast.errors import NonFiniteLoss, NotFinite
from lit_fast.models.stargan import Discriminator, with_domain
from lit_fast.sections import SplitModel, copy_parts
from lit_fast.training.checkpoint import Checkpoint, CheckpointStore
from lit_fast.training.environment import tf32
from lit_fast.training.gan.config import GanExperiment
from lit_fast.training.gan.draws import draw
from lit_fast.training.gan.samples import draw_grid
from lit_fast.training.gan.steps import PARTS, AdversarialStep, BottleneckStep, Step, restore, state_of
from lit_fast.training.interrupt import SignalWatch, stopped
from lit_fast.training.logs import RunLog
from lit_fast.training.progress import RunProgress
from lit_fast.training.schedule import Phase
from lit_fast.training.tally import LossTally
from lit_fast.training.trainer import RunSpec

__all__ = ["GanRun", "Pair", "Position"]

_COPIED = ("stem", "head")
_EVAL_BATCH = 64


@dataclass(frozen=True)
class Pair:
    """A split generator and the discriminator it is trained against, on one device."""

    generator: SplitModel
    discriminator: Discriminator


@dataclass
class Position:
    """Where a run stands: all of its state that is not a tensor of a network or an optimizer."""

    phase: int = 0
    epoch: int = 0  # of the phase
    step: int = 0  # of the epoch
    total_epochs: int = 0
    total_steps: int = 0
    images: int = 0
    seconds: float = 0.0  # of training: validation, grids and checkpoints are not counted
    tallies: dict[str, Any] = field(default_factory=dict)  # kind of update -> [sums, images] of this epoch
    history: list[dict[str, Any]] = field(default_factory=list)


class GanRun:
    """Trains ``pair`` through ``spec.phases``, with checkpoints under ``folder``.

    Args:
        spec: the run; its phases are called ``scratch``, or ``lit`` and ``finetune``.
        folder: its folder; a checkpoint found there is continued.
        loader: of images in -1..1 with attributes, in ``channels_last``; left open.
        pair: freshly initialised, trained in place. A student of ``lit`` takes over the teacher's discriminator.
        teacher: for ``lit`` and ``finetune``; ``None`` otherwise. It is frozen here.
        settings: the experiment.
        shown: generators by label, whose rows stand in the sample grids before this run's.
        console, signals: where progress goes; who may ask to stop.

    Raises:
        NonFiniteLoss, Interrupted, StoreError: see there; ``--resume`` then goes on from the last checkpoint.
    """

    def __init__(
        self,
        spec: RunSpec,
        folder: Path,
        loader: Loader,
        pair: Pair,
        teacher: Pair | None,
        settings: GanExperiment,
        *,
        shown: Mapping[str, nn.Module],
        console: Console,
        signals: SignalWatch,
    ) -> None:
        self.spec, self.folder, self.settings = spec, folder, settings
        self.loader, self.data = loader, loader.data
        self.pair, self.teacher = pair, teacher
        self.shown, self.console, self.signals = shown, console, signals
        self.steps_per_epoch = self.data.steps_per_epoch(settings.batch_size)
        self.position = Position()
        self.store = CheckpointStore(folder / "checkpoints")
        self.step: Step | None = None
        self.tallies: dict[str, LossTally] = {}
        if teacher is not None:
            teacher.generator.eval().requires_grad_(False)
            copy_parts(teacher.generator, pair.generator, _COPIED)
            pair.discriminator.load_state_dict(teacher.discriminator.state_dict())

    # -- the whole run -----------------------------------------------------------------------------------------------

    def run(self) -> Position:
        """Train what is left to train; returns the history and the cost."""
        pending = self._restore()
        at = self.position
        self.log = RunLog(self.folder, resume_step=at.total_steps, tensorboard=self.settings.logging.tensorboard)
        total = self.spec.epochs * self.steps_per_epoch
        try:
            with (
                tf32(self.settings.step.tf32),
                RunProgress(self.console, self.spec.name, total, at.total_steps) as self.progress,
            ):
                while at.phase < len(self.spec.phases):
                    phase = self.spec.phases[at.phase]
                    self.enter(phase)
                    if pending is not None:
                        assert self.step is not None
                        restore(self.step, pending)
                        pending = None
                    while at.epoch < phase.epochs:
                        self._train_epoch(phase)
                        self._end_epoch(phase)
                    at.phase, at.epoch, self.step = at.phase + 1, 0, None
                    self._save()
        finally:
            self.log.close()
        return at

    def enter(self, phase: Phase) -> None:
        """Freeze what the phase freezes and build its step."""
        generator, discriminator = self.pair.generator.train(), self.pair.discriminator.train()
        generator.unfreeze(*generator.part_names)
        if phase.name == "lit":
            if self.teacher is None:
                raise ValueError(f"{self.spec.name}: the LIT phase needs a teacher")
            generator.freeze(*_COPIED)
            self.step = BottleneckStep(self.teacher.generator, generator, self.settings)
        else:
            fixed = phase.name == "finetune" and self.settings.discriminator_in_finetune == "fixed"
            self.step = AdversarialStep(generator, discriminator, self.settings, fixed=fixed)

    # -- epochs ------------------------------------------------------------------------------------------------------

    def _train_epoch(self, phase: Phase) -> None:
        step, at = self.step, self.position
        assert step is not None
        every, seed = self.settings.logging.every, self.spec.seed
        saved_at = started = logged_at = time.perf_counter()
        logged_images, before = at.images, at.seconds
        for images, labels in self._batches(at.step):
            index = at.epoch * self.steps_per_epoch + at.step
            lr = phase.lr_at(index, self.steps_per_epoch)
            for optimizer in step.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = lr
            rows = step(images, labels, draw(labels, seed, at.total_epochs, at.step), index)
            at.step += 1
            at.total_steps += 1
            at.images += len(images)
            for kind, row in rows.items():
                self.tallies.setdefault(kind, LossTally([], 0)).add_row(row, len(images))
            self.progress.step(at.total_steps)
            if at.total_steps % every == 0:
                last = self._read(phase, lr)
                now = time.perf_counter()
                self._log_step(phase, lr, last, (at.images - logged_images) / (now - logged_at))
                logged_at, logged_images = now, at.images
            if at.step == self.steps_per_epoch:
                continue  # the end of an epoch is saved with what belongs to it
            stop = self.signals.requested
            if stop or time.perf_counter() - saved_at > self.settings.checkpoint.every_seconds:
                self._read(phase, lr)
                at.seconds = before + time.perf_counter() - started
                self._save()
                before, started = at.seconds, time.perf_counter()
                saved_at = started
            if stop:
                raise stopped(self.spec.name, stop, at.total_steps)
        self._read(phase, phase.lr_at((at.epoch + 1) * self.steps_per_epoch - 1, self.steps_per_epoch))
        at.seconds = before + time.perf_counter() - started

    def _batches(self, start_step: int) -> Iterator[Batch]:
        return self.loader.train_batches(
            self.position.total_epochs,
            batch_size=self.settings.batch_size,
            seed=self.spec.seed,
            start_step=start_step,
            augment=self.settings.data.augment,
        )

    def _end_epoch(self, phase: Phase) -> None:
        at = self.position
        at.epoch, at.step = at.epoch + 1, 0
        at.total_epochs += 1
        entry: dict[str, Any] = {
            "epoch": at.total_epochs,
            "phase": phase.name,
            "lr": phase.lr_at(at.epoch * self.steps_per_epoch - 1, self.steps_per_epoch),
        }
        for kind, tally in self.tallies.items():
            entry |= _named(kind, tally.means())
        entry |= self._validate() | {"seconds": at.seconds, "images": at.images}
        self.tallies = {}
        at.history.append(entry)
        self.log.write("epoch", at.total_steps, **entry)
        self.progress.say(_line(self.spec, entry))
        self._draw_samples(at.total_epochs)
        if at.epoch < phase.epochs:  # the end of a phase is saved once the next one's position is known
            self._save()
            if self.signals.requested:
                raise stopped(self.spec.name, self.signals.requested, at.total_steps)

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Against the teacher over the validation split: mean squares of the IR, mean absolute difference of images."""
        if self.teacher is None:
            return {}
        sums = torch.zeros(2, dtype=torch.float64)
        for images, labels in self.loader.eval_batches("val", batch_size=_EVAL_BATCH):
            x = with_domain(images, draw(labels, 0, 0, 0).targets)
            (ours,), own = self.pair.generator.run(x)
            (theirs,), right = self.teacher.generator.run(x)
            sums += len(x) * torch.stack([(ours - theirs).square().mean(), (own - right).abs().mean()]).double().cpu()
        ir, difference = (sums / len(self.data.val)).tolist()
        return {"val_ir": ir, "val_image_l1": difference}

    def _draw_samples(self, epoch: int) -> None:
        batch: Batch = next(self.loader.eval_batches("val", batch_size=self.settings.samples.images))
        rows = {**self.shown, self.spec.variant: self.pair.generator.model}
        draw_grid(self.folder / "samples" / f"epoch-{epoch:03d}.png", *batch, self.data.classes, rows)

    # -- losses ------------------------------------------------------------------------------------------------------

    def _read(self, phase: Phase, lr: float) -> dict[str, float]:
        """The parts of the last updates, with all steps since the last reading checked and added up."""
        found: dict[str, float] = {}
        for kind, tally in self.tallies.items():
            try:
                row = tally.read()
            except NotFinite as error:
                raise NonFiniteLoss(self._advice(kind, phase, lr, error.row)) from None
            if row:
                found |= _named(kind, row)
        return found

    def _advice(self, kind: str, phase: Phase, lr: float, row: list[float]) -> str:
        shown = "  ".join(f"{name} {value:.4g}" for name, value in _named(kind, row).items())
        precision = self.settings.step.precision
        other = "" if precision == "fp32" else f", or step.precision=fp32 (now {precision})"
        return (
            f"{self.spec.name}: the loss is not finite, at step {self.position.total_steps} or up to "
            f"{self.settings.logging.every - 1} before it (phase {phase.name}): {shown}. The last good checkpoint is "
            f"kept in {self.store.folder}. Try a smaller learning rate (phases.{phase.name}.lr, now {phase.lr:g}; "
            f"{lr:g} at this point){other}"
        )

    def _log_step(self, phase: Phase, lr: float, parts: Mapping[str, float], speed: float) -> None:
        where = {"epoch": self.position.total_epochs + 1, "phase": phase.name, "lr": lr}
        self.log.write("step", self.position.total_steps, **where, **parts, images_per_second=speed)
        self.progress.status("  ".join(f"{name} {value:.3g}" for name, value in parts.items()), speed)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        at = self.position
        at.tallies = {kind: [tally.sums, tally.images] for kind, tally in self.tallies.items()}
        tensors = {
            f"{role}.{name}": tensor
            for role, network in self._networks().items()
            for name, tensor in network.state_dict().items()
        }
        state = {"position": asdict(at), "step": state_of(self.step)}
        self.store.save(Checkpoint(at.total_steps, tensors, None, state))

    def _restore(self) -> dict[str, Any] | None:
        """Continue from the newest checkpoint, if there is one; returns the state that the phase's step is owed."""
        checkpoint = self.store.load()
        if checkpoint is None:
            return None
        for role, network in self._networks().items():
            prefix = f"{role}."
            own = {k.removeprefix(prefix): t for k, t in checkpoint.model.items() if k.startswith(prefix)}
            network.load_state_dict(own)
        self.position = Position(**checkpoint.state["position"])
        self.tallies = {kind: LossTally(sums, images) for kind, (sums, images) in self.position.tallies.items()}
        pending: dict[str, Any] | None = checkpoint.state["step"]
        return pending

    def _networks(self) -> dict[str, nn.Module]:
        return {"generator": self.pair.generator.model, "discriminator": self.pair.discriminator}


def _named(kind: str, row: list[float]) -> dict[str, float]:
    return {kind if part == "ir" else f"{kind}_{part}": value for part, value in zip(PARTS[kind], row, strict=True)}


def _line(spec: RunSpec, entry: Mapping[str, Any]) -> str:
    skipped = ("epoch", "phase", "lr", "seconds", "images")
    parts = "  ".join(f"{name} {value:.4f}" for name, value in entry.items() if name not in skipped)
    where = f"{spec.name}  epoch {entry['epoch']}/{spec.epochs} ({entry['phase']})  lr {entry['lr']:.4g}"
    return f"{where}  {parts}  {entry['seconds']:.0f} s"
