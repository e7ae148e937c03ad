"""One LIT training step (method, "One training step"): teacher once, two student passes, one backward.

The six variants of the paper's table 3 are two switches: which sections carry an IR loss, and what their input is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from lit_fast import fused_norm as norms
from lit_fast.backends import native
from lit_fast.backends.options import LossParts
from lit_fast.batches import Batch, FedBatch, Feed, GivenBatch
from lit_fast.capture import CapturedSteps
from lit_fast.literals import Engine, StudentInput
from lit_fast.losses import LITLoss
from lit_fast.parallel import ALONE, GradientMean, Workers
from lit_fast.running_stats import RunningStats
from lit_fast.sections import SplitModel
from lit_fast.step_state import prepare_momentum
from lit_fast.streams import SideStreams
from lit_fast.teacher import After, FrozenTeacher

if TYPE_CHECKING:
    from lit_fast.projector import Projectors

__all__ = ["ENGINES", "PRECISIONS", "LITStep"]

ENGINES: tuple[Engine, ...] = get_args(Engine)
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class LITStep:
    """``parts = step(images, labels)``: forward, loss, backward and optimizer update of one batch.

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
            `lit_fast.teacher.LoweringError` under ``"runner"``. The attributes ``engine`` and ``engine_reason`` tell
            what was taken. Results agree to rounding.
        capture: replay the whole step, optimizer and scaler included, as one CUDA graph, captured when a shape of batch
            first comes. It needs a CUDA device and a fused optimizer: ``SGD(fused=True)``, or ``Adam`` or ``AdamW``
            with ``fused=True, capturable=True``. Where it cannot be, steps run eagerly. ``captured`` and
            ``capture_reason`` tell. After a captured step gradients are None, and learning rates are float32.
        side_by_side: on CUDA, the teacher, the composed pass and each teacher-fed section on a stream of its own, their
            backward passes likewise: for networks or batches too small to fill the GPU one after the other. Not with
            ``bn_policy="both"``, where two passes write the same running statistics. Same numbers.
        workers: the processes that share each batch (`lit_fast.parallel`): each calls the step on its own rows, and
            the update is that of the whole batch.
        fused_norm: an experiment: BatchNorm, addition and ReLU of a student that calls `lit_fast.fused_norm.norm_act`
            (our ResNets and ResNeXts) as Triton kernels, in ``channels_last`` on a CUDA device. Results agree to
            rounding.

    Attributes:
        nonfinite: 0-d bool on the device: whether the loss of any step was NaN or infinite. Reading it waits for the
            device, so do it rarely.

    Raises:
        ValueError: pair, switches, precision, optimizer or workers that cannot work, naming the part and the mend.
        RuntimeError: an engine, or ``fused_norm``, that this machine does not have.

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
        fused_norm: bool = False,
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
        if fused_norm:
            norms.check(self.device)
        self._fused_norm = fused_norm
        self.amp_dtype = _amp_dtype(precision, self.device)
        self.scaler = scaler
        if precision == "fp16" and scaler is None:
            self.scaler = torch.amp.GradScaler(self.device.type)
        self._one = torch.ones((), device=self.device)
        self.nonfinite = torch.zeros((), dtype=torch.bool, device=self.device)
        self.engine, self._engine_reason = _choose_engine(engine)
        self._frozen: FrozenTeacher | None = None
        self._ahead: list[tuple[Tensor, Tensor]] = []  # prefetched images, as given and in the student's layout
        self._channels_last = False
        if self.engine == "runner":
            if teacher is not None and self._needs_teacher:
                self._frozen = FrozenTeacher(
                    teacher, self.amp_dtype, logits=self.options.beta > 0, strict=engine == "runner"
                )
            self._channels_last = any(isinstance(module, nn.Conv2d) for module in student.modules())
            if self._channels_last:
                student.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        fed = [i for i in self.ir_sections if self.teacher_fed]
        self.running_stats = RunningStats(student, policy=bn_policy, teacher_fed_sections=fed)
        self._streams = self._side_streams(bn_policy, fed) if side_by_side else None
        self._checked_inplace = False
        # Entered with the name of each part of a step while it runs: what `lit-fast bench --profile` listens to.
        self.mark: Callable[[str], AbstractContextManager[Any]] = nullcontext
        if capture and workers.size > 1:
            raise ValueError("capture: the sum over several workers is not captured; use capture=False")
        self._captured = CapturedSteps(self) if capture else None
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
        needs_teacher = bool(self.ir_sections) or (self.options.beta > 0.0 and self.options.alpha < 1.0)
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

    def _side_streams(self, bn_policy: str, fed: Sequence[int]) -> SideStreams | None:
        """One for the teacher and one for each section but the first; none where nothing can run side by side."""
        if bn_policy == "both":
            raise ValueError(
                "side_by_side: both passes of a section write its running statistics under bn_policy='both', so they "
                "must follow each other; use another policy or side_by_side=False"
            )
        if self.device.type != "cuda" or not any(fed):
            return None
        return SideStreams(self.device, self.student.num_sections)

    # -- the step ----------------------------------------------------------------------------------------------------

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> LossParts:
        """Train on one batch.

        Args:
            images: model input, [B, ...], on the student's device. B may be 0 where other workers have rows.
            labels: class indices, [B] int64; not needed with ``beta=0`` or ``alpha=0``.

        Returns:
            The detached loss parts (total, ce, kl: 0-d; ir: [number of sections with an IR loss]); no host sync.
            With several workers, those over all their rows.
        """
        return self._train(GivenBatch(images, labels))

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
        return self._train(FedBatch(feed, rows, self._channels_last))

    def _train(self, batch: Batch) -> LossParts:
        if self._captured is not None:
            return self._captured(self, batch)
        return self.train_eagerly(*batch.read())

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
            announced = [(images, self.laid_out(images)) for images in batches]
            self._frozen.prefetch(*(laid_out for _, laid_out in announced))
            self._ahead += announced

    def train_eagerly(self, images: Tensor, labels: Tensor | None) -> LossParts:
        """One step without capture: what is captured, and what runs where nothing is."""
        prepare_momentum(self.optimizer)
        parts = self._backward(images, labels)
        if self._mean is not None:
            parts = self._over_all_workers(self._mean, parts, len(images))
        with self.mark("update"):
            if self.scaler is None:
                self.optimizer.step()
            else:
                self.scaler.step(self.optimizer)
                self.scaler.update()
            assert parts is not None
            self.nonfinite.logical_or_(parts.total.isfinite().logical_not_())
        return parts

    def _backward(self, images: Tensor, labels: Tensor | None) -> LossParts | None:
        """Gradients and loss parts of these rows; ``None`` for the parts where there are no rows."""
        if self._mean is not None and not len(images):
            self.optimizer.zero_grad(set_to_none=True)
            if self.scaler is not None:
                self.scaler.scale(self._one)  # makes its state, should this be the first step
            return None
        loss = self.loss(images, labels)
        with self.mark("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            with nullcontext() if self._streams is None else self._streams.backward():
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return self.criterion.parts  # set by the call in `loss`

    @staticmethod
    def _over_all_workers(mean: GradientMean, parts: LossParts | None, rows: int) -> LossParts:
        own = None if parts is None else torch.cat([torch.stack([parts.total, parts.ce, parts.kl]).detach(), parts.ir])
        total, ce, kl, ir = mean(own, rows).split([1, 1, 1, mean.parts - 3])
        return LossParts(total[0], ce[0], kl[0], ir)

    def loss(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The 0-d differentiable loss of one batch, without backward; updates the running statistics."""
        images = self._prefetched(images)
        with self._autocast(), norms.enabled() if self._fused_norm else nullcontext():
            if self._streams is None:
                with self.mark("teacher"):
                    teacher_irs, teacher_logits = self._run_teacher(images)
                student_irs, student_logits = self._run_student(images, teacher_irs)
            else:
                teacher_irs, teacher_logits, student_irs, student_logits = self._run_side_by_side(self._streams, images)
        with self.mark("loss"):
            return self.criterion(
                student_irs,
                [teacher_irs[i] for i in self.ir_sections],
                student_logits,
                teacher_logits,
                labels,
                grad_scale=None if self.scaler is None else self.scaler.scale(self._one),
            )

    def _prefetched(self, images: Tensor) -> Tensor:
        """The very tensor that the teacher was started on, if these images were announced; else laid out now."""
        if self._ahead:
            announced, laid_out = self._ahead.pop(0)
            if announced is images:
                return laid_out
            self._ahead = []
        return self.laid_out(images)

    def laid_out(self, images: Tensor) -> Tensor:
        """The images in the layout that the student runs in."""
        if self._channels_last and images.dim() == 4:
            return images.contiguous(memory_format=torch.channels_last)
        return images

    def _autocast(self) -> Any:
        if self.amp_dtype is None:
            return nullcontext()
        # No cache: a graph would keep the weights of its capture wherever they were cast outside of it, and without it
        # the gradients of a section's two passes are added in float32.
        return torch.autocast(self.device.type, dtype=self.amp_dtype, cache_enabled=False)

    def _run_teacher(self, images: Tensor, after: After | None = None) -> tuple[list[Tensor], Tensor | None]:
        if self.teacher is None or not self._needs_teacher:
            return [], None
        self.check_teacher_mode()
        if self._frozen is not None:
            return self._frozen.run(images, after)
        with torch.no_grad():
            return self.teacher.run(images, after)

    def check_teacher_mode(self) -> None:
        """Raises RuntimeError if the teacher was put back into train mode."""
        if self.teacher is not None and self._needs_teacher and self.teacher.training:
            raise RuntimeError(
                "teacher: expected eval mode, got train mode since the step was built; call teacher.eval()"
            )

    def _run_student(self, images: Tensor, teacher_irs: Sequence[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """Both student passes. Returns the IRs to compare (those of ``ir_sections``) and the composed logits."""
        composed, logits = self._composed_pass(images)
        with self.mark("student, teacher-fed"):
            irs = []  # torch.compile does not trace a comprehension whose elements enter contexts
            for i in self.ir_sections:
                ir = self._teacher_fed(i, teacher_irs[i - 1]) if self._is_fed(i) else composed[i]
                irs.append(self._compared(i, ir))
        self._checked_inplace = True
        return irs, logits

    def _run_side_by_side(
        self, streams: SideStreams, images: Tensor
    ) -> tuple[list[Tensor], Tensor | None, list[Tensor], Tensor | None]:
        """Teacher and both student passes, each section as soon as its input is there."""
        fed: dict[int, Tensor] = {}
        with_grad = torch.is_grad_enabled()

        def feed(before: int, teacher_ir: Tensor) -> None:
            i = before + 1
            if i in self.ir_sections:
                with streams.beside(i, after=0), torch.set_grad_enabled(with_grad):
                    fed[i] = self._compared(i, self._teacher_fed(i, teacher_ir))

        try:
            with streams.beside(0):
                teacher_irs, teacher_logits = self._run_teacher(images, feed)
                for i in filter(self._is_fed, self.ir_sections):
                    if i not in fed:  # the teacher was prefetched
                        feed(i - 1, teacher_irs[i - 1])
            composed, logits = self._composed_pass(images)
        finally:  # also after an error: what has begun reads tensors that the caller goes on with
            streams.join()
        irs = [fed[i] if self._is_fed(i) else self._compared(i, composed[i]) for i in self.ir_sections]
        self._checked_inplace = True
        return teacher_irs, teacher_logits, irs, logits

    def _composed_pass(self, images: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """The outputs of the student's own sections, as far as they are needed, and its logits."""
        student, stats = self.student, self.running_stats
        sections = student.sections
        composed_grad = self.options.beta > 0.0 or not self.teacher_fed
        last_needed = len(sections) if composed_grad or stats.needs_composed_pass else 1

        composed: list[Tensor] = []
        with self.mark("student, composed"):
            h = student.stem(images)
            for i, section in enumerate(sections[:last_needed]):
                # Section 1 is both passes at once (method: b_1 = a_1), so it always carries a gradient.
                grad = nullcontext() if composed_grad or i == 0 else torch.no_grad()
                with stats.composed_pass(i), grad:
                    h = section(h)
                composed.append(h)
            logits = student.head(h) if self.options.beta > 0.0 else None
        return composed, logits

    def _is_fed(self, i: int) -> bool:
        """Whether section ``i`` (from 0) is compared in a pass of its own; section 1 is both passes at once."""
        return self.teacher_fed and i > 0

    def _compared(self, i: int, ir: Tensor) -> Tensor:
        """What is held against the teacher's IR."""
        return ir if self.projector is None else self.projector.compare(i, ir)

    def _teacher_fed(self, i: int, teacher_ir: Tensor) -> Tensor:
        """What section ``i`` (from 0) makes of the teacher's IR before it."""
        fed = teacher_ir if self.projector is None else self.projector.feed(i - 1, teacher_ir)
        with self._watch_inplace(i, fed), self.running_stats.teacher_fed_pass(i):
            return self.student.sections[i](fed)

    @contextmanager
    def _watch_inplace(self, i: int, fed: Tensor) -> Iterator[None]:
        """On the first step: a section that overwrites its input would corrupt the IR kept as target."""
        if self._checked_inplace:
            yield
            return
        before = fed._version
        yield
        if fed._version != before:
            raise RuntimeError(
                f"section {i + 1} of the student overwrites its input in place, which is the teacher's IR {i}, kept as "
                "a target; make its first operation out of place (for example nn.ReLU(inplace=False))"
            )


def _choose_engine(requested: str) -> tuple[str, str]:
    """The engine, and why it was taken."""
    if requested not in ENGINES:
        raise ValueError(f"engine: expected one of {', '.join(map(repr, ENGINES))}, got {requested!r}")
    usable, reason = native.EXTENSION.loaded, native.EXTENSION.reason
    if requested == "runner" and not usable:
        raise RuntimeError(f"engine 'runner' is not available: {reason}; build the extension or use engine='auto'")
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
