"""What runs a part of the teacher: a program for all sizes of input at which the part does the same, or its module.

A program is lowered from a trace, which takes some tenths of a second, and compared with its module in full precision
and in its own dtype. For a further size it need not be lowered again where the part does the same operations with the
same numbers (``lit_fast.teacher.operations``); it is compared with the module there, too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_fast.errors import CheckFailed, LoweringError, NotLowerable
from lit_fast.extension import EXTENSION
from lit_fast.loss.targets import logits_of
from lit_fast.sections.dryrun import first_line
from lit_fast.sections.parts import Part
from lit_fast.teacher.instruction import Instruction
from lit_fast.teacher.lowering import lower
from lit_fast.teacher.operations import Watched, watch

__all__ = ["HALVES", "MAX_PROGRAMS", "Example", "PartPlan", "PartPrograms", "Run"]

MAX_PROGRAMS = 8  # that a part is lowered to; where every size needs another, it would be lowered all the time

HALVES = (torch.bfloat16, torch.float16)
# Largest difference of a lowered part from its module, relative to the module's largest number. Folding changes the
# order of the roundings; a few float32 roundings per layer add up over a section of a hundred layers.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
# In half precision, in which the module under autocast is wrong too: at most so much, and four times its own error.
HALF_TOLERANCE = {torch.bfloat16: 0.02, torch.float16: 0.005}

Run = Callable[[Tensor], Tensor]


class PartPlan(NamedTuple):
    """How a part of the teacher runs.

    Attributes:
        name: "stem", "section<i>" or "head".
        lowered: whether the C++ runner runs it, else the module itself does.
        instructions: how many it was lowered to; 0 also for a part that does nothing.
        reason: why it was not lowered, or lowered without convolutions that a library fuses; empty if neither.
        error: largest difference from the module's output in float32 (float64 for a float64 teacher), relative to its
            largest number.
    """

    name: str
    lowered: bool
    instructions: int
    reason: str
    error: float


class Example(NamedTuple):
    """An input of a part, and what the module makes of it: in full precision, and as it would run in a dtype."""

    input: Tensor
    watched: Watched
    own: Tensor

    @classmethod
    def of(cls, part: Part, x: Tensor, dtype: torch.dtype) -> Example:
        watched = watch(part, x)
        if dtype not in HALVES:
            return cls(x, watched, watched.output)
        with torch.autocast(x.device.type, dtype):
            return cls(x, watched, logits_of(part(x.clone())))

    @property
    def exact(self) -> Tensor:
        return self.watched.output


class _Program(NamedTuple):
    """What runs a part wherever it does these operations."""

    operations: str | None
    plan: PartPlan
    run: Run
    weights: Sequence[Tensor] = ()


class PartPrograms:
    """The programs of one part, by what the part does.

    Args:
        dtype: of weights, arithmetic and results.
        strict: False lets the part run as its module where its lowered form fails its check, with a warning.
    """

    def __init__(self, dtype: torch.dtype, strict: bool) -> None:
        self._dtype, self._strict = dtype, strict
        self._programs: list[_Program] = []
        self._lowered = 0  # how often
        self._module: Run | None = None

    def fitting(self, part: Part, examples: Sequence[Example]) -> tuple[PartPlan, Run]:
        """What runs ``part`` at the size of the examples, checked on all of them.

        Raises:
            LoweringError: its lowered form does not give what the module gives.
        """
        operations = examples[0].watched.operations
        for program in self._programs:
            if operations is not None and program.operations == operations:
                try:
                    return self._checked_again(program, examples), program.run
                except CheckFailed:  # a library may have convolutions for some sizes alone
                    continue
        if self._lowered == MAX_PROGRAMS:
            reason = f"it was lowered {MAX_PROGRAMS} times, each time for other sizes of input"
            return PartPlan(part.name, False, 0, reason, 0.0), self._as_module(part)
        self._lowered += 1
        try:
            program = self._lower(part, examples)
        except NotLowerable as error:
            program = _Program(operations, PartPlan(part.name, False, 0, str(error), 0.0), self._as_module(part))
        except CheckFailed as error:
            if self._strict:
                raise LoweringError(
                    f"teacher, {part.name}: lowered, {error}; run it as it is (engine='eager') and report this network"
                ) from error
            warnings.warn(f"lit_fast: teacher, {part.name}: lowered, {error}; it runs as its modules", stacklevel=2)
            return PartPlan(part.name, False, 0, str(error), 0.0), self._as_module(part)
        self._programs.append(program)
        return program.plan, program.run

    def _checked_again(self, program: _Program, examples: Sequence[Example]) -> PartPlan:
        """Its plan, at another size than it was lowered for.

        Raises:
            CheckFailed: it gives other numbers than the module there, or cannot run.
        """
        plan = program.plan
        if not plan.lowered:
            return plan
        error = _error(program.run, examples, self._dtype)
        return plan if self._dtype in HALVES else plan._replace(error=max(error, plan.error))

    def _lower(self, part: Part, examples: Sequence[Example]) -> _Program:
        """A part's program that passed its check: with convolutions that a library fuses, else without them.

        Raises:
            NotLowerable, CheckFailed: there is none.
        """
        if not EXTENSION.loaded:
            raise NotLowerable(EXTENSION.reason)
        steps, output = lower(part, examples[0].input.clone())
        try:
            return self._checked(part, steps, output, examples, "")
        except CheckFailed as failed:
            if not any(step.op == "convolution" for step in steps):
                raise
            reason = f"convolutions are not fused: fused, {failed}"
        return self._checked(part, [step.unfused() for step in steps], output, examples, reason)

    def _checked(
        self, part: Part, steps: list[Instruction], output: int, examples: Sequence[Example], reason: str
    ) -> _Program:
        """The program of these steps, compared with the module in full precision and in its dtype.

        Raises:
            CheckFailed: it gives other numbers than the module, or cannot run.
        """
        known = [weight for program in self._programs for weight in program.weights]
        exact = torch.float32 if self._dtype in HALVES else self._dtype
        errors = []
        for dtype in dict.fromkeys((exact, self._dtype)):
            converted = [_converted(step, dtype, known) for step in steps]
            with _failures():
                run = _program(converted, output)
                errors.append(_error(run, examples, dtype))
        weights = [weight for step in converted for weight in step.tensors]
        plan = PartPlan(part.name, True, len(steps), reason, errors[0])
        return _Program(examples[0].watched.operations, plan, run, weights)

    def _as_module(self, part: Part) -> Run:
        """The part itself, the same for all sizes; under autocast, because its parameters stay as they are."""
        if self._module is None:
            self._module = _module_run(part, self._dtype)
        return self._module


def _module_run(part: Part, dtype: torch.dtype) -> Run:
    half = dtype in HALVES

    def run(x: Tensor) -> Tensor:
        wanted = next((p.dtype for p in part.parameters() if p.is_floating_point()), x.dtype)
        with torch.no_grad(), torch.autocast(x.device.type, dtype, enabled=half):
            out = logits_of(part(x if half or not x.is_floating_point() else x.to(wanted)))
        return out.to(dtype)

    return run


def _program(steps: list[Instruction], output: int) -> Run:
    program: Any = torch.classes.lit_fast.Program([step.spec() for step in steps], output)
    return program.run


def _converted(step: Instruction, dtype: torch.dtype, known: Sequence[Tensor]) -> Instruction:
    """The same with its weights in `dtype`: those of `known` where they are equal."""
    weights = [_weight(tensor, dtype) for tensor in step.tensors]
    return replace(step, tensors=[next((k for k in known if _same(k, weight)), weight) for weight in weights])


def _same(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype, a.stride(), a.device) == (b.shape, b.dtype, b.stride(), b.device) and torch.equal(a, b)


def _weight(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.dim() == 4 and tensor.is_cuda:
        return tensor.to(dtype, memory_format=torch.channels_last)
    return tensor.to(dtype)


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


@contextmanager
def _failures() -> Iterator[None]:
    """A program that cannot run, such as one with a convolution that cuDNN has no engine for, fails its check."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as failed:
        raise CheckFailed(f"it fails ({first_line(failed)})") from failed


def _error(program: Run, examples: Sequence[Example], dtype: torch.dtype) -> float:
    """The largest error of a program on the examples, relative to the module's largest number.

    Raises:
        CheckFailed: it is not small, or the program cannot run.
    """
    with _failures():
        return max(_error_on(program, example, dtype) for example in examples)


def _error_on(program: Run, example: Example, dtype: torch.dtype) -> float:
    x = example.input.to(dtype) if example.input.is_floating_point() else example.input
    _poison(example.watched.shapes, x.device, dtype)
    ours = program(_dense(x))
    if ours.shape != example.exact.shape:
        raise CheckFailed(f"it gives {tuple(ours.shape)}, the module {tuple(example.exact.shape)}")
    compared = example.exact.isfinite() & example.own.isfinite()  # a module may overflow in half precision
    right = example.exact[compared]
    if not right.numel():
        return 0.0
    scale = right.abs().max().clamp(min=torch.finfo(right.dtype).tiny)
    error = ((ours[compared] - right).abs().max() / scale).item()
    limit = TOLERANCE.get(dtype, 0.0)
    if dtype in HALVES:
        limit = HALF_TOLERANCE[dtype] + 4 * ((example.own[compared] - right).abs().max() / scale).item()
    if not error <= limit:  # NaN is not
        raise CheckFailed(
            f"it differs from the module by {error:.2g} of the largest output in {_name(dtype)}, more than {limit:.1g}"
        )
    return error


def _poison(shapes: Sequence[torch.Size], device: torch.device, dtype: torch.dtype) -> None:
    """Fill the memory that the allocator hands out next with NaN: a fused convolution may read what it is to write."""
    if device.type == "cuda":
        held = [torch.full(shape, torch.nan, dtype=dtype, device=device) for shape in shapes for _ in range(2)]
        held.clear()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
