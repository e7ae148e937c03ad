"""The teacher as fast as it can run: frozen, BatchNorm folded, fused instructions, no Python in between.

Each part (stem, sections, head) is lowered to a program of the C++ runner (``lit_fast.teacher.lowering``, csrc/teacher)
and checked against the module it comes from, in full precision and in the dtype that it will run in. A part that cannot
be lowered runs as that module; ``parts`` says which and why.
"""

from __future__ import annotations

import copy
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_fast.errors import CheckFailed, LoweringError, NotLowerable
from lit_fast.extension import EXTENSION
from lit_fast.float32 import full_float32
from lit_fast.loss.targets import logits_of
from lit_fast.sections.dryrun import first_line, untouched
from lit_fast.sections.model import SplitModel
from lit_fast.sections.parts import Part
from lit_fast.teacher.instruction import Instruction
from lit_fast.teacher.lowering import lower

__all__ = ["FrozenTeacher", "PartPlan"]

_HALVES = (torch.bfloat16, torch.float16)
_DTYPES = (torch.float32, torch.float64, *_HALVES)
# Largest difference of a lowered part from its module, relative to the module's largest number. Folding changes the
# order of the roundings; a few float32 roundings per layer add up over a section of a hundred layers.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
# In half precision, in which the module under autocast is wrong too: at most so much, and four times its own error.
HALF_TOLERANCE = {torch.bfloat16: 0.02, torch.float16: 0.005}

Outputs = tuple[list[Tensor], Tensor | None]  # the IRs, the logits
Run = Callable[[Tensor], Tensor]
After = Callable[[int, Tensor], None]  # of a section, from 0, with its output


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


class FrozenTeacher:
    """A split teacher, frozen and lowered: ``run`` gives what the split model's ``run`` gives, faster.

    The parameters are copied when the first batch of a shape of images arrives: later changes to the module's are not
    seen. The module itself is put into eval mode and its parameters stop requiring gradients; otherwise it stays as it
    is.

    Args:
        teacher: the split teacher.
        dtype: of weights, arithmetic and results: float32, float64, bfloat16 or float16. None: the parameters' own.
        logits: False leaves the head out, where nothing is compared with it; None then stands for the logits.
        strict: False lets a part whose lowered form fails its check run as its module, with a warning.

    Raises:
        TypeError: not a split model.
        ValueError: another dtype.
        LoweringError: on the first batch, if a lowered part does not give what its module gives.

    Example:
        >>> import torch, lit_fast as lf
        >>> teacher = lf.FrozenTeacher(lf.split(lf.models.resnet20()))
        >>> irs, logits = teacher.run(torch.randn(4, 3, 32, 32))
        >>> [tuple(ir.shape) for ir in irs], tuple(logits.shape)
        ([(4, 16, 32, 32), (4, 32, 16, 16), (4, 64, 8, 8)], (4, 10))
    """

    def __init__(
        self, teacher: SplitModel, dtype: torch.dtype | None = None, *, logits: bool = True, strict: bool = True
    ) -> None:
        if not isinstance(teacher, SplitModel):
            raise TypeError(
                f"teacher: expected a split model, got {type(teacher).__name__}; use split(teacher, at=[...])"
            )
        if teacher.how != "traced":
            raise TypeError(
                "teacher: expected a traced model, whose parts can be lowered, got a recorded one; its own forward is "
                "what runs it: teacher.run(...)"
            )
        own = next((p.dtype for p in teacher.parameters() if p.is_floating_point()), torch.float32)
        self.dtype = own if dtype is None else dtype
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype: expected float32, float64, bfloat16 or float16, got {self.dtype}")
        self.module = teacher.eval().requires_grad_(False)
        self.parts: tuple[PartPlan, ...] = ()
        self._logits, self._strict = logits, strict
        self._built: dict[torch.Size, list[Run]] = {}  # by the shape of an image
        self._worker: ThreadPoolExecutor | None = None
        self._stream: torch.cuda.Stream | None = None
        self._ahead: deque[tuple[Tensor, Callable[[], Outputs]]] = deque()

    @property
    def num_sections(self) -> int:
        """k: the number of sections, and of IRs."""
        return self.module.num_sections

    def run(self, images: Tensor, after: After | None = None) -> Outputs:
        """The k section outputs and the logits of a batch; no autograd graph.

        Args:
            images: model input, [B, ...]; if they are what was `prefetched`, its results are waited for, not computed.
            after: called with the number of each section, from 0, and its output, before the next one is begun; not
                for results that were waited for.
        """
        return self.prefetched(images) or self._forward(images, after)

    def prefetch(self, *batches: Tensor) -> None:
        """Start on batches that ``run`` will be given, after those announced before, while the caller goes on.

        Called for the next batch before the student trains on the one at hand, teacher and student work side by side:
        on CUDA on a stream of the teacher's own, which waits for what the caller's stream has been given so far; on
        the CPU in a thread, which takes a free core, for the runner needs no GIL. Several batches of one call go
        through in one forward, which uses the hardware better and holds the IRs of all of them. Results are those of
        ``run``, up to the rounding of another batch size.
        """
        images = batches[0] if len(batches) == 1 else torch.cat(batches)
        self._prepare(images)
        wait = self._on_own_stream(images) if images.is_cuda else self._in_thread(images)
        if len(batches) > 1:
            wait = _Shares(wait, [len(batch) for batch in batches])
        self._ahead.extend((batch, wait) for batch in batches)

    def prefetched(self, images: Tensor) -> Outputs | None:
        """The results of the very tensor that ``prefetch`` was given next, waited for.

        If it was given another next, all that was announced is dropped, and there are none.
        """
        if not self._ahead:
            return None
        announced, wait = self._ahead.popleft()
        outputs = wait()
        if announced is images:
            return outputs
        self._ahead.clear()
        return None

    def run_batches(self, batches: list[Tensor]) -> list[Outputs]:
        """Several batches in one forward: a larger batch uses the hardware better. Results as those of ``run``."""
        shares = _Shares(lambda: self.run(torch.cat(batches)), [len(batch) for batch in batches])
        return [shares() for _ in batches]

    def describe(self) -> str:
        """One line per part: how it runs, and why."""
        lines = []
        for plan in self.parts:
            how = f"{plan.instructions} instructions" if plan.lowered else "as the module it is"
            lines.append(f"{plan.name}: {how}: {plan.reason}" if plan.reason else f"{plan.name}: {how}")
        return "\n".join(lines) or "not built yet: the first batch shows what the parts do"

    # -- ahead -------------------------------------------------------------------------------------------------------

    def _in_thread(self, images: Tensor) -> Callable[[], Outputs]:
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "lit_fast-teacher")
        return self._worker.submit(self._forward, images).result

    def _on_own_stream(self, images: Tensor) -> Callable[[], Outputs]:
        if self._stream is None:
            self._stream = torch.cuda.Stream(images.device)
        own = self._stream
        own.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(own):
            irs, logits = self._forward(images)
        images.record_stream(own)

        def wait() -> Outputs:
            callers = torch.cuda.current_stream(images.device)
            callers.wait_stream(own)
            for tensor in irs if logits is None else (*irs, logits):
                tensor.record_stream(callers)
            return irs, logits

        return wait

    # -- running -----------------------------------------------------------------------------------------------------

    def _forward(self, images: Tensor, after: After | None = None) -> Outputs:
        stem, *sections, head = self._prepare(images)
        out = stem(self._converted(images))
        irs = []
        for i, section in enumerate(sections):
            out = section(out)
            irs.append(out)
            if after is not None:
                after(i, out)
        return irs, head(out) if self._logits else None

    def _converted(self, images: Tensor) -> Tensor:
        dtype = self.dtype if images.is_floating_point() else images.dtype
        if images.dim() == 4:
            return images.to(dtype, memory_format=torch.channels_last)
        return images.to(dtype)

    # -- building ----------------------------------------------------------------------------------------------------

    def _prepare(self, images: Tensor) -> list[Run]:
        """The parts for images of this shape; a trace holds numbers that were computed from it."""
        runs = self._built.get(images.shape[1:])
        if runs is None:
            plain = torch.autocast(images.device.type, enabled=False)
            with untouched(self.module), full_float32(), torch.no_grad(), plain:
                runs = self._build(images[:2] if len(images) > 1 else torch.cat((images, images)))
            self._built[images.shape[1:]] = runs
        return runs

    def _build(self, example: Tensor) -> list[Run]:
        plans, runs = [], []
        exact = torch.float64 if self.dtype == torch.float64 else torch.float32
        x = example.to(exact) if example.is_floating_point() else example
        # What is not lowered from: a trace may hold numbers that were computed from the values of its example.
        other = x.max() - x
        # Lowered and checked in full precision, also where the module itself is kept in half.
        half = any(p.dtype in _HALVES for p in self.module.parameters())
        for part in (copy.deepcopy(self.module).to(exact) if half else self.module).parts:
            examples = [_Example.of(part, batch, self.dtype) for batch in (x, other)]
            plan, run = self._planned(part, examples)
            plans.append(plan)
            runs.append(run)
            x, other = (example.exact for example in examples)
        self.parts = tuple(plans)
        return runs

    def _planned(self, part: Part, examples: list[_Example]) -> tuple[PartPlan, Run]:
        """How a part runs, lowered from the first example and checked on all of them."""
        try:
            if not EXTENSION.loaded:
                raise NotLowerable(EXTENSION.reason)
            steps, output = lower(part, examples[0].input.clone())
            return self._lowered(part, steps, output, examples)
        except NotLowerable as error:
            reason = str(error)
        except CheckFailed as error:
            reason = str(error)
            if self._strict:
                raise LoweringError(
                    f"teacher, {part.name}: lowered, {reason}; run it as it is (engine='eager') and report this network"
                ) from error
            warnings.warn(f"lit_fast: teacher, {part.name}: lowered, {reason}; it runs as its modules", stacklevel=2)
        return PartPlan(part.name, False, 0, reason, 0.0), self._module_run(part)

    def _lowered(
        self, part: Part, steps: list[Instruction], output: int, examples: list[_Example]
    ) -> tuple[PartPlan, Run]:
        """A part's program that passed its check: with convolutions that a library fuses, else without them."""
        try:
            run, error = _checked_program(steps, output, self.dtype, examples)
            return PartPlan(part.name, True, len(steps), "", error), run
        except CheckFailed as failed:
            if not any(step.op == "convolution" for step in steps):
                raise
            reason = f"convolutions are not fused: fused, {failed}"
        run, error = _checked_program([step.unfused() for step in steps], output, self.dtype, examples)
        return PartPlan(part.name, True, len(steps), reason, error), run

    def _module_run(self, part: Part) -> Run:
        """A part that could not be lowered; under autocast, because its parameters stay as they are."""

        def run(x: Tensor) -> Tensor:
            wanted = next((p.dtype for p in part.parameters() if p.is_floating_point()), x.dtype)
            half = self.dtype in _HALVES
            with torch.no_grad(), torch.autocast(x.device.type, self.dtype, enabled=half):
                out = logits_of(part(x if half or not x.is_floating_point() else x.to(wanted)))
            return out.to(self.dtype)

        return run


class _Shares:
    """The results of one forward over several batches, handed out batch by batch."""

    def __init__(self, whole: Callable[[], Outputs], sizes: list[int]) -> None:
        self._whole: Callable[[], Outputs] = whole
        self._sizes = sizes
        self._rest: Iterator[Outputs] | None = None

    def __call__(self) -> Outputs:
        if self._rest is None:
            irs, logits = self._whole()
            columns = zip(*(ir.split(self._sizes) for ir in irs))
            parts = [None] * len(self._sizes) if logits is None else logits.split(self._sizes)
            self._rest = ((list(own), part) for own, part in zip(columns, parts))
        return next(self._rest)


def _program(steps: list[Instruction], output: int, dtype: torch.dtype) -> Run:
    """The C++ program of a part, with weights in `dtype`."""
    specs = []
    for step in steps:
        op, registers, numbers, floats, tensors = step.spec()
        specs.append((op, registers, numbers, floats, [_weight(tensor, dtype) for tensor in tensors]))
    program: Any = torch.classes.lit_fast.Program(specs, output)
    return program.run


def _weight(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.dim() == 4 and tensor.is_cuda:
        return tensor.to(dtype, memory_format=torch.channels_last)
    return tensor.to(dtype)


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


class _Example(NamedTuple):
    """An input of a part, and what the module makes of it: in full precision, and as it would run in `dtype`."""

    input: Tensor
    exact: Tensor
    own: Tensor

    @classmethod
    def of(cls, part: Part, x: Tensor, dtype: torch.dtype) -> _Example:
        exact = logits_of(part(x.clone()))
        if dtype not in _HALVES:
            return cls(x, exact, exact)
        with torch.autocast(x.device.type, dtype):
            return cls(x, exact, logits_of(part(x.clone())))


def _checked_program(
    steps: list[Instruction], output: int, dtype: torch.dtype, examples: list[_Example]
) -> tuple[Run, float]:
    """A part's program in `dtype`, and its largest error in full precision.

    Raises:
        CheckFailed: it gives other numbers than the module, in full precision or in `dtype`, or cannot run.
    """
    exact = torch.float32 if dtype in _HALVES else dtype
    try:
        program = _program(steps, output, exact)
        error = max(_checked(program, steps, example, exact) for example in examples)
        if dtype != exact:
            program = _program(steps, output, dtype)
            for example in examples:
                _checked(program, steps, example, dtype)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as failed:  # such as a convolution that cuDNN has no engine for
        raise CheckFailed(f"it fails ({first_line(failed)})") from failed
    return program, error


def _checked(program: Run, steps: list[Instruction], example: _Example, dtype: torch.dtype) -> float:
    """The error of a program on an example, relative to the module's largest number.

    Raises:
        CheckFailed: it is not small.
    """
    x = example.input.to(dtype) if example.input.is_floating_point() else example.input
    _poison(steps, x.device, dtype)
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
    if dtype in _HALVES:
        limit = HALF_TOLERANCE[dtype] + 4 * ((example.own[compared] - right).abs().max() / scale).item()
    if not error <= limit:  # NaN is not
        raise CheckFailed(
            f"it differs from the module by {error:.2g} of the largest output in {_name(dtype)}, more than {limit:.1g}"
        )
    return error


def _poison(steps: list[Instruction], device: torch.device, dtype: torch.dtype) -> None:
    """Fill the memory that the allocator hands out next with NaN: a fused convolution may read what it is to write."""
    if device.type == "cuda":
        held = [torch.full(step.shape, torch.nan, dtype=dtype, device=device) for step in steps for _ in range(2)]
        held.clear()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
