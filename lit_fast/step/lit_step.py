"""One LIT training step (method, "One training step"): teacher once, two student passes, one backward.

The six variants of the paper's table 3 are two switches: which sections carry an IR loss, and what their input is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from lit_fast.errors import UnavailableError
from lit_fast.extension import EXTENSION
from lit_fast.literals import Engine, StudentInput, TargetsKind
from lit_fast.loss.backends.options import LossParts
from lit_fast.loss.modules import LITLoss
from lit_fast.loss.targets import TargetsOf
from lit_fast.sections.inputs import Inputs, num_rows, only_tensor, without_labels
from lit_fast.sections.model import SplitModel
from lit_fast.step.batches import Batch, FedBatch, Feed, GivenBatch
from lit_fast.step.capture import CapturedSteps
from lit_fast.step.linear_heads import HeadSearch
from lit_fast.step.parallel import ALONE, GradientMean, Workers
from lit_fast.step.passes import StudentPasses
from lit_fast.step.rows import LossRows
from lit_fast.step.state import prepare_momentum
from lit_fast.teacher.frozen import After, FrozenTeacher, frozen_for

if TYPE_CHECKING:
    from lit_fast.sections.projector import Projectors

__all__ = ["ENGINES", "PRECISIONS", "LITStep"]

ENGINES: tuple[Engine, ...] = get_args(Engine)
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class LITStep:
    """``parts = step(inputs, labels)``: forward, loss, backward and optimizer update of one batch.

    Args:
        teacher: the split teacher; frozen here (``eval()``, no parameter requires a gradient). ``None`` when the loss
            needs none: ``alpha=1, beta=1`` (training from scratch).
        student: the split student, in the mode its caller sets (``train()`` for training).
        criterion: a `lit_fast.LITLoss`; ``beta=1`` is plain KD, ``beta=0`` needs no labels.
        optimizer: any torch optimizer that holds the student's trainable parameters (and the projector's).
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
            has at the first batch) and keeps 2-d networks in ``channels_last``; ``"eager"`` runs its modules and leaves
            layouts alone; ``"auto"`` takes the runner where the compiled extension is there. Every lowered part is
            checked against its module; one that fails runs as its module under ``"auto"``, with a warning, and raises
            `lit_fast.LoweringError` under ``"runner"``. The attributes ``engine`` and ``engine_reason`` tell
            what was taken. Results agree to rounding.
        capture: replay the whole step, optimizer and scaler included, as one CUDA graph, captured when a shape of batch
            first comes. It needs a CUDA device and a fused optimizer: ``SGD(fused=True)``, or ``Adam`` or ``AdamW``
            with ``fused=True, capturable=True``. Where it cannot be, steps run eagerly. ``captured`` and
            ``capture_reason`` tell. After a captured step gradients are None, and learning rates are float32.
        side_by_side: on CUDA, the teacher, the composed pass and each teacher-fed section on a stream of its own, their
            backward passes likewise: for networks or batches too small to fill the GPU one after the other. Not with
            ``bn_policy="both"``, where two passes write the same running statistics. Same numbers.
        workers: the processes that share each batch (`lit_fast.step.parallel`): each calls the step on its own rows,
            and the update is that of the whole batch.
        frozen: the `lit_fast.FrozenTeacher` that runs ``teacher`` under the engine ``runner``, for several steps to
            share: it is lowered once for all of them. Of the step's precision; with ``strict=False`` under ``"auto"``.
            Default: one of the step's own.
        fused_norm: an experiment: BatchNorm, addition and ReLU of a student that calls
            `lit_fast.models.fused_norm.norm_act` (our ResNets and ResNeXts) as Triton kernels, in ``channels_last`` on
            a CUDA device. Results agree to rounding.
        targets: how rows of logits and their labels are made of the models' outputs: ``"classification"`` (logits
            [B, C]), ``"dense"`` ([B, C, H, W]), ``"tokens"`` ([B, T, C]), ``"causal_lm"`` ([B, T, V], the next token),
            or a function of (output, inputs, labels); see `lit_fast.targets`. Outputs may be tensors, tuples (the
            first), dicts, or objects with ``.logits``.
        skip_padding: leave out of every term of the loss, IRs [B, T, ...] included, the tokens that
            ``inputs["attention_mask"]`` says are padding; without a mask those whose label is ``ignore_index``.
        fused_head: compute the KD loss from hidden states and heads (`lit_fast.functional.linear_kd_loss`), so that
            logits are never there as a whole: for recorded models whose logits an ``nn.Linear`` makes. None: with
            ``targets="causal_lm"`` where that can be, but not in a captured step.

    Attributes:
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
        ir_sections: Literal["all"] | Sequence[int] = "all",
        student_input: StudentInput = "teacher",
        bn_policy: str = "composed",
        precision: str = "fp32",
        scaler: torch.amp.GradScaler | None = None,
        projector: Projectors | None = None,
        engine: str = "auto",
        capture: bool = False,
        side_by_side: bool = False,
        workers: Workers = ALONE,
        frozen: FrozenTeacher | None = None,
        fused_norm: bool = False,
        targets: TargetsKind | TargetsOf = "classification",
        skip_padding: bool = False,
        fused_head: bool | None = None,
    ) -> None:
        self.teacher, self.student, self.criterion, self.optimizer = teacher, student, criterion, optimizer
        self.projector = projector
        self.options = criterion.options
        if student_input not in ("teacher", "composed"):
            raise ValueError(f"student_input: expected 'teacher' or 'composed', got {student_input!r}")
        self.teacher_fed = student_input == "teacher"
        self.ir_sections = self._resolve_sections(ir_sections) if self.options.beta < 1.0 else ()
        self._check_pair()
        self._check_optimizer()
        if teacher is not None:
            teacher.eval().requires_grad_(False)

        self.device = next(student.parameters()).device
        amp_dtype = _amp_dtype(precision, self.device)
        self.scaler = scaler
        if precision == "fp16" and scaler is None:
            self.scaler = torch.amp.GradScaler(self.device.type)
        self._one = torch.ones((), device=self.device)
        self.nonfinite = torch.zeros((), dtype=torch.bool, device=self.device)
        self.rows = LossRows(targets, self.options.ignore_index, skip_padding)
        self.engine, self._engine_reason = _choose_engine(engine, teacher)
        self._frozen: FrozenTeacher | None = None
        if self.engine == "runner" and teacher is not None and self._needs_teacher:
            logits, strict = self.options.beta > 0, engine == "runner"
            self._frozen = frozen_for(teacher, amp_dtype, frozen, logits=logits, strict=strict)
        self.passes = StudentPasses(
            student,
            self.ir_sections,
            teacher_fed=self.teacher_fed,
            logits=self.options.beta > 0.0,
            bn_policy=bn_policy,
            projector=projector,
            amp_dtype=amp_dtype,
            channels_last=self.engine == "runner",
            side_by_side=side_by_side,
            fused_norm=fused_norm,
        )
        wanted = fused_head or (fused_head is None and targets == "causal_lm" and not capture)
        self.heads = HeadSearch(self._needs_soft_targets, fused_head) if wanted and self.options.beta > 0.0 else None
        if capture and workers.size > 1:
            raise ValueError("capture: the sum over several workers is not captured; use capture=False")
        self._captured: CapturedSteps | None = None
        if capture:
            modules = [module for module in (student.model, projector, criterion) if module is not None]
            self._captured = CapturedSteps(modules, optimizer, self.scaler, self.nonfinite)
        self._mean: GradientMean | None = None
        if workers.size > 1:
            trained = (p for group in optimizer.param_groups for p in group["params"] if p.requires_grad)
            self._mean = GradientMean(workers, trained, 3 + len(self.ir_sections))

    @property
    def engine_reason(self) -> str:
        """Why this engine was taken; after the first batch also what parts of the teacher run as modules or unfused."""
        parts = () if self._frozen is None else self._frozen.parts
        notes = (f"{p.name}: {'' if p.lowered else 'runs as its modules: '}{p.reason}" for p in parts if p.reason)
        return "; ".join((self._engine_reason, *notes))

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

    # -- construction ------------------------------------------------------------------------------------------------

    def _resolve_sections(self, wanted: Literal["all"] | Sequence[int]) -> tuple[int, ...]:
        """0-based indices of the sections with an IR loss; frozen ones are left out."""
        count = self.student.num_sections
        numbers = range(1, count + 1) if wanted == "all" else wanted
        bad = [n for n in numbers if not 1 <= n <= count]
        if bad or not list(numbers):
            raise ValueError(f"ir_sections: expected numbers from 1 to {count}, got {wanted!r}")
        kept = tuple(sorted({n - 1 for n in numbers if f"section{n}" not in self.student.frozen}))
        if not kept and self.options.beta < 1.0:
            raise ValueError(
                f"ir_sections {wanted!r}: every one of them is frozen, so there is no IR loss to train on; "
                "unfreeze a section or set beta=1"
            )
        weights = self.options.section_weights
        if weights is not None and len(weights) != len(kept):
            raise ValueError(
                f"section_weights: expected {len(kept)} (one for each section with an IR loss), got {len(weights)}"
            )
        return kept

    def _check_pair(self) -> None:
        self._needs_soft_targets = self.options.beta > 0.0 and self.options.alpha < 1.0
        needs_teacher = bool(self.ir_sections) or self._needs_soft_targets
        if self.teacher is None:
            if needs_teacher:
                raise ValueError(
                    "teacher: the loss needs one unless alpha=1 and beta=1 (training from scratch), got None"
                )
        elif self.teacher.num_sections != self.student.num_sections:
            raise ValueError(
                f"teacher has {self.teacher.num_sections} sections {list(self.teacher.at)}, the student "
                f"{self.student.num_sections} {list(self.student.at)}: split both at the same number of places"
            )
        self._needs_teacher = needs_teacher

    def _check_optimizer(self) -> None:
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        modules: list[tuple[str, nn.Module]] = [("student", self.student.model)]
        if self.projector is not None:
            modules.append(("projector", self.projector))
        for owner, module in modules:
            missing = [n for n, p in module.named_parameters() if p.requires_grad and id(p) not in held]
            if missing:
                raise ValueError(
                    f"optimizer: it does not hold {len(missing)} trainable parameters of the {owner}, first "
                    f"{missing[0]!r}; build it from the {owner}'s parameters() or freeze them"
                )

    # -- the step ----------------------------------------------------------------------------------------------------

    def __call__(self, inputs: Inputs, labels: Tensor | None = None) -> LossParts:
        """Train on one batch.

        Args:
            inputs: what the models take, on the student's device: a tensor [B, ...], a tuple of arguments or a dict of
                keyword arguments, whose ``labels`` are the labels. B may be 0 where other workers have rows.
            labels: class indices, int64, [B] or as the targets say; not needed with ``beta=0`` or ``alpha=0``.

        Returns:
            The detached loss parts (total, ce, kl: 0-d; ir: [number of sections with an IR loss]); no host sync.
            With several workers, those over all their rows.
        """
        return self._train(GivenBatch(*without_labels(inputs, labels), self.passes.channels_last))

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
            self.check_teacher_mode()
            parts = self._captured.replayed(batch, self._train_eagerly)
            if parts is not None:
                self.criterion.keep(parts)
                return parts
        return self._train_eagerly(*batch.read())

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
        if self._frozen is not None and not self.captured:
            self.check_teacher_mode()
            self._frozen.prefetch(*batches)

    def _train_eagerly(self, inputs: Inputs, labels: Tensor | None) -> LossParts:
        """One step without capture: what is captured, and what runs where nothing is."""
        prepare_momentum(self.optimizer)
        parts = self._backward(inputs, labels)
        if self._mean is not None:
            parts = self._over_all_workers(self._mean, parts, num_rows(inputs))
        with self.mark("update"):
            if self.scaler is None:
                self.optimizer.step()
            else:
                self.scaler.step(self.optimizer)
                self.scaler.update()
            assert parts is not None
            self.nonfinite.logical_or_(parts.total.isfinite().logical_not_())
        return parts

    def _backward(self, inputs: Inputs, labels: Tensor | None) -> LossParts | None:
        """Gradients and loss parts of these rows; ``None`` for the parts where there are no rows."""
        if self._mean is not None and not num_rows(inputs):
            self.optimizer.zero_grad(set_to_none=True)
            if self.scaler is not None:
                self.scaler.scale(self._one)  # makes its state, should this be the first step
            return None
        loss = self.loss(inputs, labels)
        with self.mark("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            with self.passes.backward():
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return self.criterion.parts  # set by the call in `loss`

    @staticmethod
    def _over_all_workers(mean: GradientMean, parts: LossParts | None, rows: int) -> LossParts:
        own = None if parts is None else torch.cat([torch.stack([parts.total, parts.ce, parts.kl]).detach(), parts.ir])
        total, ce, kl, ir = mean(own, rows).split([1, 1, 1, mean.parts - 3])
        return LossParts(total[0], ce[0], kl[0], ir)

    def loss(self, inputs: Inputs, labels: Tensor | None = None) -> Tensor:
        """The 0-d differentiable loss of one batch, without backward; updates the running statistics."""
        inputs, labels = without_labels(inputs, labels)
        laid_out = self.passes.laid_out(inputs)
        heads = None if self.heads is None else self.heads.of(self.teacher, self.student, inputs)
        with nullcontext() if heads is None else heads.left_out():
            outputs = self.passes(laid_out, functools.partial(self._run_teacher, inputs, laid_out))
        with self.mark("loss"):
            compared, masks = self.rows(outputs, self.ir_sections, inputs, labels)
            grad_scale = None if self.scaler is None else self.scaler.scale(self._one)
            if heads is None:
                return self.criterion(*compared, grad_scale=grad_scale, **masks)
            with self.passes.autocast():
                return heads.loss(self.criterion, compared, masks, grad_scale)

    def _run_teacher(self, inputs: Inputs, laid_out: Inputs, after: After | None) -> tuple[list[Tensor], Any]:
        if self.teacher is None or not self._needs_teacher:
            return [], None
        self.check_teacher_mode()
        if self._frozen is not None:
            images = only_tensor(inputs)
            return self._frozen.prefetched(images) or self._frozen.run(only_tensor(laid_out), after)
        with torch.no_grad():
            outputs = self.teacher.run(laid_out, after, head=self._needs_soft_targets)
        self.teacher.release()
        return outputs

    def check_teacher_mode(self) -> None:
        """Raises RuntimeError if the teacher was put back into train mode."""
        if self.teacher is not None and self._needs_teacher and self.teacher.training:
            raise RuntimeError(
                "teacher: expected eval mode, got train mode since the step was built; call teacher.eval()"
            )


def _choose_engine(requested: str, teacher: SplitModel | None) -> tuple[str, str]:
    """The engine, and why it was taken."""
    if requested not in ENGINES:
        raise ValueError(f"engine: expected one of {', '.join(map(repr, ENGINES))}, got {requested!r}")
    usable, reason, mend = EXTENSION.loaded, EXTENSION.reason, "build the extension or use engine='auto'"
    if teacher is not None and teacher.how == "recorded":
        usable, reason, mend = False, "the teacher is recorded, so its own forward runs", "use engine='auto'"
    if requested == "runner" and not usable:
        raise UnavailableError(f"engine 'runner' is not available: {reason}; {mend}")
    if requested != "auto":
        return requested, "requested"
    return ("runner", "the compiled extension is there") if usable else ("eager", reason)


def _amp_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {list(PRECISIONS)}, got {precision!r}")
    if precision == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        major, minor = torch.cuda.get_device_capability(device)
        raise ValueError(
            f"precision: bf16 needs compute capability 8.0 or higher, got {major}.{minor} "
            f"({torch.cuda.get_device_name(device)}); use precision='fp16'"
        )
    return PRECISIONS[precision]
