"""One LIT training step: `lit_fast.LITModel`, backward, update; captured or not, in one process or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_fast.errors import expect_switches
from lit_fast.loss.backends.counts import LossCounts
from lit_fast.loss.backends.options import LossParts
from lit_fast.loss.modules import LITLoss
from lit_fast.pair import measured
from lit_fast.sections.calls import uncompiled
from lit_fast.sections.inputs import Inputs, num_rows, without_labels
from lit_fast.sections.model import SplitModel
from lit_fast.step.arguments import check_optimizer, check_student, check_update, workers_of
from lit_fast.step.batches import Batch, FedBatch, Feed, GivenBatch
from lit_fast.step.capture import CapturedSteps
from lit_fast.step.lit_model import LITModel, Normalizer
from lit_fast.step.parallel import SharedGradients, Workers
from lit_fast.step.passes.running_stats import refused_in_backward
from lit_fast.step.state import prepare_momentum

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lit_fast.step.lit_model import ModelOptions

__all__ = ["LITStep"]


class LITStep:
    """``parts = step(inputs, labels)``: forward, loss, backward and optimizer update of one batch.

    Args:
        teacher: the split teacher; frozen here (``eval()``, no parameter requires a gradient). ``None`` when the loss
            needs none: ``alpha=1, beta=1`` (training from scratch).
        student: the split student, in the mode its caller sets (``train()`` for training).
        criterion: a `lit_fast.LITLoss`; ``beta=1`` is plain KD, ``beta=0`` needs no labels.
        optimizer: any torch optimizer but LBFGS that holds the student's trainable parameters (and the projector's).
        ir_sections: ``"all"``, or the 1-based numbers of the sections that carry an IR loss (hint: the middle one).
            Frozen sections never do: copied from the teacher, their IR loss is zero.
        student_input: input of those sections: the ``"teacher"``'s previous section output (LIT), or the student's
            own, ``"composed"`` (hint, multi_ir).
        bn_policy: whose batch statistics enter the BatchNorm running statistics: ``"composed"`` (default, the deployed
            path's own), ``"both"`` (section 1 counts double), ``"teacher_fed"``, or ``"recalibrate"`` (as ``composed``
            here; call `lit_fast.recalibrate` after the LIT phase).
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"`` (autocast; fp16 with a `torch.amp.GradScaler`).
        scaler: the GradScaler to use for fp16; default a new one.
        projector: `lit_fast.Projectors` where the widths of teacher and student differ.
        engine: ``"runner"`` runs the teacher as a `lit_fast.FrozenTeacher` (a lowered copy, made from the parameters it
            has at the first batch) and gives 2-d networks their images in ``channels_last``; ``"eager"`` runs its
            modules and leaves layouts alone; ``"auto"`` takes the runner where the compiled extension is there. Every
            lowered part is checked against its module; one that fails runs as its module under ``"auto"``, with a
            warning, and raises `lit_fast.LoweringError` under ``"runner"``. The attributes ``engine`` and
            ``engine_reason`` tell what was taken. Results agree to rounding.
        capture: replay the whole step, optimizer and scaler included, as one CUDA graph, captured when a shape of batch
            first comes. It needs a CUDA device and a fused optimizer: ``SGD(fused=True)``, or ``Adam`` or ``AdamW``
            with ``fused=True, capturable=True``. Where it cannot be, steps run eagerly. ``captured`` and
            ``capture_reason`` tell. After a captured step gradients are None, and learning rates are float32.
        side_by_side: on CUDA, the teacher, the composed pass and each teacher-fed section on a stream of its own, their
            backward passes likewise: for networks or batches too small to fill the GPU one after the other. Not with
            ``bn_policy="both"``, where two passes write the same running statistics. Same numbers. Default ``"auto"``:
            where committed figures say that it is faster (`lit_fast.pair.measured`); ``passes.streams`` tells.
        teacher_ahead: in captured steps on a resident dataset (`train_on`), the teacher runs on the next batch, on a
            stream of its own, while the student trains on this one. It holds one batch's IRs more. Same numbers. It
            does nothing where the teacher's modules run, and in steps that are given their batch.
        workers: the processes that share each batch (`lit_fast.step.parallel`): each calls the step on its own rows,
            and the update is that of the whole batch. None: this process alone; refused where torch.distributed has
            several.
        clip_grad_norm: scale the gradients of an update down to at most this norm over all parameters.
        accumulate: so many calls make one update, each weighing the same, or, with a ``normalizer``, as its rows count
            in it. `update` makes one of those that are left at the end.
        scheduler: a learning-rate scheduler of the optimizer, stepped once after each update.
        frozen: the `lit_fast.FrozenTeacher` that runs ``teacher`` under the engine ``runner``, for several steps to
            share: it is lowered once for all of them. Of the step's precision; with ``strict=False`` under ``"auto"``.
            Default: one of the step's own.
        fused_norm: BatchNorm, addition and ReLU of the student as Triton kernels, in ``channels_last`` on CUDA: of
            networks that call `lit_fast.models.fused_norm.norm_act`, as ours do, and wherever they stand in a forward
            that only calls submodules (`lit_fast.models.norm_pattern`). Results agree to rounding. Default ``"auto"``,
            likewise; ``passes.fused_norm`` tells.
        targets: how rows of logits and their labels are made of the models' outputs: ``"classification"`` (logits
            [B, C]), ``"dense"`` ([B, C, H, W]), ``"tokens"`` ([B, T, C]), ``"causal_lm"`` ([B, T, V], the next token),
            or a function of (output, inputs, labels), given all that the models return, under ``engine="runner"`` the
            teacher's logits alone; see `lit_fast.targets`. Outputs may be tensors, tuples (the
            first), dicts, or objects with ``.logits``.
        skip_padding: leave out of every term of the loss, IRs [B, T, ...] included, the tokens that
            ``inputs["attention_mask"]`` says are padding; without a mask those whose label is ``ignore_index``.
        fused_head: compute the KD loss from hidden states and heads (`lit_fast.functional.linear_kd_loss`), so that
            logits are never there as a whole: for recorded models whose logits an ``nn.Linear`` makes. None: with
            ``targets="causal_lm"`` where that can be, but not in a captured step.

    Attributes:
        model: the `lit_fast.LITModel` that computes the loss.
        updated: whether the last call updated the weights: the others of ``accumulate`` did not.
        rows: what makes the loss's rows of the models' outputs (`lit_fast.step.rows.LossRows`).
        passes: the student's two passes, which the step trains (`lit_fast.step.passes.StudentPasses`).
        nonfinite: 0-d bool on the device: whether the loss of any step was NaN or infinite. Reading it waits for the
            device, so do it rarely.

    Raises:
        ValueError: pair, switches, precision, optimizer, workers or frozen teacher that cannot work, naming the part
            and the mend.
        UnavailableError: an engine, or ``fused_norm``, that this machine does not have.

    Source: paper, section 3 and table 3.
    """

    def __init__(
        self,
        teacher: SplitModel | None,
        student: SplitModel,
        criterion: LITLoss,
        optimizer: torch.optim.Optimizer,
        *,
        scaler: torch.amp.GradScaler | None = None,
        capture: bool = False,
        workers: Workers | None = None,
        clip_grad_norm: float | None = None,
        accumulate: int = 1,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        precision: str = "fp32",
        fused_head: bool | None = None,
        teacher_ahead: bool = False,
        **options: Unpack[ModelOptions],
    ) -> None:
        check_student(student)
        expect_switches(capture=capture)
        if capture and fused_head is None:
            fused_head = False
        options.update(measured.switches(options, student, precision, capture))
        self.model = LITModel(teacher, student, criterion, precision=precision, fused_head=fused_head, **options)
        self.teacher, self.student, self.criterion, self.optimizer = teacher, student, criterion, optimizer
        self.projector, self.passes, self.rows = self.model.projector, self.model.passes, self.model.rows
        self.ir_sections, self.teacher_fed = self.model.ir_sections, self.model.teacher_fed
        self.options = criterion.options
        self.passes.weights.on = True
        check_optimizer(optimizer, student, self.projector)
        self.workers = workers_of(workers)
        check_update(scaler, clip_grad_norm, accumulate, scheduler)
        if capture and self.workers.size > 1:
            raise ValueError("capture: the sum over several workers is not captured; use capture=False")
        if capture and accumulate > 1:
            raise ValueError("capture: a captured step is one whole update; use accumulate=1 or capture=False")
        self.clip_grad_norm, self.accumulate, self.scheduler = clip_grad_norm, accumulate, scheduler

        self.device = next(student.parameters()).device
        self.scaler = scaler
        if precision == "fp16" and scaler is None:
            self.scaler = torch.amp.GradScaler(self.device.type)
        self._one = torch.ones((), device=self.device)
        self.nonfinite = torch.zeros((), dtype=torch.bool, device=self.device)
        self.updated = False
        self._backward_checked = False
        self._waiting = 0  # calls whose gradients wait for an update
        self._captured: CapturedSteps | None = None
        if capture:
            modules = [module for module in (student.model, self.projector, criterion) if module is not None]
            frozen = self.model.make_frozen if teacher_ahead else None
            self._captured = CapturedSteps(modules, optimizer, self.scaler, self.nonfinite, frozen)
        self._shared: SharedGradients | None = None
        if self.workers.size > 1:
            self._shared = SharedGradients(self.workers, self._trained(), 3 + len(self.ir_sections))

    @property
    def engine(self) -> str:
        """What runs the teacher: "runner" or "eager"."""
        return self.model.engine

    @property
    def engine_reason(self) -> str:
        """Why this engine was taken; after the first batch also what parts of the teacher run as modules or unfused."""
        return self.model.engine_reason

    @property
    def mark(self) -> Callable[[str], AbstractContextManager[Any]]:
        """Entered with the name of each part of a step while it runs: what `lit-fast bench --profile` listens to."""
        return self.passes.mark

    @mark.setter
    def mark(self, mark: Callable[[str], AbstractContextManager[Any]]) -> None:
        self.passes.mark = mark

    @property
    def captured(self) -> bool:
        """Whether steps are replayed."""
        return self._captured is not None and self._captured.active

    @property
    def capture_reason(self) -> str:
        """Why steps are replayed or not; after the first batch it says what came of it."""
        return "not requested" if self._captured is None else self._captured.reason

    def __call__(self, inputs: Inputs, labels: Tensor | None = None, *, normalizer: Normalizer = None) -> LossParts:
        """Train on one batch.

        Args:
            inputs: what the models take, on the student's device: a tensor [B, ...], a tuple of arguments or a dict of
                keyword arguments, whose ``labels`` are the labels. B may be 0 where other workers have rows.
            labels: class indices, int64, [B] or as the targets say; not needed with ``beta=0`` or ``alpha=0``.
            normalizer: counts of all batches that make one update: their losses then add up to that of all their rows.

        Returns:
            The detached loss parts (total, ce, kl: 0-d; ir: [number of sections with an IR loss]); no host sync.
            With several workers, those over all their rows.
        """
        inputs, labels = without_labels(inputs, labels)
        if normalizer is not None:
            if self._captured is not None:
                raise ValueError("normalizer: a captured step has the counts of its first batch; use capture=False")
            return self._finished(self._train_eagerly(inputs, labels, normalizer))
        return self._train(GivenBatch(inputs, labels, self.passes.channels_last))

    def train_on(self, feed: Feed, rows: int) -> LossParts:
        """Train on the next rows of a dataset that lies on the device, and move it on by them.

        Where the step is captured, the graph gathers, augments and normalises the batch itself, straight into its
        static input: the host does nothing but start the replay.

        Args:
            feed: what `lit_fast.data.loaders.ResidentLoader` calls ``training``, after its ``begin``.
            rows: B of this batch; the last one of an epoch may have fewer.

        Returns:
            As for a call with images and labels.
        """
        return self._train(FedBatch(feed, rows, self.passes.channels_last))

    def _train(self, batch: Batch) -> LossParts:
        if self._captured is not None and self._captured.active:
            self.model.check_teacher_mode()
            parts = self._captured.replayed(batch, self._train_eagerly)
            if parts is not None:
                self.criterion.keep(parts)
                self._after_update()
                return parts
        return self._finished(self._train_eagerly(*batch.read()))

    def prefetch(self, *batches: Tensor) -> None:
        """Start the teacher on images of later calls, after those announced before, while the caller goes on.

        Call it for the next batch before the step on the one at hand, and teacher and student work side by side::

            step.prefetch(first)
            for images, labels, following in ...:
                step.prefetch(following)
                step(images, labels)

        Worth it where something would be idle: cores of the CPU, or a GPU whose student is too small to fill it.
        Several batches of one call go through the teacher at once. It does nothing where the teacher's modules run or
        the step is captured. Results are those of a step without, up to the rounding of another batch size.

        Args:
            batches: the very tensors that later calls will be given, in their order; [B, ...] each.
        """
        if not self.captured:
            self.model.prefetch(*batches)

    # -- one step ----------------------------------------------------------------------------------------------------

    def loss(self, inputs: Inputs, labels: Tensor | None = None, *, normalizer: Normalizer = None) -> Tensor:
        """The 0-d differentiable loss of one batch, without backward; updates the running statistics."""
        return self._loss(inputs, labels, normalizer, None if self.scaler is None else self._scale())

    def _scale(self) -> Tensor:
        """What backward starts with, 0-d: the loss scale, or 1."""
        return self._one if self.scaler is None else self.scaler.scale(self._one)

    def _loss(self, inputs: Inputs, labels: Tensor | None, normalizer: Normalizer, grad_scale: Tensor | None) -> Tensor:
        return self.model(inputs, labels, normalizer=normalizer, grad_scale=grad_scale).loss

    def update(self) -> None:
        """Update the weights with what calls since the last update have accumulated, fewer than ``accumulate``.

        With several workers, each must call it.
        """
        if self._waiting:
            if self._shared is not None:
                self._shared.sum(self._one.new_zeros(self._shared.parts))
            self._update()
            self._after_update()

    def _train_eagerly(self, inputs: Inputs, labels: Tensor | None, normalizer: Normalizer = None) -> LossParts:
        """One step without capture: what is captured, and what runs where nothing is."""
        prepare_momentum(self.optimizer)
        parts = self._backward(inputs, labels, normalizer)
        self._waiting += 1
        if self._shared is not None:
            parts = self._over_all_workers(self._shared, parts)
        assert parts is not None
        with self.mark("update"):
            if self._waiting == self.accumulate:
                uncompiled(LITStep._update, self)
            self.nonfinite.logical_or_(parts.total - parts.total)  # 0, or NaN, which counts as true
        return parts

    def _backward(self, inputs: Inputs, labels: Tensor | None, normalizer: Normalizer) -> LossParts | None:
        """Gradients and loss parts of these rows; ``None`` for the parts where there are no rows."""
        mean = normalizer is None
        if self._shared is not None:
            if not num_rows(inputs):
                self._without_rows(mean)
                return None
            if mean:
                normalizer = self._counts_of_all
        # The loss is told what backward will start with, and is given that very tensor: its gradients are right then.
        scale = self._scale()
        loss = self._loss(inputs, labels, normalizer, scale)
        if self.accumulate > 1 and mean:
            loss = loss / self.accumulate
        uncompiled(LITStep._differentiate, self, loss, scale)
        return self.criterion.parts  # set by the call in `loss`

    def _without_rows(self, mean: bool) -> None:
        """What a process does whose share of the batch is empty."""
        if mean:
            self._counts_of_all(LossCounts(0, 0, [0] * len(self.ir_sections)))
        if not self._waiting:
            self.optimizer.zero_grad(set_to_none=True)
        if self.scaler is not None:
            self.scaler.scale(self._one)  # makes its state, should this be the first step

    def _counts_of_all(self, own: LossCounts) -> LossCounts:
        counts = own.tensor(self.device)
        self.workers.sum_(counts)
        return LossCounts(counts[0], counts[1], counts[2:])

    def _over_all_workers(self, shared: SharedGradients, parts: LossParts | None) -> LossParts:
        """The loss parts of all workers' rows; with an update, their gradients too."""
        if parts is None:  # its gradients may still be those of earlier calls
            summed = self._one.new_zeros(shared.parts, dtype=shared.dtype)
        else:
            own = torch.cat([torch.stack([parts.total, parts.ce, parts.kl]).detach(), parts.ir])
            summed = own.to(shared.dtype)
        if self._waiting == self.accumulate:
            summed = shared.sum(summed)
        else:
            self.workers.sum_(summed)
        total, ce, kl, ir = summed.split([1, 1, 1, shared.parts - 3])
        return LossParts(total[0], ce[0], kl[0], ir)

    def _differentiate(self, loss: Tensor, scale: Tensor) -> None:
        with self.mark("backward"):
            if not self._waiting:
                self.optimizer.zero_grad(set_to_none=True)
            watch = nullcontext() if self._backward_checked else refused_in_backward(self.student)
            with self.passes.backward(), watch:
                torch.autograd.backward(loss, scale)
        self._backward_checked = True

    def _update(self) -> None:
        self._waiting = 0  # also if this fails
        if self.clip_grad_norm is not None:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(list(self._trained()), self.clip_grad_norm)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def _finished(self, parts: LossParts) -> LossParts:
        self.updated = not self._waiting
        if self.updated:
            self._after_update()
        return parts

    def _after_update(self) -> None:
        self.updated = True
        if self.scheduler is not None:
            self.scheduler.step()

    def _trained(self) -> Iterator[nn.Parameter]:
        return (p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad)
