"""The teacher as fast as it can run: frozen, BatchNorm folded, fused instructions, no Python in between.

Each part (stem, sections, head) is lowered to a program of the C++ runner (``lit_fast.teacher.lowering``, csrc/teacher)
and checked against the module it comes from, in full precision and in the dtype that it will run in. A part that cannot
be lowered runs as that module; ``parts`` says which and why. Inputs of further sizes run the same program where a part
does the same to them, after a check of their own.
"""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lit_fast.float32 import full_float32
from lit_fast.sections.dryrun import untouched
from lit_fast.sections.model import SplitModel
from lit_fast.teacher.programs import HALVES, Example, PartPlan, PartPrograms, Run

__all__ = ["FrozenTeacher", "frozen_for"]

_DTYPES = (torch.float32, torch.float64, *HALVES)
MAX_SIZES = 256  # of input, that are known to be right; another is checked again when it comes back

Outputs = tuple[list[Tensor], Tensor | None]  # the IRs, the logits
After = Callable[[int, Tensor], None]  # of a section, from 0, with its output


class FrozenTeacher:
    """A split teacher, frozen and lowered: ``run`` gives what the split model's ``run`` gives, faster.

    The parameters are copied when the first batch arrives: later changes to the module's are not seen. The module
    itself is put into eval mode and its parameters stop requiring gradients; otherwise it stays as it is.

    Images may have any number of sizes. A part has one program for all at which it does the same operations with the
    same numbers, as convolutional networks do; each new size costs a check on two images. A part whose numbers depend
    on the size has a program for each of at most 8, which share their weights, and runs as its module at others.

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
        self.dtype = _dtype_of(teacher) if dtype is None else dtype
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype: expected float32, float64, bfloat16 or float16, got {self.dtype}")
        self.module = teacher.eval().requires_grad_(False)
        self.parts: tuple[PartPlan, ...] = ()
        self._logits, self._strict = logits, strict
        self._programs = [PartPrograms(self.dtype, strict) for _ in teacher.part_names]
        self._sizes: OrderedDict[torch.Size, list[Run]] = OrderedDict()  # by the shape of an image, the last used last
        self._values: list[int] | None = None  # of the parameters when they were copied
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
        return self.prefetched(images) or self._forward(images, self._prepare(images), after)

    def prefetch(self, *batches: Tensor) -> None:
        """Start on batches that ``run`` will be given, after those announced before, while the caller goes on.

        Called for the next batch before the student trains on the one at hand, teacher and student work side by side:
        on CUDA on a stream of the teacher's own, which waits for what the caller's stream has been given so far; on
        the CPU in a thread, which takes a free core, for the runner needs no GIL. Several batches of one call go
        through in one forward, which uses the hardware better and holds the IRs of all of them. Results are those of
        ``run``, up to the rounding of another batch size.
        """
        images = batches[0] if len(batches) == 1 else torch.cat(batches)
        runs = self._prepare(images)
        wait = self._on_own_stream(images, runs) if images.is_cuda else self._in_thread(images, runs)
        if len(batches) > 1:
            wait = _Shares(wait, [len(batch) for batch in batches])
        self._ahead.extend((batch, wait) for batch in batches)

    def announce(self, images: Tensor, outputs: Outputs) -> None:
        """Have `run` give these outputs for these images, after those announced before."""
        self._ahead.append((images, lambda: outputs))

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

    def check_shared(self, teacher: SplitModel, dtype: torch.dtype | None, *, logits: bool, strict: bool) -> None:
        """Whether it does what a new one of these arguments would.

        Raises:
            ValueError: it does not, or the teacher's parameters have changed since they were copied.
        """
        if teacher is not self.module:
            raise ValueError("frozen: it was made from another teacher than the step is given")
        wanted = _dtype_of(teacher) if dtype is None else dtype
        if wanted != self.dtype:
            raise ValueError(f"frozen: expected {wanted} for the step's precision, got {self.dtype}")
        if logits and not self._logits:
            raise ValueError("frozen: it leaves the head out, and the loss needs logits; make it with logits=True")
        if strict != self._strict:
            raise ValueError(
                f"frozen: expected strict={strict} for the step's engine, got strict={self._strict}: 'runner' raises "
                "where a lowered part fails its check, 'auto' runs its module"
            )
        if self._values is not None and self._values != _sums(teacher):
            raise ValueError("frozen: the teacher's parameters have changed since it copied them; make a new one")

    def __getstate__(self) -> dict[str, Any]:
        # Programs and threads cannot be copied or pickled: a copy makes its own from the module's parameters.
        programs = [PartPrograms(self.dtype, self._strict) for _ in self._programs]
        fresh = {"parts": (), "_programs": programs, "_sizes": OrderedDict(), "_ahead": deque()}
        return {**self.__dict__, **fresh, **dict.fromkeys(("_values", "_worker", "_stream"))}

    # -- ahead -------------------------------------------------------------------------------------------------------

    def _in_thread(self, images: Tensor, runs: list[Run]) -> Callable[[], Outputs]:
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "lit_fast-teacher")
        return self._worker.submit(self._forward, images, runs).result

    def _on_own_stream(self, images: Tensor, runs: list[Run]) -> Callable[[], Outputs]:
        if self._stream is None:
            self._stream = torch.cuda.Stream(images.device)
        own = self._stream
        own.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(own):
            irs, logits = self._forward(images, runs)
        images.record_stream(own)

        def wait() -> Outputs:
            callers = torch.cuda.current_stream(images.device)
            callers.wait_stream(own)
            for tensor in irs if logits is None else (*irs, logits):
                tensor.record_stream(callers)
            return irs, logits

        return wait

    # -- running -----------------------------------------------------------------------------------------------------

    def _forward(self, images: Tensor, runs: list[Run], after: After | None = None) -> Outputs:
        stem, *sections, head = runs
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
        """What runs the parts for images of this shape; a trace holds numbers that were computed from it."""
        size = images.shape[1:]
        if size not in self._sizes:
            if self._worker is not None:  # which may be running modules
                self._worker.submit(lambda: None).result()
            plain = torch.autocast(images.device.type, enabled=False)
            with untouched(self.module), full_float32(), torch.no_grad(), plain:
                self._sizes[size] = self._build(images[:2] if len(images) > 1 else torch.cat((images, images)))
            if self._values is None:
                self._values = _sums(self.module)
            if len(self._sizes) > MAX_SIZES:
                self._sizes.popitem(last=False)
        self._sizes.move_to_end(size)
        return self._sizes[size]

    def _build(self, example: Tensor) -> list[Run]:
        exact = torch.float64 if self.dtype == torch.float64 else torch.float32
        # NaN and inf would leave nothing to compare.
        x = example.to(exact).nan_to_num(0.0, 0.0, 0.0) if example.is_floating_point() else example
        # What is not lowered from: a trace may hold numbers that were computed from the values of its example.
        other = x.max() - x
        # Lowered and checked in full precision, also where the module itself is kept in half.
        half = any(p.dtype in HALVES for p in self.module.parameters())
        parts = (copy.deepcopy(self.module).to(exact) if half else self.module).parts
        plans, runs = [], []
        for part, programs in zip(parts, self._programs, strict=True):
            first = second = Example.of(part, x, self.dtype)
            with contextlib.suppress(Exception):  # of modules that refuse some values; the batch's own are there
                second = Example.of(part, other, self.dtype)
            plan, run = programs.fitting(part, [first, second])
            plans.append(plan)
            runs.append(run)
            x, other = first.exact, second.exact
        self.parts = tuple(plans)
        return runs


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


def frozen_for(
    teacher: SplitModel, dtype: torch.dtype | None, shared: FrozenTeacher | None, *, logits: bool, strict: bool
) -> FrozenTeacher:
    """What runs the teacher of a step: one that it shares with others, or one of its own.

    Raises:
        TypeError, ValueError: what is to be shared does not do what the step needs.
    """
    if shared is None:
        return FrozenTeacher(teacher, dtype, logits=logits, strict=strict)
    if not isinstance(shared, FrozenTeacher):
        raise TypeError(f"frozen: expected a FrozenTeacher, got {type(shared).__name__}")
    shared.check_shared(teacher, dtype, logits=logits, strict=strict)
    return shared


def _dtype_of(teacher: SplitModel) -> torch.dtype:
    return next((p.dtype for p in teacher.parameters() if p.is_floating_point()), torch.float32)


def _sums(module: nn.Module) -> list[int]:
    """Of the bits of every parameter and buffer: others where a value has changed."""
    tensors = [tensor.detach() for tensor in (*module.parameters(), *module.buffers()) if not is_lazy(tensor)]
    sums = [_bits(tensor).sum(dtype=torch.int64) for tensor in tensors]
    return torch.stack([total.to(sums[0].device) for total in sums]).tolist() if sums else []


def _bits(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return _bits(torch.view_as_real(tensor))
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
