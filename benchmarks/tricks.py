"""The suite "tricks": what each part of the fast step brings, and what was tried and left out.

The ladder goes from the plain step to the fast one, each rung with all before it:

| rung | what it adds |
|---|---|
| plain | as the original code does it |
| eager | section 1 once, no wait for the loss on the host |
| channels-last | networks and images with the channels innermost |
| lowered | the teacher lowered and run in C++ |
| runner | the fused loss: lit_fast's step |
| capture | replayed as one CUDA graph (CUDA) |

Each of the others changes one thing about the rung `runner`:

| variant | what |
|---|---|
| prefetch | the teacher one batch ahead, in a thread or on a stream of its own |
| teacher-batch | the teacher over the batches of four steps at once |
| joined | composed and teacher-fed pass of a section as one batch, BatchNorm with the statistics of each half |
| compiled-student | the student's sections under torch.compile, which fuses BatchNorm, ReLU and addition |
| parallel | the teacher-fed sections on streams of their own (CUDA) |
| captured-side-by-side | the captured step; teacher, composed pass and teacher-fed sections on streams of their own |
| fused-norm | the captured step; BatchNorm, addition and ReLU of the student as Triton kernels |
| separate-launches | a launch for each parameter's casts, gradient sums and counts, as without `PassWeights` |
| fused-sgd, foreach-sgd | the optimizer's other implementations |
| autocast-cache | autocast keeps the cast weights for the second pass (half precision) |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.choice import ALL, Choice, in_time
from benchmarks.pairs import PAIRS, TINY
from benchmarks.step import Setting, half_precision
from lit_fast.bench import step, ways
from lit_fast.bench.step import Row
from lit_fast.bench.ways import Problem, Way
from lit_fast.loss.modules import LITLoss
from lit_fast.step.lit_step import LITStep
from lit_fast.step.passes.student import StudentPasses

LADDER = ("plain", "eager", "channels-last", "lowered", "runner", "capture")
# Whether the passes run side by side, and whether norms are fused.
CAPTURED = {"capture": (False, False), "captured-side-by-side": (True, False), "fused-norm": (False, True)}
AT_ONCE = 4  # batches that the teacher takes in "teacher-batch"


def settings(device: str, *, tiny: bool) -> list[Setting]:
    """One pair: small batches, where starting kernels weighs, and what the precision changes."""
    if tiny:
        return [Setting(TINY, 4, "fp32")]
    if device == "cpu":
        return [Setting(PAIRS[0], 32, "fp32"), Setting(PAIRS[0], 32, "bf16")]
    return [Setting(PAIRS[0], batch, half_precision()) for batch in (32, 128)]


def run(
    device: str, deadline: float, *, tiny: bool = False, seconds: float = 20.0, choice: Choice = ALL
) -> Iterator[Row]:
    """Measure every setting until `deadline` (of ``time.monotonic``); settings that come later say so."""
    for setting in settings(device, tiny=tiny):
        if not choice.setting("tricks", setting.name):
            continue
        heading = setting.heading("tricks", device)
        measure = partial(_measured, setting, device, deadline, seconds, compiled=not tiny, choice=choice)
        yield from in_time({**heading, "mode": None}, deadline, measure)


def _measured(
    setting: Setting, device: str, deadline: float, seconds: float, *, compiled: bool, choice: Choice
) -> list[Row]:
    problem = setting.pair.problem(setting.batch, setting.precision, device)
    chosen = {k: v for k, v in tricks(problem, compiled=compiled).items() if choice.variant(k)}
    rows = step.measured(problem, chosen, against=LADDER, deadline=deadline, seconds=seconds)
    return [{**setting.heading("tricks", device), **row} for row in rows]


def tricks(problem: Problem, *, compiled: bool) -> dict[str, Callable[[], Way]]:
    """What builds each variant that this device and precision have."""
    found: dict[str, Callable[[], Way]] = {
        "plain": lambda: ways.plain_step(problem),
        "eager": lambda: ways.eager_step(problem),
        "channels-last": lambda: channels_last_step(problem),
        "lowered": lambda: _calling(ways.lit_step(problem, "runner", "eager"), problem),
        "runner": lambda: ways.runner_step(problem),
        "prefetch": lambda: prefetching_step(problem),
        "teacher-batch": lambda: teacher_batch_step(problem),
        "joined": lambda: _calling(built(problem, JoinedPasses), problem),
        "separate-launches": lambda: separate_launches_step(problem),
        "fused-sgd": lambda: _calling(built(problem, fused=True), problem),
        "foreach-sgd": lambda: _calling(built(problem, foreach=True), problem),
    }
    if compiled:
        found["compiled-student"] = lambda: compiled_student_step(problem)
    if problem.precision != "fp32":
        found["autocast-cache"] = lambda: _calling(built(problem, CachingCasts), problem)
    if problem.device == "cuda":
        found["parallel"] = lambda: _calling(built(problem, ParallelSections), problem)
        for name, (beside, fused) in CAPTURED.items():
            found[name] = lambda beside=beside, fused=fused: ways.replays(  # type: ignore[misc]
                ways.lit_step(problem, "runner", "auto", capture=True, side_by_side=beside, fused_norm=fused), problem
            )
    return found


def built(problem: Problem, passes: type[StudentPasses] | None = None, **sgd: bool) -> LITStep:
    """The fast step, with other passes or torch's SGD of another implementation."""
    teacher, student, _ = problem.networks()
    if problem.device == "cuda":
        student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, **sgd)
    criterion = LITLoss(alpha=problem.alpha, beta=problem.beta, tau=problem.tau)
    one = LITStep(teacher, student, criterion, optimizer, precision=problem.precision, engine="runner")
    if passes is not None:
        one.passes = one.model.passes = passes(
            student, one.ir_sections, amp_dtype=one.passes.amp_dtype, channels_last=True
        )
    return one


def _calling(one: LITStep, problem: Problem) -> Way:
    return lambda: one(problem.inputs, problem.labels)


def separate_launches_step(problem: Problem) -> Way:
    """The fast step, captured where that can be, without what it does once for all parameters."""
    captured = problem.device == "cuda"
    one = ways.lit_step(problem, "runner", "auto", capture=captured)
    one.passes.weights.on = False
    return ways.replays(one, problem) if captured else _calling(one, problem)


def channels_last_step(problem: Problem) -> Way:
    """The eager step on networks and images in that layout."""
    one = ways.lit_step(problem, "eager", "eager")
    assert one.teacher is not None
    for network in (one.teacher.model, one.student.model):
        network.to(memory_format=torch.channels_last)
    images = problem.inputs.contiguous(memory_format=torch.channels_last)
    return lambda: one(images, problem.labels)


def prefetching_step(problem: Problem) -> Way:
    """Each call starts the teacher on the next batch, then trains on the one that the call before started it on."""
    one = ways.lit_step(problem, "runner", "auto")
    batches = [problem.inputs, problem.inputs.clone()]
    one.prefetch(batches[0])

    def way() -> object:
        this, following = batches
        one.prefetch(following)
        parts = one(this, problem.labels)
        batches.reverse()
        return parts

    return way


def teacher_batch_step(problem: Problem) -> Way:
    """The teacher takes the batches of several steps at once."""
    one = ways.lit_step(problem, "runner", "auto")
    batches = [problem.inputs.clone() for _ in range(AT_ONCE)]

    def way() -> object:
        one.prefetch(*batches)
        return [one(images, problem.labels) for images in batches][-1]

    return ways.Several(AT_ONCE, way)


def compiled_student_step(problem: Problem) -> Way:
    """The student's sections compiled one by one; teacher and loss as in the fast step."""
    one = ways.lit_step(problem, "runner", "auto")
    for section in one.student.sections:
        section.forward = torch.compile(section.forward)  # type: ignore[method-assign]
    return lambda: one(problem.inputs, problem.labels)


class CachingCasts(StudentPasses):
    """Autocast keeps the weights that it has cast, so the second pass of a section casts none; cannot be captured."""

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.amp_dtype is None else torch.autocast(self.device.type, dtype=self.amp_dtype)


class JoinedPasses(StudentPasses):
    """Both passes of a section as one batch of 2B, for the policy "composed" and without projectors."""

    def run(self, images: Tensor, teacher_irs: Sequence[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        h = self.student.sections[0](self.student.stem(images))
        irs = [h]
        for i, section in enumerate(self.student.sections[1:], 1):
            with halves_apart(section):
                h, fed = section(torch.cat((h, teacher_irs[i - 1]))).chunk(2)
            irs.append(fed)
        return irs, self.student.head(h)


class halves_apart:  # reads as a context manager
    """Each BatchNorm inside normalises the two halves of its batch apart; the first updates its statistics."""

    def __init__(self, section: nn.Module) -> None:
        self._norms = [module for module in section.modules() if isinstance(module, nn.BatchNorm2d)]

    def __enter__(self) -> None:
        for norm in self._norms:
            norm.forward = _HalvedNorm(norm)  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        for norm in self._norms:
            del norm.forward  # the class's again


class _HalvedNorm:
    def __init__(self, norm: nn.BatchNorm2d) -> None:
        self._norm = norm

    def __call__(self, x: Tensor) -> Tensor:
        norm = self._norm
        composed, fed = x.chunk(2)
        fed = F.batch_norm(fed, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
        return torch.cat((type(norm).forward(norm, composed), fed))


class ParallelSections(StudentPasses):
    """Every teacher-fed pass on a stream of its own, beside the composed pass; backward follows by itself."""

    def run(self, images: Tensor, teacher_irs: Sequence[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        caller = torch.cuda.current_stream()
        streams = [torch.cuda.Stream() for _ in self.compared[1:]]
        fed = []
        for i, stream in zip(self.compared[1:], streams):
            stream.wait_stream(caller)
            with torch.cuda.stream(stream):
                fed.append(self.fed(i, teacher_irs[i - 1]))
            teacher_irs[i - 1].record_stream(stream)
        h, composed = self.student.stem(images), []
        for section in self.student.sections:
            h = section(h)
            composed.append(h)
        for ir, stream in zip(fed, streams):
            caller.wait_stream(stream)
            ir.record_stream(caller)
        return [composed[0], *fed], self.student.head(h)
