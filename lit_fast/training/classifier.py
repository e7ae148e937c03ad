"""A classifier as a run trains it: a student by its variant, from a teacher or from scratch, perhaps pruned before."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lit_fast.data.loaders import Loader
from lit_fast.data.loaders.resident import ResidentLoader
from lit_fast.errors import ConfigError, SplitError
from lit_fast.literals import TargetsKind
from lit_fast.loss.backends.options import LossParts
from lit_fast.loss.modules import LITLoss
from lit_fast.loss.targets import TargetsOf, resolve
from lit_fast.sections.copying import copy_blocks, copy_parts
from lit_fast.sections.dryrun import untouched
from lit_fast.sections.model import SplitModel
from lit_fast.sections.projector import Projectors
from lit_fast.settings.classifier import Experiment
from lit_fast.settings.schedule import Phase
from lit_fast.settings.variants import VARIANTS
from lit_fast.step.lit_step import LITStep
from lit_fast.step.parallel import ALONE, Workers
from lit_fast.step.passes.running_stats import recalibrate
from lit_fast.teacher.frozen import FrozenTeacher
from lit_fast.training.evaluation import Scores, evaluate
from lit_fast.training.progress import describe
from lit_fast.training.pruning import Pruning
from lit_fast.training.run_state import Position
from lit_fast.training.section_looks import SectionLooks
from lit_fast.training.task import Rows, RunSpec, Task

__all__ = ["ClassifierTask", "LITPhase"]

_LOG = logging.getLogger(__name__)
_EVAL_BATCH = 256
_LEAST_ROWS = 2  # that BatchNorm can train on


@dataclass(frozen=True)
class Teacher:
    """A trained, split network in the role of teacher.

    Attributes:
        name, label: of its run, of the network.
        parameters: their number, for the compression factor.
        frozen: what runs it in the steps of all students and phases; ``None`` where its modules do.
    """

    name: str
    label: str
    split: SplitModel
    parameters: int
    frozen: FrozenTeacher | None


class LITPhase:
    """A phase's `LITStep`, with what a checkpoint keeps of it."""

    def __init__(self, lit: LITStep) -> None:
        self.lit = lit
        self.optimizers = {"student": lit.optimizer}
        self.scalers = {} if lit.scaler is None else {"student": lit.scaler}


class ClassifierTask(Task):
    """Trains ``student``.

    Args:
        spec, settings, loader, workers: as of `Task`.
        student: the split student, on its device, freshly initialised; of a spec with a sparsity the trained one.
        teacher: ``None`` for the variant ``scratch``.
        copied_from: the network whose parts and blocks the student starts with; ``None``: it starts as it is.
        projector: where the widths differ.
        targets: as for `LITStep`.
    """

    best_by = "val_accuracy"

    def __init__(
        self,
        spec: RunSpec,
        settings: Experiment,
        loader: Loader,
        student: SplitModel,
        teacher: Teacher | None,
        *,
        copied_from: SplitModel | None = None,
        projector: Projectors | None = None,
        targets: TargetsKind | TargetsOf = "classification",
        workers: Workers = ALONE,
    ) -> None:
        networks = {"student": student.model} | ({} if projector is None else {"projector": projector})
        super().__init__(spec, settings, loader, networks, workers)
        self.student, self.teacher, self.projector = student, teacher, projector
        self.switches = VARIANTS[spec.variant]
        self.targets = targets
        self.copied_from = copied_from
        self.copied: tuple[str, ...] = settings.student.copied
        self.pruning = None if spec.sparsity is None else Pruning(spec, settings, student)
        self.step: LITStep | None = None
        self._looks: SectionLooks | None = None
        self._phase = ""
        self._leave_out_last: dict[str, bool] = {}  # by phase: whether a last batch of one row is not trained on

    # -- the course of a run -----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        if self.pruning is not None:
            self.pruning.prune()
        elif self.copied_from is not None:
            self.copied = copy_fitting(self.copied_from, self.student, self.settings)

    def begin(self) -> None:
        self._begin_looks()
        self._check_one_row()

    def _begin_looks(self) -> None:
        """Who looks at the sections: nobody without a teacher, past a projector, or where the student is pruned."""
        every, rows = self.settings.logging.sections_every, min(self.settings.batch_size, len(self.data.val))
        comparable = self.teacher is not None and self.projector is None and self.pruning is None
        if comparable and every and rows >= _LEAST_ROWS:
            self._looks = SectionLooks(self.data, rows, self.device, every)

    def _check_one_row(self) -> None:
        """Find the phases in which the student cannot be trained on the last batch, because a process has one row.

        BatchNorm has no variance of one value per channel. The batch is then left out of these phases' epochs, so the
        rows of other batches are what they would be.

        Raises:
            ConfigError: that would leave out every batch.
        """
        batch, images, processes = self.settings.batch_size, len(self.data.train), self.workers.size
        last = images % batch or batch
        if last // processes > 1:
            return
        self._leave_out_last = {phase.name: not self._takes_one_row(phase) for phase in self.spec.phases}
        if not any(self._leave_out_last.values()):
            return
        if batch // processes < _LEAST_ROWS or images <= batch:
            raise ConfigError(
                f"batch_size: the BatchNorm of {self.spec.name} cannot be trained on one image, and a process has one "
                f"of the {min(batch, images)} of a step; choose a larger batch_size, or train on more images"
            )
        if self.workers.leads:
            _LOG.warning(
                "%s: the last batch of an epoch leaves a process with one of the %d images, on which its BatchNorm "
                "cannot be trained: it is left out in the phases %s; another batch_size trains on all images",
                *(self.spec.name, images, ", ".join(name for name, out in self._leave_out_last.items() if out)),
            )

    def _takes_one_row(self, phase: Phase) -> bool:
        """Whether the student can be trained on one row, as it is in that phase."""
        if any(isinstance(module, torch.nn.SyncBatchNorm) for module in self.student.modules()):
            return True  # it counts the rows of all processes
        self._set_modes(phase)
        try:
            with untouched(self.student), torch.no_grad():
                self.student.model(self.data.example(1).to(self.device))
        except Exception as error:  # any other may not come up in a step
            return "more than 1 value per channel" not in str(error)
        return True

    def _set_modes(self, phase: Phase) -> None:
        """Freeze what the phase freezes, and train the rest."""
        chosen = self.settings.student
        if self.switches.ir != "none":
            self.student.unfreeze(*self.student.part_names)
            self.student.freeze(*(self.copied if phase.name == "lit" else chosen.frozen_in_finetune))
        self.student.train()

    def enter(self, phase: Phase) -> LITPhase:
        in_lit = phase.name == "lit"
        self._set_modes(phase)
        self._phase = phase.name
        self.step = self._build_step(in_lit)
        if self.pruning is not None:
            self.pruning.keep_zero(self.step.optimizer)
        return LITPhase(self.step)

    def _build_step(self, in_lit: bool) -> LITStep:
        """The step of a phase, with the IR loss or, in a scratch, KD or fine-tune phase, without.

        Raises:
            ValueError: settings that do not fit the pair.
        """
        options, switches = self.settings.step, self.switches
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        if self.projector is not None and in_lit:
            parameters += self.projector.parameters()
        sections = switches.ir_sections(self.student.num_sections)
        criterion = self._criterion(sections, in_lit).to(self.device)
        optimizer = self.settings.optimizer.build(parameters, self.device)
        return LITStep(
            None if self.teacher is None else self.teacher.split,
            self.student,
            criterion,
            optimizer,
            ir_sections=sections if in_lit else "all",
            student_input=switches.student_input,
            bn_policy=options.bn_policy,
            precision=options.precision,
            projector=self.projector if in_lit else None,
            engine=options.engine,
            clip_grad_norm=self.settings.optimizer.clip_grad_norm,
            capture=options.capture and self.workers.size == 1,  # the sum over processes is not captured
            side_by_side=options.side_by_side if in_lit else False,
            fused_norm=options.fused_norm,
            teacher_ahead=options.teacher_ahead,
            workers=self.workers,
            targets=self.targets,
            skip_padding=self.settings.skip_padding,
            frozen=None if self.teacher is None else self.teacher.frozen,
        )

    def _criterion(self, sections: tuple[int, ...], in_lit: bool) -> LITLoss:
        loss, count = self.settings.loss, self.student.num_sections
        weights = loss.section_weights
        if weights is not None and len(weights) != count:
            raise ValueError(f"loss.section_weights: expected {count} (one per section), got {len(weights)}")
        if weights is not None:
            trained = [n for n in sections if f"section{n}" not in self.student.frozen]
            weights = tuple(weights[n - 1] for n in trained) if in_lit else None
        return LITLoss(
            alpha=loss.alpha if self.switches.needs_teacher else 1.0,
            beta=loss.beta if in_lit else 1.0,
            tau=loss.tau,
            ir=loss.ir,
            tau_squared=loss.tau_squared,
            section_weights=weights,
            label_smoothing=loss.label_smoothing,
        )

    @property
    def _leaves_out_last(self) -> bool:
        return self._leave_out_last.get(self._phase, False)

    @property
    def engine_taken(self) -> str | None:
        """In a word or two; ``None`` without a teacher, or where no step was built."""
        step = self.step
        if step is None or step.teacher is None:
            return None
        return f"{step.engine}, captured" if step.captured else step.engine

    def engine(self) -> str | None:
        step = self.step
        if step is None or step.teacher is None:
            return None
        line = f"engine {step.engine} ({step.engine_reason})"
        if step.captured:
            return f"{line}, steps replayed as a CUDA graph"
        return f"{line}, steps not captured ({step.capture_reason})" if self.device.type == "cuda" else line

    def steps(self, at: Position) -> Iterator[Callable[[], Rows] | None]:
        last = self.data.steps_per_epoch(self.settings.batch_size) - 1
        for number, train in enumerate(self._every_step(at), at.step):
            yield None if number == last and self._leaves_out_last else train

    def _every_step(self, at: Position) -> Iterator[Callable[[], Rows]]:
        step, loader = self.step, self.loader
        assert step is not None
        if step.captured and isinstance(loader, ResidentLoader):  # the graph makes its batches itself
            for rows in loader.begin(at.total_epochs, **self.batch_options(at.step)):
                yield partial(_train, step.train_on, loader.training, rows)
            return
        for images, labels in self.batches(at.total_epochs, at.step, (self.workers.rank, self.workers.size)):
            yield partial(_train, step, images, labels)

    def end_phase(self, phase: Phase, epochs: int) -> None:
        if phase.name != "lit" or self.settings.step.bn_policy != "recalibrate":
            return
        # Every worker on whole batches: then all have the statistics of the whole training set, and none waits.
        least = _LEAST_ROWS if self._leaves_out_last else 1
        recalibrate(self.student, (images for images, _ in self.batches(epochs) if len(images) >= least))

    # -- what is seen of it ------------------------------------------------------------------------------------------

    def look_is_due(self, total_steps: int) -> bool:
        return self._looks is not None and self._looks.due(total_steps)

    def look(self) -> dict[str, Any] | None:
        return None if self._looks is None or self.step is None else self._looks.look(self.step)

    def named(self, kind: str, row: list[float]) -> dict[str, Any]:
        loss, ce, kl, *irs = row
        return {"loss": loss, "ce": ce, "kl": kl, "ir": irs}

    def describe(self, parts: Mapping[str, Any]) -> str:
        return describe(parts)

    def scores(self, split: str) -> Scores:
        """Accuracy and loss of the student as it is now on a split of the data."""
        targets = resolve(self.targets, -100, self.settings.skip_padding)
        return evaluate(self.student.model, self.loader.eval_batches(split, batch_size=_EVAL_BATCH), targets)

    def validate(self) -> dict[str, float]:
        scores = self.scores("val")
        return {"val_accuracy": scores.accuracy, "val_loss": scores.loss}

    def describe_epoch(self, entry: Mapping[str, Any]) -> str:
        shown = f"{describe(entry)}  val {entry['val_accuracy']:.2f} %"
        return f"{shown}  perplexity {perplexity(entry['val_loss']):.2f}" if self.targets == "causal_lm" else shown

    def advice(self, phase: Phase) -> list[str]:
        beta = self.settings.loss.beta
        return [f"a larger loss.beta (now {beta:g}), which weighs the IR loss less"] if phase.name == "lit" else []


def perplexity(loss: float) -> float:
    """exp(loss), of the mean cross-entropy of a token."""
    return math.exp(min(loss, 700.0))  # beyond it no float


def copy_fitting(teacher: SplitModel, student: SplitModel, settings: Experiment) -> tuple[str, ...]:
    """Copy the parts and blocks that a student starts with from its teacher; returns the names of the parts.

    Parts that the settings name must fit; of stem and head, the default, those of networks of one's own need not.

    Raises:
        SplitError: see `copy_parts`.
    """
    chosen, copied = settings.student, list(settings.student.copied)
    if settings.has_own_networks and chosen.copied == type(chosen).model_fields["copied"].default:
        copied = [name for name in copied if _fits(teacher, student, name)]
    else:
        copy_parts(teacher, student, copied)
    if chosen.copy_blocks is not None:
        copy_blocks(teacher, student, chosen.copy_blocks)
    return tuple(copied)


def _fits(teacher: SplitModel, student: SplitModel, part: str) -> bool:
    """Whether the part could be copied; if so it is."""
    try:
        copy_parts(teacher, student, [part])
    except SplitError:
        return False
    return True


def _train(step: Callable[..., LossParts], *batch: Any) -> dict[str, Tensor]:
    parts = step(*batch)
    return {"loss": torch.cat([torch.stack([parts.total, parts.ce, parts.kl]).detach(), parts.ir])}
