"""What a step does once for all parameters of the student, in place of once for each: casts, sums of gradients, counts.

Under autocast every convolution casts its own weight, in each pass; the gradients of a parameter's two passes are cast
and added one by one; every BatchNorm counts its batches. On a GPU each of these is a launch of microseconds. Here both
passes use tensors that one multi-tensor launch has cast, autograd sees one function with all of them, and whose
backward casts and adds all gradients at once; and the batches are counted together. The numbers are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lit_fast.models.fused_norm import is_plain
from lit_fast.sections.model import SplitModel

__all__ = ["PassWeights"]

_NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CAST: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # by autocast, weight and bias
_USED = frozenset((*_NORMS, *_CAST, nn.LayerNorm, nn.GroupNorm))


class _Place(NamedTuple):
    """Where a module holds a parameter, and what becomes of it."""

    held: dict[str, Any]
    name: str
    section: int | None  # of those that run twice
    cast: bool

    @property
    def parameter(self) -> Tensor:
        return self.held[self.name]


class PassWeights:
    """Has the two passes use tensors that are made, and whose gradients are taken, by few launches.

    It is for students whose parts are traced, and only for parameters that one plain module of PyTorch holds; the
    others, and modules with hooks or in compiled code, are used as they are.

    Args:
        student: the split student.
        twice: its sections, from 0, that run in both passes.
        amp_dtype: that of autocast; None: there is none.

    Attributes:
        on: whether the passes use it. Off until a step that trains alone switches it on: frameworks that average
            gradients while backward goes on want them one after the other.
    """

    def __init__(self, student: SplitModel, twice: Collection[int], amp_dtype: torch.dtype | None) -> None:
        self.on = False
        self._student, self._twice, self._amp_dtype = student, frozenset(twice), amp_dtype
        self._autocast: set[int] | None = None  # ids of modules that the first step ran under autocast
        self._composed: list[tuple[_Place, Tensor]] = []
        self._fed: list[tuple[_Place, Tensor]] = []

    @contextmanager
    def used(self, *, count: bool) -> Iterator[None]:
        """Around both passes.

        Args:
            count: also have the batches of BatchNorm counted together.
        """
        modules = list(self._student.model.modules())
        if not self.on or not self._applies(modules):
            yield
            return
        with _counted(modules) if count else ExitStack():
            if self._amp_dtype is not None and self._autocast is None:
                with self._watched(modules):
                    yield
                return
            try:
                self._make()
                yield
            finally:
                self._composed, self._fed = [], []

    def _applies(self, modules: list[nn.Module]) -> bool:
        if self._student.how != "traced" or not torch.is_grad_enabled():
            return False
        if self._amp_dtype is None:  # the caller's autocast keeps what it has cast of parameters, and of them alone
            devices = {parameter.device.type for parameter in self._student.parameters()}
            if any(map(torch.is_autocast_enabled, devices)):
                return False
        return _uncompiled([*modules, *self._student.parts])

    @contextmanager
    def composed(self) -> Iterator[None]:
        """Within it the student's modules hold the tensors of the composed pass."""
        with _standing_in(self._composed):
            yield

    @contextmanager
    def fed(self, i: int) -> Iterator[None]:
        """Within it the modules of section ``i``, from 0, hold those of the teacher-fed pass."""
        with _standing_in([(place, tensor) for place, tensor in self._fed if place.section == i]):
            yield

    def _make(self) -> None:
        places = self._places()
        if not places:
            return
        made = iter(_Weights.apply(self._amp_dtype, places, *(place.parameter for place in places)))
        for place in places:
            self._composed.append((place, next(made)))
            if place.section is not None:
                self._fed.append((place, next(made)))

    def _places(self) -> list[_Place]:
        """The parameters that are cast or used twice."""
        holders = [(module, name) for module in self._student.model.modules() for name in module._parameters]
        shared = Counter(id(module._parameters[name]) for module, name in holders)
        sections = self._sections()
        places = []
        for module, name in holders:
            parameter = module._parameters[name]
            if type(module) not in _USED or type(parameter) is not nn.Parameter or not parameter.requires_grad:
                continue
            if shared[id(parameter)] > 1 or not is_plain(module):
                continue
            section = sections.get(id(module))
            place = _Place(module._parameters, name, section if section in self._twice else None, self._casts(module))
            if place.cast or place.section is not None:
                places.append(place)
        return places

    def _sections(self) -> dict[int, int | None]:
        """Of each module, by id, its section, from 0; None for one in several."""
        found: dict[int, int | None] = {}
        for i, section in enumerate(self._student.sections):
            for module in section.modules():
                found[id(module)] = None if id(module) in found else i
        return found

    def _casts(self, module: nn.Module) -> bool:
        """Whether autocast would cast this module's parameters."""
        if self._amp_dtype is None or self._autocast is None:
            return False
        weight = module._parameters["weight"]
        return id(module) in self._autocast and weight is not None and weight.dtype == torch.float32

    @contextmanager
    def _watched(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """On the first step: some networks switch autocast off around a part of theirs."""
        within: Counter[int] = Counter()
        without: Counter[int] = Counter()

        def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            on = all(torch.is_autocast_enabled(x.device.type) for x in inputs if isinstance(x, Tensor))
            (within if on else without)[id(module)] += 1

        with ExitStack() as stack:
            for module in modules:
                if type(module) in _CAST and is_plain(module):
                    handle = module.register_forward_pre_hook(note)
                    stack.callback(handle.remove)
            yield
        self._autocast = set(within) - set(without)


class _Weights(torch.autograd.Function):
    """What the passes use of the parameters at ``places``: one tensor of each, or two where there are two passes."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype | None, places: list[_Place], *parameters: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        wide = [parameter for place, parameter in zip(places, parameters) if place.cast]
        cast = [torch.empty_like(parameter, dtype=dtype) for parameter in wide]
        if wide:
            torch._foreach_copy_(cast, wide)
        # With side streams both passes read this memory in backward: it is kept until the graph is gone.
        ctx.kept, ctx.places = [tensor.detach() for tensor in cast], places
        ctx.set_materialize_grads(False)
        made, narrow = [], iter(cast)
        for place, parameter in zip(places, parameters):
            first = next(narrow) if place.cast else parameter.detach()
            made += [first] if place.section is None else [first, first.detach()]
        return tuple(made)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        whole = _widened([place.cast for place in ctx.places for _ in range(1 if place.section is None else 2)], grads)
        given = iter(whole)
        pairs = [(next(given), None if place.section is None else next(given)) for place in ctx.places]
        both = [(first, second) for first, second in pairs if first is not None and second is not None]
        sums = iter(torch._foreach_add([first for first, _ in both], [second for _, second in both]) if both else ())
        return (
            None,
            None,
            *(first if second is None else second if first is None else next(sums) for first, second in pairs),
        )


def _widened(narrow: list[bool], grads: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """The gradients, those that are narrow in float32."""
    given = [grad for is_narrow, grad in zip(narrow, grads) if is_narrow and grad is not None]
    wide = [torch.empty_like(grad, dtype=torch.float32) for grad in given]
    if wide:
        torch._foreach_copy_(wide, given)
    made = iter(wide)
    return [next(made) if is_narrow and grad is not None else grad for is_narrow, grad in zip(narrow, grads)]


class _Calls:
    """In place of a BatchNorm's counter: counts on the host."""

    def __init__(self) -> None:
        self.count = 0

    def add_(self, number: int) -> None:
        self.count += number


@contextmanager
def _counted(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it batch normalisations count their batches on the host; at the end all counters are raised at once."""
    counters: list[tuple[dict[str, Any], Tensor, _Calls]] = []
    for module in modules:
        # With momentum=None the counter is read in forward.
        if type(module) in _NORMS and module.training and module.momentum is not None and is_plain(module):
            counter = module._buffers["num_batches_tracked"]
            if counter is not None:
                counters.append((module._buffers, counter, _Calls()))
    for held, _, calls in counters:
        held["num_batches_tracked"] = calls
    try:
        yield
    finally:
        for held, counter, _ in counters:
            held["num_batches_tracked"] = counter
        for number in {calls.count for _, _, calls in counters} - {0}:
            with torch.no_grad():
                torch._foreach_add_([counter for _, counter, calls in counters if calls.count == number], number)


@contextmanager
def _standing_in(tensors: Iterable[tuple[_Place, Tensor]]) -> Iterator[None]:
    parameters = [(place, place.parameter) for place, _ in tensors]
    try:
        for place, tensor in tensors:
            place.held[place.name] = tensor
        yield
    finally:
        for place, parameter in parameters:
            place.held[place.name] = parameter


def _uncompiled(modules: Iterable[nn.Module]) -> bool:
    """Whether no module is, or is in, compiled code, or has a forward of its own: these read what the modules hold."""
    if torch.compiler.is_compiling():
        return False
    return not any(
        module._compiled_call_impl is not None or "_orig_mod" in module._modules or "forward" in vars(module)
        for module in modules
    )
