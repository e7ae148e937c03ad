"""The two passes of a student: composed, through its own sections, and each section on the teacher's IR before it.

Section 1 has the same input in both and runs once (method: b_1 = a_1). There is no loss, backward or update here:
`lit_fast.LITStep` has them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_fast.models import fused_norm as norms
from lit_fast.models.norm_pattern import FusedForwards
from lit_fast.sections.inputs import Inputs
from lit_fast.sections.model import SplitModel
from lit_fast.step.batches import laid_out
from lit_fast.step.passes.running_stats import RunningStats
from lit_fast.step.passes.weights import PassWeights
from lit_fast.streams import SideStreams
from lit_fast.teacher.frozen import After, Outputs

if TYPE_CHECKING:
    from lit_fast.sections.projector import Projectors

__all__ = ["PassOutputs", "StudentPasses"]

RunTeacher = Callable[[After | None], Outputs]


class PassOutputs(NamedTuple):
    """What the passes of a batch give.

    Attributes:
        irs: of the compared sections, in their order, in the teacher's width.
        output: of the composed pass, as the model returns it; None where it is not needed.
        teacher_irs: of every section; none without a teacher.
        teacher_output: None where it is not needed.
    """

    irs: list[Tensor]
    output: Any
    teacher_irs: list[Tensor]
    teacher_output: Any


def _unmarked(name: str) -> AbstractContextManager[None]:
    return nullcontext()  # nullcontext(name) would be one that torch.compile cannot break its graph in


class StudentPasses:
    """``outputs = passes(passes.laid_out(inputs), run_teacher)``: teacher, composed pass, teacher-fed sections.

    Args:
        student: the split student, in the mode its caller sets.
        compared: the sections whose IRs are held against the teacher's, from 0, in ascending order.
        teacher_fed: whether their input is the teacher's IR before them, else the student's own.
        logits: whether the composed pass goes on to the head. Without, it carries gradients through section 1 alone
            (and the others where they are compared), and runs no further than needed.
        bn_policy, projector, side_by_side, fused_norm: as for `lit_fast.LITStep`.
        amp_dtype: that of autocast; None: there is none.
        channels_last: give a student with 2-d convolutions its images in that layout, in which its convolutions then
            work; not one that is recorded. Its parameters keep their own: their owner may save them at any time.
        copied: give every section a copy of its input: one that overwrites it leaves all IRs intact. Otherwise such a
            section is refused where it is fed the teacher's.

    Attributes:
        mark: entered with the name of each part of a step while it runs.
        streams: those that run side by side; None: one pass after the other.
        fused_norm: the student's forwards with BatchNorm, addition and ReLU in one; None: as it has them.
        weights: casts, sums of gradients and counts by few launches for all parameters, where they are switched on.

    Raises:
        ValueError: a policy that is unknown, or that cannot be kept; the message names the mend.
        UnavailableError: ``fused_norm`` on a machine that does not have it.
        RuntimeError: from a pass, a section that overwrites the teacher's IR.
    """

    def __init__(
        self,
        student: SplitModel,
        compared: Collection[int],
        *,
        teacher_fed: bool = True,
        logits: bool = True,
        bn_policy: str = "composed",
        projector: Projectors | None = None,
        amp_dtype: torch.dtype | None = None,
        channels_last: bool = False,
        side_by_side: bool = False,
        fused_norm: bool = False,
        copied: bool = False,
    ) -> None:
        self.student, self.compared, self.teacher_fed = student, tuple(compared), teacher_fed
        self.projector, self.amp_dtype = projector, amp_dtype
        self.mark: Callable[[str], AbstractContextManager[Any]] = _unmarked
        self._logits, self._copied = logits, copied
        self._inputs_checked = copied
        self.fused_norm: FusedForwards | None = None
        if fused_norm:
            norms.check(self.device)
            self.fused_norm = FusedForwards(student)
        convolves = any(isinstance(module, nn.Conv2d) for module in student.modules())
        self.channels_last = channels_last and student.how == "traced" and convolves
        fed = self.compared if teacher_fed else ()
        self._running_stats = RunningStats(student, policy=bn_policy, teacher_fed_sections=fed)
        self.streams = self._side_streams(bn_policy) if side_by_side else None
        self.weights = PassWeights(student, [i for i in self.compared if self._is_fed(i)], amp_dtype)

    def _side_streams(self, bn_policy: str) -> SideStreams | None:
        """One for the teacher and one for each teacher-fed section; none where nothing can run side by side."""
        if bn_policy == "both":
            raise ValueError(
                "side_by_side: both passes of a section write its running statistics under bn_policy='both', so they "
                "must follow each other; use another policy or side_by_side=False"
            )
        if self.student.how == "recorded":
            raise ValueError(
                "side_by_side: the teacher-fed sections of a recorded student wait for its composed pass, whose masks "
                "and positions they take; use side_by_side=False"
            )
        fed = len(self._fed_sections)
        return SideStreams(self.device, 1 + fed) if fed and self.device.type == "cuda" else None

    @property
    def device(self) -> torch.device:
        """The student's."""
        return next(self.student.parameters()).device

    def laid_out(self, inputs: Inputs) -> Inputs:
        """The inputs in the layout that the student runs in."""
        return laid_out(inputs, self.channels_last)

    def __call__(self, inputs: Inputs, run_teacher: RunTeacher) -> PassOutputs:
        """The teacher and both passes on one batch; updates the running statistics.

        Args:
            inputs: what the models take, [B, ...], laid out.
            run_teacher: gives the teacher's IRs and logits. It is given what to call with the number and the IR of each
                section, before the next one is begun, or None; that may be left out where the IRs are there already.
        """
        with (
            self.autocast(),
            nullcontext() if self.fused_norm is None else self.fused_norm.used(),
            self.weights.used(count=self.fused_norm is None),  # whose kernels do it themselves
        ):
            if self.streams is not None:
                return self._side_by_side(self.streams, inputs, run_teacher)
            with self.mark("teacher"):
                teacher_irs, teacher_output = run_teacher(None)
            return PassOutputs(*self.run(inputs, teacher_irs), teacher_irs, teacher_output)

    def backward(self) -> AbstractContextManager[None]:
        """What backward through these outputs runs in."""
        return nullcontext() if self.streams is None else self.streams.backward()

    def autocast(self) -> AbstractContextManager[Any]:
        if self.amp_dtype is None:
            return nullcontext()
        # No cache: a graph would keep the weights of its capture wherever they were cast outside of it, and without it
        # the gradients of a section's two passes are added in float32.
        return torch.autocast(self.device.type, dtype=self.amp_dtype, cache_enabled=False)

    def run(self, inputs: Inputs, teacher_irs: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        """Both passes, one after the other: the IRs to compare, and what the student's model returned."""
        composed, output = self.composed(inputs)
        with self.mark("student, teacher-fed"):
            irs = []  # torch.compile does not trace a comprehension whose elements enter contexts
            for i in self.compared:
                ir = self.fed(i, teacher_irs[i - 1]) if self._is_fed(i) else composed[i]
                irs.append(self.in_teachers_width(i, ir))
        self.student.release()
        self._inputs_checked = True
        return irs, output

    def _side_by_side(self, streams: SideStreams, inputs: Inputs, run_teacher: RunTeacher) -> PassOutputs:
        """Teacher and both student passes, each section as soon as its input is there."""
        fed: dict[int, Tensor] = {}
        with_grad = torch.is_grad_enabled()

        def feed(before: int, teacher_ir: Tensor) -> None:
            i = before + 1
            if i in self._fed_sections:
                own = 1 + self._fed_sections.index(i)
                with streams.beside(own, after=0), torch.set_grad_enabled(with_grad):
                    fed[i] = self.in_teachers_width(i, self.fed(i, teacher_ir))

        try:
            with streams.beside(0):
                teacher_irs, teacher_output = run_teacher(feed)
                for i in self._fed_sections:
                    if i not in fed:  # the teacher was prefetched
                        feed(i - 1, teacher_irs[i - 1])
            composed, output = self.composed(inputs)
        finally:  # also after an error: what has begun reads tensors that the caller goes on with
            streams.join()
        irs = [fed[i] if self._is_fed(i) else self.in_teachers_width(i, composed[i]) for i in self.compared]
        self._inputs_checked = True
        return PassOutputs(irs, output, teacher_irs, teacher_output)

    # -- one pass ----------------------------------------------------------------------------------------------------

    def composed(self, inputs: Inputs) -> tuple[list[Tensor], Any]:
        """The outputs of the student's own sections, as far as they are needed, and of its model."""
        student, stats = self.student, self._running_stats
        all_trained = self._logits or not self.teacher_fed
        last_needed = student.num_sections if all_trained or stats.needs_composed_pass else 1

        @contextmanager
        def around(i: int) -> Iterator[None]:
            # Section 1 is both passes at once (method: b_1 = a_1), so it always carries a gradient.
            grad = nullcontext() if all_trained or i == 0 else torch.no_grad()
            with stats.composed_pass(i), grad:
                yield

        with self.mark("student, composed"), self.weights.composed():
            return student.run(inputs, around=around, sections=last_needed, head=self._logits, copied=self._copied)

    def fed(self, i: int, teacher_ir: Tensor) -> Tensor:
        """What section ``i`` (from 0) makes of the teacher's IR before it, in the student's width."""
        fed = teacher_ir if self.projector is None else self.projector.feed(i - 1, teacher_ir)
        if self._copied:
            fed = fed.clone()
        with self._watch_inplace(i, fed), self._running_stats.teacher_fed_pass(i), self.weights.fed(i):
            ir = self.student.sections[i](fed)
        if not self._inputs_checked:
            self._check_gradient(i, ir)
        return ir

    @property
    def _fed_sections(self) -> tuple[int, ...]:
        return tuple(filter(self._is_fed, self.compared))

    def _is_fed(self, i: int) -> bool:
        """Whether section ``i`` (from 0) is compared in a pass of its own; section 1 is both passes at once."""
        return self.teacher_fed and i > 0

    def in_teachers_width(self, i: int, ir: Tensor) -> Tensor:
        """The IR of section ``i`` (from 0) as it is compared."""
        return ir if self.projector is None else self.projector.compare(i, ir)

    def _check_gradient(self, i: int, ir: Tensor) -> None:
        """On the first step: reentrant checkpoints give no gradient where no input requires one, as the teacher's."""
        trained = any(parameter.requires_grad for parameter in self.student.sections[i].parameters())
        if torch.is_grad_enabled() and trained and not ir.requires_grad:
            raise RuntimeError(
                f"section {i + 1} of the student, fed with the teacher's IR {i}, has no gradient: a reentrant "
                "checkpoint gives none where its input requires none; use checkpoint(..., use_reentrant=False)"
            )

    @contextmanager
    def _watch_inplace(self, i: int, fed: Tensor) -> Iterator[None]:
        """On the first step: a section that overwrites its input would corrupt the IR kept as target."""
        if self._inputs_checked:
            yield
            return
        before = fed._version
        yield
        if fed._version != before:
            raise RuntimeError(
                f"section {i + 1} of the student overwrites its input in place, which is the teacher's IR {i}, kept as "
                "a target; make its first operation out of place (for example nn.ReLU(inplace=False))"
            )
