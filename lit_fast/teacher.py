"""The teacher as fast as it can run: frozen, BatchNorm folded, fused instructions, no Python in between.

Each part (stem, sections, head) is lowered to a program of the C++ runner (``lit_fast.lowering``, csrc/teacher) and
checked against the module it comes from. A part that cannot be lowered runs as that module; ``parts`` says which and
why.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_fast.backends import native
from lit_fast.lowering import Instruction, NotLowerable, lower
from lit_fast.sections import Part, SplitModel

__all__ = ["FrozenTeacher", "LoweringError", "PartPlan"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Largest difference of a lowered part from its module, relative to the module's largest number. Folding changes the
# order of the roundings; a few float32 roundings per layer add up over a section of a hundred layers.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}

Outputs = tuple[list[Tensor], Tensor | None]  # the IRs, the logits


class LoweringError(RuntimeError):
    """A lowered part gives other numbers than its module."""


class PartPlan(NamedTuple):
    """How a part of the teacher runs.

    Attributes:
        name: "stem", "section<i>" or "head".
        lowered: whether the C++ runner runs it, else the module itself does.
        instructions: how many it was lowered to; 0 also for a part that does nothing.
        reason: why it was not lowered; empty if it was.
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

    def __init__(self, teacher: SplitModel, dtype: torch.dtype | None = None, *, logits: bool = True) -> None:
        if not isinstance(teacher, SplitModel):
            raise TypeError(
                f"teacher: expected a split model, got {type(teacher).__name__}; use split(teacher, at=[...])"
            )
        own = next((p.dtype for p in teacher.parameters() if p.is_floating_point()), torch.float32)
        self.dtype = own if dtype is None else dtype
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype: expected float32, float64, bfloat16 or float16, got {self.dtype}")
        self.module = teacher.eval().requires_grad_(False)
        self.parts: tuple[PartPlan, ...] = ()
        self._logits = logits
        self._built: dict[torch.Size, list[Callable[[Tensor], Tensor]]] = {}  # by the shape of an image
        self._worker: ThreadPoolExecutor | None = None
        self._stream: torch.cuda.Stream | None = None
        self._ahead: deque[tuple[Tensor, Callable[[], Outputs]]] = deque()

    @property
    def num_sections(self) -> int:
        """k: the number of sections, and of IRs."""
        return self.module.num_sections

    def run(self, images: Tensor) -> Outputs:
        """The k section outputs and the logits of a batch; no autograd graph.

        If `images` is the very tensor that ``prefetch`` was given next, its results are waited for instead of computed;
        if it is another, all that was announced is dropped.
        """
        if self._ahead:
            ahead, wait = self._ahead.popleft()
            found = wait()
            if ahead is images:
                return found
            self._ahead.clear()
        return self._forward(images)

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

    def run_batches(self, batches: list[Tensor]) -> list[Outputs]:
        """Several batches in one forward: a larger batch uses the hardware better. Results as those of ``run``."""
        shares = _Shares(lambda: self.run(torch.cat(batches)), [len(batch) for batch in batches])
        return [shares() for _ in batches]

    def describe(self) -> str:
        """One line per part: how it runs, and why."""
        lines = []
        for plan in self.parts:
            how = f"{plan.instructions} instructions" if plan.lowered else f"as the module it is: {plan.reason}"
            lines.append(f"{plan.name}: {how}")
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

    def _forward(self, images: Tensor) -> Outputs:
        *runs, head = self._prepare(images)
        out = self._converted(images)
        irs = []
        for run in runs:
            out = run(out)
            irs.append(out)
        return irs[1:], head(out) if self._logits else None

    def _converted(self, images: Tensor) -> Tensor:
        dtype = self.dtype if images.is_floating_point() else images.dtype
        if images.dim() == 4:
            return images.to(dtype, memory_format=torch.channels_last)
        return images.to(dtype)

    # -- building ----------------------------------------------------------------------------------------------------

    def _prepare(self, images: Tensor) -> list[Callable[[Tensor], Tensor]]:
        """The parts for images of this shape; a trace holds numbers that were computed from it."""
        runs = self._built.get(images.shape[1:])
        if runs is None:
            with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
                runs = self._build(images[:2] if len(images) > 1 else torch.cat((images, images)))
            self._built[images.shape[1:]] = runs
        return runs

    def _build(self, example: Tensor) -> list[Callable[[Tensor], Tensor]]:
        plans, runs = [], []
        exact = torch.float64 if self.dtype == torch.float64 else torch.float32
        x = example.to(exact) if example.is_floating_point() else example
        # Lowered and checked in full precision, also where the module itself is kept in half.
        half = any(p.dtype in (torch.float16, torch.bfloat16) for p in self.module.parameters())
        for part in (copy.deepcopy(self.module).to(exact) if half else self.module).parts:
            right = part(x)
            try:
                if not native.EXTENSION.loaded:
                    raise NotLowerable(native.EXTENSION.reason)
                steps, output = lower(part, x)
            except NotLowerable as reason:
                plans.append(PartPlan(part.name, False, 0, str(reason), 0.0))
                runs.append(self._module_run(part))
            else:
                program = _program(steps, output, exact)
                error = _checked(part, program(_dense(x)), right, exact)
                plans.append(PartPlan(part.name, True, len(steps), "", error))
                runs.append(program if self.dtype == exact else _program(steps, output, self.dtype))
            x = right
        self.parts = tuple(plans)
        return runs

    def _module_run(self, part: Part) -> Callable[[Tensor], Tensor]:
        """A part that could not be lowered; under autocast, because its parameters stay as they are."""

        def run(x: Tensor) -> Tensor:
            wanted = next((p.dtype for p in part.parameters() if p.is_floating_point()), x.dtype)
            half = self.dtype in (torch.float16, torch.bfloat16)
            with torch.no_grad(), torch.autocast(x.device.type, self.dtype, enabled=half):
                out = part(x if half or not x.is_floating_point() else x.to(wanted))
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


def _program(steps: list[Instruction], output: int, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
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


def _checked(part: Part, ours: Tensor, right: Tensor, dtype: torch.dtype) -> float:
    """The relative error of a lowered part.

    Raises:
        LoweringError: it is not small.
    """
    if ours.shape != right.shape:
        raise LoweringError(
            f"teacher, {part.name}: lowered, it gives {tuple(ours.shape)}, the module {tuple(right.shape)}"
        )
    scale = right.abs().max().clamp(min=torch.finfo(dtype).tiny)
    error = ((ours - right).abs().max() / scale).item()
    if not error <= TOLERANCE[dtype]:  # NaN is not
        raise LoweringError(
            f"teacher, {part.name}: lowered, it differs from the module by {error:.2g} of the largest output, more "
            f"than {TOLERANCE[dtype]:.0e}; run it as it is (engine='eager') and report this network"
        )
    return error
