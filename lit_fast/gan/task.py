"""A generator and its discriminator as a run trains them.

Wanted domains and penalties' points are, as the batches, pure functions of (seed, epoch, step), so that resuming needs
no state of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_fast.data.base import Batch
from lit_fast.data.loaders import Loader
from lit_fast.data.tables import share
from lit_fast.gan.draws import Draws, draw
from lit_fast.gan.samples import draw_grid
from lit_fast.gan.steps import PARTS, AdversarialStep, BottleneckStep
from lit_fast.models.stargan import Discriminator, with_domain
from lit_fast.sections.copying import copy_parts
from lit_fast.sections.model import SplitModel
from lit_fast.settings.gan import GanExperiment
from lit_fast.settings.schedule import Phase
from lit_fast.step.parallel import ALONE, Workers
from lit_fast.teacher.frozen import FrozenTeacher
from lit_fast.training.run_state import Position
from lit_fast.training.task import Rows, RunSpec, Task

__all__ = ["GanTask", "Pair"]

_COPIED = ("stem", "head")
_EVAL_BATCH = 64
_BESIDE = ("epoch", "phase", "lr", "seconds", "images", "images_per_second")  # the losses and scores


@dataclass(frozen=True)
class Pair:
    """A split generator and the discriminator it is trained against, on one device.

    Attributes:
        frozen: what runs the generator in the steps of all its students; ``None`` where its modules do.
    """

    generator: SplitModel
    discriminator: Discriminator
    frozen: FrozenTeacher | None = None

    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator.model, "discriminator": self.discriminator}


class GanTask(Task):
    """Trains ``pair``.

    Args:
        spec: its phases are called ``scratch``, or ``lit`` and ``finetune``.
        settings, workers: as of `Task`.
        loader: of images in -1..1 with attributes, in ``channels_last``.
        pair: freshly initialised. A student of ``lit`` takes over the teacher's discriminator.
        teacher: for ``lit`` and ``finetune``; ``None`` otherwise. It is frozen here.
        shown: generators by label, whose rows stand in the sample grids before this run's.
    """

    def __init__(
        self,
        spec: RunSpec,
        settings: GanExperiment,
        loader: Loader,
        pair: Pair,
        teacher: Pair | None,
        *,
        shown: Mapping[str, nn.Module],
        workers: Workers = ALONE,
    ) -> None:
        super().__init__(spec, settings, loader, pair.networks(), workers)
        self.pair, self.teacher, self.shown = pair, teacher, shown
        self.step: AdversarialStep | BottleneckStep | None = None
        if teacher is not None:
            teacher.generator.eval().requires_grad_(False)

    def prepare(self) -> None:
        if self.teacher is not None:
            copy_parts(self.teacher.generator, self.pair.generator, _COPIED)
            self.pair.discriminator.load_state_dict(self.teacher.discriminator.state_dict())

    def enter(self, phase: Phase) -> AdversarialStep | BottleneckStep:
        generator, discriminator = self.pair.generator.train(), self.pair.discriminator.train()
        generator.unfreeze(*generator.part_names)
        if phase.name == "lit":
            if self.teacher is None:
                raise ValueError(f"{self.spec.name}: the LIT phase needs a teacher")
            generator.freeze(*_COPIED)
            self.step = BottleneckStep(
                self.teacher.generator, generator, self.settings, workers=self.workers, frozen=self.teacher.frozen
            )
        else:
            fixed = phase.name == "finetune" and self.settings.discriminator_in_finetune == "fixed"
            self.step = AdversarialStep(generator, discriminator, self.settings, fixed=fixed, workers=self.workers)
        return self.step

    def steps(self, at: Position) -> Iterator[Callable[[], Rows]]:
        assert self.step is not None
        options = self.batch_options(at.step)
        batches = self.batches(at.total_epochs, at.step, (self.workers.rank, self.workers.size))
        plan = self.data.training_plan(at.total_epochs, **options) if self.workers.size > 1 else None
        first = at.epoch * self.data.steps_per_epoch(self.settings.batch_size)
        for number, (images, labels) in enumerate(batches, at.step):
            whole = labels
            if plan is not None:
                rows = plan.tables.order[plan.places[number]]
                whole = self.data.train.labels[rows].to(labels.device)
            draws = self._own(draw(whole, self.spec.seed, at.total_epochs, number))
            yield partial(self.step, images, labels, draws, first + number)

    def _own(self, draws: Draws) -> Draws:
        """Of a whole batch's draws those for this process's rows."""
        rows = share(len(draws.alpha), self.workers.rank, self.workers.size)
        return Draws(draws.targets[rows], draws.alpha[rows])

    # -- what is seen of it ------------------------------------------------------------------------------------------

    def named(self, kind: str, row: list[float]) -> dict[str, Any]:
        return {kind if part == "ir" else f"{kind}_{part}": value for part, value in zip(PARTS[kind], row, strict=True)}

    def describe(self, parts: Mapping[str, Any]) -> str:
        return "  ".join(f"{name} {value:.3g}" for name, value in parts.items() if name not in _BESIDE)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Against the teacher: mean squares of the IR's differences, mean absolute difference of the images."""
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

    def describe_epoch(self, entry: Mapping[str, Any]) -> str:
        return "  ".join(f"{name} {value:.4f}" for name, value in entry.items() if name not in _BESIDE)

    def draw(self, folder: Path, epoch: int) -> None:
        batch: Batch = next(self.loader.eval_batches("val", batch_size=self.settings.samples.images))
        rows = {**self.shown, self.spec.variant: self.pair.generator.model}
        draw_grid(folder / "samples" / f"epoch-{epoch:03d}.png", *batch, self.data.classes, rows)
