"""The loss of a LIT step as a module (method, "One training step"): teacher once, two student passes, the loss.

The six variants of the paper's table 3 are two switches: which sections carry an IR loss, and what their input is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lit_fast.errors import UnavailableError, expect_switches
from lit_fast.extension import EXTENSION
from lit_fast.literals import Engine, StudentInput, Switch, TargetsKind
from lit_fast.loss.backends.counts import LossCounts
from lit_fast.loss.modules import LITLoss
from lit_fast.loss.targets import TargetsOf, logits_of
from lit_fast.sections.dryrun import untouched
from lit_fast.sections.inputs import Inputs, dtypes_told, only_tensor, without_labels
from lit_fast.sections.model import SplitModel
from lit_fast.sections.tracing import set_mode
from lit_fast.step.arguments import check_parts, section_numbers
from lit_fast.step.linear_heads import HeadSearch
from lit_fast.step.output import LITOutput
from lit_fast.step.passes.student import PassOutputs, StudentPasses
from lit_fast.step.rows import LossRows, OutputShapes
from lit_fast.teacher.frozen import After, FrozenTeacher, frozen_for

if TYPE_CHECKING:
    from lit_fast.sections.projector import Projectors

__all__ = ["ENGINES", "PRECISIONS", "LITModel"]

Normalizer = LossCounts | Callable[[LossCounts], LossCounts] | None

ENGINES: tuple[Engine, ...] = get_args(Engine)
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class ModelOptions(TypedDict, total=False):
    """The settings of a `LITModel` that a `LITStep` hands on."""

    ir_sections: Literal["all"] | Sequence[int]
    student_input: StudentInput
    bn_policy: str
    projector: Projectors | None
    engine: str
    side_by_side: Switch
    frozen: FrozenTeacher | None
    fused_norm: Switch
    targets: TargetsKind | TargetsOf
    skip_padding: bool


class LITModel(nn.Module):
    """``loss, parts, logits = model(inputs, labels)``: what a framework or a loop of your own trains.

    Its parameters and its state_dict are the student's, and the projector's where there is one. Teacher and criterion
    are in it, and move with it, but are none of its submodules. `lit_fast.LITStep` is this with an optimizer.

    Args:
        teacher: the split teacher; frozen here (``eval()``, no parameter requires a gradient). ``None`` when the loss
            needs none: ``alpha=1, beta=1`` (training from scratch).
        student: the split student, in the mode its caller sets (``train()`` for training).
        criterion: a `lit_fast.LITLoss`; ``beta=1`` is plain KD, ``beta=0`` needs no labels.
        ir_sections, student_input, bn_policy, projector, engine, frozen, targets, skip_padding, fused_head: as for
            `lit_fast.LITStep`.
        side_by_side, fused_norm: likewise, but ``"auto"`` is off: it asks whether the step is captured.
        over_processes: in DistributedDataParallel or FSDP, which average gradients: divide the loss by what counts in
            all processes and multiply it by their number, so that the average is the gradient of the whole batch's
            loss, however unequal their rows, class weights and padding are. ``parts`` are then this process's share.
        precision: ``"fp32"``, which leaves the precision to the caller's autocast, ``"bf16"`` or ``"fp16"``: an
            autocast of its own, for both networks.

    Raises:
        ValueError: pair, switches or precision that cannot work, naming the part and the mend.
        UnavailableError: an engine, or ``fused_norm``, that this machine does not have.

    Example:
        >>> import torch, lit_fast as lf
        >>> teacher, student = lf.split(lf.models.resnet32()), lf.split(lf.models.resnet20())
        >>> model = lf.LITModel(teacher, student, lf.LITLoss())
        >>> loss, parts, logits = model(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))
        >>> loss.backward()
        >>> logits.shape, len(list(model.parameters())) == len(list(student.parameters()))
        (torch.Size([4, 10]), True)

    Source: paper, section 3 and table 3.
    """

    # Of Hugging Face's Trainer: it need not hand over how many labels all accumulated batches have.
    accepts_loss_kwargs = False

    def __init__(
        self,
        teacher: SplitModel | None,
        student: SplitModel,
        criterion: LITLoss,
        *,
        ir_sections: Literal["all"] | Sequence[int] = "all",
        student_input: StudentInput = "teacher",
        bn_policy: str = "composed",
        precision: str = "fp32",
        projector: Projectors | None = None,
        engine: str = "auto",
        side_by_side: Switch = False,
        frozen: FrozenTeacher | None = None,
        fused_norm: Switch = False,
        targets: TargetsKind | TargetsOf = "classification",
        skip_padding: bool = False,
        fused_head: bool | None = None,
        over_processes: bool = False,
    ) -> None:
        super().__init__()
        switches = {"side_by_side": side_by_side, "fused_norm": fused_norm, "skip_padding": skip_padding}
        check_parts(teacher, student, criterion, projector, over_processes=over_processes, **switches)
        if fused_head is not None:
            expect_switches(fused_head=fused_head)
        self.student, self.projector = student, projector
        self._others = (teacher, criterion)  # in a tuple: not registered
        self.options = criterion.options
        if student_input not in ("teacher", "composed"):
            raise ValueError(f"student_input: expected 'teacher' or 'composed', got {student_input!r}")
        self.teacher_fed, self.over_processes = student_input == "teacher", over_processes
        self.ir_sections = self._resolve_sections(ir_sections) if self.options.beta < 1.0 else ()
        self._frozen_parts, self.training = student.frozen, student.training
        self._check_pair()
        if teacher is not None:
            teacher.eval().requires_grad_(False)
        self._amp_dtype = _amp_dtype(precision, next(student.parameters()).device)
        self._shapes = OutputShapes()
        self.rows = LossRows(targets, self.options.ignore_index, skip_padding)
        own_targets = callable(targets) and self._needs_soft_targets
        self.engine, self._engine_reason = _choose_engine(engine, teacher, own_targets)
        self._strict = engine == "runner"
        self._frozen: FrozenTeacher | None = None
        self._shared_frozen = frozen
        self.make_frozen()
        self.passes = StudentPasses(
            student,
            self.ir_sections,
            teacher_fed=self.teacher_fed,
            logits=self.options.beta > 0.0,
            bn_policy=bn_policy,
            projector=projector,
            amp_dtype=self._amp_dtype,
            channels_last=self.engine == "runner",
            side_by_side=side_by_side is True,
            fused_norm=fused_norm is True,
        )
        wanted = fused_head or (fused_head is None and targets == "causal_lm")
        self.heads = HeadSearch(self._needs_soft_targets, fused_head) if wanted and self.options.beta > 0.0 else None

    @property
    def teacher(self) -> SplitModel | None:
        """The split teacher, which is not trained."""
        return self._others[0]

    @property
    def criterion(self) -> LITLoss:
        """The loss."""
        return self._others[1]

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

    def forward(
        self,
        inputs: Inputs = None,
        labels: Tensor | None = None,
        *,
        normalizer: Normalizer = None,
        grad_scale: Tensor | None = None,
        **keywords: Any,
    ) -> LITOutput:
        """The loss of one batch; updates the running statistics of a student in train mode.

        Args:
            inputs: what the models take: a tensor [B, ...], a tuple of arguments or a dict of keyword arguments, whose
                ``labels`` are the labels.
            labels: class indices, int64, [B] or as the targets say; not needed with ``beta=0`` or ``alpha=0``.
            normalizer: `lit_fast.LossCounts` of all that makes one update, as for the criterion; or a function that
                makes them of this batch's own.
            grad_scale: the loss scale, 0-d, that the loss will be multiplied by.
            **keywords: instead of ``inputs``: the models' keyword arguments, as frameworks pass a batch.
        """
        if keywords:
            if inputs is not None:
                raise TypeError(
                    f"LITModel: expected a batch or keyword arguments, got both ({', '.join(keywords)}); put all that "
                    "the models take into one dict"
                )
            inputs = keywords
        if inputs is None:
            raise TypeError(
                "LITModel: got no inputs of the networks; Hugging Face's Trainer takes them out of a batch unless it "
                "has TrainingArguments(remove_unused_columns=False)"
            )
        self._check_thawed()
        inputs, labels = without_labels(inputs, labels)
        laid_out = self.passes.laid_out(inputs)
        heads = None if self.heads is None else self.heads.of(self.teacher, self.student, inputs)
        with nullcontext() if heads is None else heads.left_out(), self._dtypes_told(inputs):
            outputs = self.passes(laid_out, functools.partial(self._run_teacher, inputs, laid_out))
        with self.mark("loss"):
            compared, masks = self.rows(outputs, self.ir_sections, inputs, labels)
            whole = self._whole(normalizer, compared, masks)
            if whole is not None:
                masks["normalizer"] = whole
            if heads is None:
                loss = self.criterion(*compared, grad_scale=grad_scale, **masks)
            else:
                with self.passes.autocast():
                    loss = heads.loss(self.criterion, compared, masks, grad_scale)
            if self.over_processes:
                loss = loss * dist.get_world_size()
        parts = self.criterion.parts
        assert parts is not None  # of the call above
        logits = None if heads else _logits(outputs.output, compared[2])
        return LITOutput(loss, parts, logits, training=self.training)

    def _dtypes_told(self, inputs: Inputs) -> AbstractContextManager[None]:
        if torch.compiler.is_compiling():
            return nullcontext()
        return dtypes_told(inputs, teacher=self.teacher, student=self.student)

    @torch.no_grad()
    def counts(self, inputs: Inputs, labels: Tensor | None = None) -> LossCounts:
        """What counts in a batch, before it is trained on: add up those of all that make one update.

            counts = sum(model.counts(*batch) for batch in batches)
            for batch in batches:
                step(*batch, normalizer=counts)  # a step with accumulate=len(batches)

        The shapes of IRs are those of a forward of the student, in eval mode, which is run when a shape of inputs comes
        for the first time.
        """
        inputs, labels = without_labels(inputs, labels)
        outputs = self._shapes.of(inputs, self._outputs_alone)
        compared, masks = self.rows(outputs, (), inputs, labels)
        return self._counted(compared, masks)

    def _outputs_alone(self, inputs: Inputs) -> PassOutputs:
        heads = None if self.heads is None else self.heads.of(self.teacher, self.student, inputs)
        with (
            untouched(self.student),
            set_mode(self.student, False),
            nullcontext() if heads is None else heads.left_out(),
            self.passes.autocast(),
        ):
            irs, output = self.student.run(self.passes.laid_out(inputs), head=self.options.beta > 0.0)
        self.student.release()
        compared = [self.passes.in_teachers_width(i, irs[i]) for i in self.ir_sections]
        return PassOutputs(compared, output, [], None)

    def _whole(self, normalizer: Normalizer, compared: tuple[Any, ...], masks: dict[str, Any]) -> LossCounts | None:
        """What the sums of the loss are divided by; None for this batch's own counts."""
        if self.over_processes and normalizer is None:
            normalizer = LossCounts.all_reduce
        if not callable(normalizer):
            return normalizer
        return normalizer(self._counted(compared, masks))

    def _counted(self, compared: tuple[Any, ...], masks: dict[str, Any]) -> LossCounts:
        irs, _, logits, _, labels = compared
        rows = masks.get("rows")
        if labels is None and rows is None and logits is not None:
            rows = torch.ones(len(logits), dtype=torch.bool, device=self.passes.device)
        return self.criterion.count(irs, labels, rows=rows, ir_rows=masks.get("ir_rows"))

    def _run_teacher(self, inputs: Inputs, laid_out: Inputs, after: After | None) -> tuple[list[Tensor], Any]:
        if self.teacher is None or not self._needs_teacher:
            return [], None
        self.check_teacher_mode()
        frozen = self.make_frozen()
        if frozen is not None:
            images = only_tensor(inputs)
            return frozen.prefetched(images) or frozen.run(only_tensor(laid_out), after)
        with torch.no_grad():
            outputs = self.teacher.run(laid_out, after, head=self._needs_soft_targets)
        self.teacher.release()
        return outputs

    def check_teacher_mode(self) -> None:
        """Raises RuntimeError if the teacher was put back into train mode."""
        if self.teacher is not None and self._needs_teacher and self.teacher.training:
            raise RuntimeError("teacher: expected eval mode, got train mode since it was built; call teacher.eval()")

    def prefetch(self, *batches: Tensor) -> None:
        """Start the teacher on images of later calls: `lit_fast.LITStep.prefetch`."""
        frozen = self.make_frozen()
        if frozen is not None:
            self.check_teacher_mode()
            frozen.prefetch(*batches)

    # -- what moves with it, and what a copy has ---------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LITModel:
        super()._apply(fn, recurse)
        for module in self._others:
            if module is not None:
                module._apply(fn)
        self._frozen = None  # its programs hold weights that have stayed
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_frozen": None}  # programs are made anew

    # -- construction ------------------------------------------------------------------------------------------------

    def make_frozen(self) -> FrozenTeacher | None:
        """What runs the teacher under the engine ``runner``; None under the other, and where it is not needed."""
        if self._frozen is None and self.engine == "runner" and self.teacher is not None and self._needs_teacher:
            logits = self.options.beta > 0.0
            self._frozen = frozen_for(
                self.teacher, self._amp_dtype, self._shared_frozen, logits=logits, strict=self._strict
            )
        return self._frozen

    def _check_thawed(self) -> None:
        """Raises RuntimeError if parts are trained now that were frozen: they would get no IR loss."""
        thawed = self._frozen_parts - self.student.frozen
        if thawed:
            raise RuntimeError(
                f"student: {', '.join(sorted(thawed))} was frozen when this was built and is trained now, so it may be "
                "missing among the IR losses and in the optimizer; build a new one after unfreeze()"
            )

    def _resolve_sections(self, wanted: Literal["all"] | Sequence[int]) -> tuple[int, ...]:
        """0-based indices of the sections with an IR loss; frozen ones are left out."""
        count = self.student.num_sections
        numbers = section_numbers(wanted, count)
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


def _logits(output: Any, rows: Tensor | None) -> Tensor | None:
    """Those that a model returned; where they are not found, what own targets made of it."""
    try:
        return None if output is None else logits_of(output)
    except TypeError:
        return rows


def _choose_engine(requested: str, teacher: SplitModel | None, own_targets: bool) -> tuple[str, str]:
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
    if own_targets:
        return "eager", "targets is a function, which is to be given all that the teacher returns"
    return ("runner", "the compiled extension is there") if usable else ("eager", reason)


def _amp_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {list(PRECISIONS)}, got {precision!r}")
    if precision == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        major, minor = torch.cuda.get_device_capability(device)
        raise ValueError(
            f"precision: bf16 needs compute capability 8.0 or higher, got {major}.{minor} "
            f"({torch.cuda.get_device_name(device)}); use precision='fp16'"
        )
    return PRECISIONS[precision]
