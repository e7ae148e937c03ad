"""Models cut by watching their forward: it runs as it is, and sections run again with the arguments they had in it.

Between the cuts a model must be a chain of modules: each is given the very tensor that the one before it returned,
beside whatever else (masks, rotary embeddings, a condition). Then the modules of a section, called again with another
hidden state and the other arguments of the same batch, are that section. Nothing is traced: any Python may stand
between the modules, as long as it does not change the hidden state.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_fast.errors import SplitError
from lit_fast.sections.calls import Run, in_place_of_calls, uncompiled
from lit_fast.sections.inputs import Inputs, call, first_tensor, replaced, tensors_of
from lit_fast.sections.model import After, Around, SplitModel
from lit_fast.sections.parts import Part, part_names

__all__ = ["Chain", "RecordedModel"]


@dataclass(frozen=True)
class Chain:
    """The modules that a hidden state passes, by section.

    Attributes:
        sections: names of the modules of each section, in the order they run.
        stem: names of the modules that run before section 1, as far as they are known; None: those that are registered
            before its first module.
    """

    sections: tuple[tuple[str, ...], ...]
    stem: frozenset[str] | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(name for section in self.sections for name in section)

    @property
    def at(self) -> tuple[str, ...]:
        """The last of each section, whose output is the IR."""
        return tuple(section[-1] for section in self.sections)


class RecordedModel(SplitModel):
    """A model whose own forward is its composed pass; a section is its modules, called again.

    ``sections[i](hidden)`` takes the other arguments of its modules from the last `run`, so the hidden state must be of
    the same batch, and the run must not have been released.

    Args:
        model: takes anything.
        chain: where it is cut.

    Raises:
        SplitError: from `run`: the modules are no chain; the message names the two that do not follow each other.
    """

    how = "recorded"

    def __init__(self, model: nn.Module, chain: Chain, why: str = "") -> None:
        self.chain, self.blocks = chain, chain.sections
        self._last = _Last()
        super().__init__(model, chain.at, why)

    def _build(self) -> tuple[Part, ...]:
        stem, head = _outside(self.model, self.chain)
        stretches = [stem, *((section, ()) for section in self.chain.sections), head]
        names = part_names(len(self.chain.sections))
        return tuple(RecordedPart(name, self.model, *stretch, self._last) for name, stretch in zip(names, stretches))

    def run(
        self,
        inputs: Inputs,
        after: After | None = None,
        *,
        around: Around | None = None,
        sections: int | None = None,
        head: bool = True,
        copied: bool = False,
    ) -> tuple[list[Tensor], Any]:
        return uncompiled(RecordedModel._run, self, inputs, _Recording(self.chain, after, around, head, copied))

    def _run(self, inputs: Inputs, recording: _Recording) -> tuple[list[Tensor], Any]:
        self.release()
        with recording.of(self.model):
            output = call(self.model, inputs)
        recording.check_complete()
        self._last.recording = recording
        return recording.irs, output if recording.head else None

    @property
    def entered(self) -> Tensor:
        """What section 1 was given in the last `run`.

        Raises:
            SplitError: there was none, or it has been released.
        """
        return self._last.of("section1").entered

    def compile_blocks(self, **options: Any) -> None:
        """Compile each module of the chain for itself: ``torch.compile`` with these options, where it is called."""
        for name in self.chain.modules:
            self.model.get_submodule(name).compile(**options)

    def release(self) -> None:
        self._last.recording = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_last": _Last()}


class RecordedPart(Part):
    """A section that calls its modules with the arguments of the last run; stem and head do not run alone.

    Args:
        name, model, modules, tensors: as for `Part`.
        last: where the split model keeps its last run.
    """

    def __init__(
        self, name: str, model: nn.Module, modules: tuple[str, ...], tensors: tuple[str, ...], last: _Last
    ) -> None:
        super().__init__(name, model, modules, tensors)
        self._last = last

    def forward(self, hidden: Tensor) -> Any:
        if not self.name.startswith("section"):
            raise SplitError(
                f"the {self.name} of a recorded model does not run alone: only its own forward knows what it does; "
                "call the model, or its run(...)"
            )
        return uncompiled(RecordedPart._again, self, hidden)

    def _again(self, hidden: Tensor) -> Tensor:
        calls = self._last.of(self.name).calls
        for name in self._targets:
            result = calls[name].again(self.owner.get_submodule(name), hidden)
            hidden = _hidden_of(result, name)
        return hidden


class _Last:
    """The last run of a split model, which its parts read. A copy of a model has none."""

    recording: _Recording | None = None

    def of(self, part: str) -> _Recording:
        if self.recording is None:
            raise SplitError(
                f"{part} of a recorded model takes the other arguments of its modules (masks, positions) from the last "
                "run, and there is none: call run(...) on the same batch before"
            )
        return self.recording

    def __reduce__(self) -> tuple[Any, ...]:
        return _Last, ()


class _Hidden:
    """Stands for the hidden state in the arguments of a recorded call."""


HIDDEN = _Hidden()


class _Call(NamedTuple):
    """The arguments of a module in the model's own forward, with `HIDDEN` in the place of the hidden state."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def again(self, module: nn.Module, hidden: Tensor) -> Any:
        args, kwargs = replaced((self.args, self.kwargs), lambda value: hidden if value is HIDDEN else value)
        return module(*args, **kwargs)


class _Recording:
    """What the modules of a chain got and gave in one run of a model's own forward."""

    def __init__(self, chain: Chain, after: After | None, around: Around | None, head: bool, copied: bool) -> None:
        self.calls: dict[str, _Call] = {}
        self.irs: list[Tensor] = []
        self.entered: Tensor
        self._names = chain.modules
        self._section = {names[0]: i for i, names in enumerate(chain.sections)}
        self._ends = {names[-1]: i for i, names in enumerate(chain.sections)}
        self._after, self._around, self.head, self._copied = after, around, head, copied
        self._contexts = ExitStack()
        self._hidden: Tensor | None = None  # what the module at hand is to be given
        self._second: list[Tensor] = []  # what the module before it made beside the hidden state
        self._shared: list[Tensor] = []  # what the first module made beside it

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[None]:
        """While the context is open, the calls of the chain's modules are written down."""
        watched = [(model.get_submodule(name), functools.partial(self._watched, name)) for name in self._names]
        try:
            with in_place_of_calls(watched), self._contexts:
                yield
        finally:
            self._hidden, self._second, self._shared = None, [], []
            self._after = self._around = None

    def _watched(self, name: str, run: Run) -> Run:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._begins(name, args, kwargs)
            return self._ended(name, run(*args, **kwargs), (args, kwargs))

        return watched

    def _begins(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._check_turn(name)
        hidden = _first_hidden(args, kwargs, name) if self._hidden is None else self._hidden
        if self._hidden is None:
            self.entered = hidden
        given = False

        def marked(value: Any) -> Any:
            nonlocal given
            if value is hidden:
                given = True
                return HIDDEN
            return None if _is_cache(value) else value

        recorded = replaced((args, kwargs), marked)
        if not given:
            raise self._broken(name, args, kwargs)
        if self._second and any(a is b for a in self._second for b in tensors_of(recorded)):
            raise self._two_hidden(name)
        self.calls[name] = _Call(*recorded)
        if name in self._section and self._around is not None:
            self._contexts.enter_context(self._around(self._section[name]))

    def _ended(self, name: str, result: Any, given: Any) -> Any:
        hidden = _hidden_of(result, name)
        returned = [tensor for tensor in tensors_of(result) if tensor is not hidden]
        if len(self.calls) == 1:  # the first may make what all others read (the relative positions of T5)
            self._shared = returned
        elif returned:
            known = {id(tensor) for tensor in tensors_of(given)}
            self._second = [tensor for tensor in returned if id(tensor) not in known]
            kept = {id(tensor) for tensor in returned}
            replaced_by_another = [
                tensor
                for tensor in self._shared
                if id(tensor) in known - kept and any(made.shape == tensor.shape for made in self._second)
            ]
            if replaced_by_another:
                raise self._two_hidden(name)
        else:
            self._second = []
        if name in self._ends:
            self._contexts.close()
            self.irs.append(hidden)
            if self._after is not None:
                self._after(self._ends[name], hidden)
            if self._copied:
                original, hidden = hidden, hidden.clone()
                result = replaced(result, lambda value: hidden if value is original else value)
            if name == self._names[-1] and not self.head:
                self._contexts.enter_context(torch.no_grad())
        self._hidden = hidden
        return result

    def _before(self, name: str) -> str:
        return self._names[self._names.index(name) - 1]

    def _check_turn(self, name: str) -> None:
        if name in self.calls:
            raise SplitError(
                f"{name!r} is called twice in one forward, so its arguments and its output are not one; cut a model "
                "whose blocks are modules of their own, or at a module around all calls"
            )
        expected = self._names[len(self.calls)]
        if name != expected:
            raise SplitError(
                f"{name!r} runs before {expected!r}, which was listed before it; list modules in the order they run"
            )

    def _broken(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SplitError:
        before = self._before(name)
        got = first_tensor((args, kwargs))
        shapes = "no tensor" if got is None else f"one of shape {tuple(got.shape)}"
        assert self._hidden is not None
        return SplitError(
            f"{name!r} is not given the tensor that {before!r} returned (shape {tuple(self._hidden.shape)}) but "
            f"{shapes}: the model computes something between the two, which a section run again would leave out; move "
            "that into one of the modules, cut at modules that contain it, or pass example=..., a batch, so that "
            "modules between the cuts are found"
        )

    def _two_hidden(self, name: str) -> SplitError:
        return SplitError(
            f"between {self._before(name)!r} and {name!r} two tensors are handed on that both change from module to "
            "module, the hidden state and another; an IR must be one tensor: let the modules return their sum or cut "
            "a model whose modules hand on one"
        )

    def check_complete(self) -> None:
        """Raises SplitError if a module of the chain was not called."""
        for name in self._names:
            if name not in self.calls:
                raise SplitError(
                    f"{name!r} was not called in the model's forward on this batch (a container, such as "
                    "nn.ModuleList, is not called itself; nor is a module inside a compiled one seen); name modules "
                    "that are, and compile blocks, not the whole model"
                )


def _first_hidden(args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Tensor:
    """What section 1 begins with: the first tensor that is passed by position, else ``hidden_states``, else any."""
    hidden = first_tensor(args)
    if hidden is None:
        hidden = first_tensor((kwargs.get("hidden_states"), kwargs))
    if hidden is None:
        raise SplitError(f"{name!r} is not called with a tensor, so section 1 has no input; begin at another module")
    return hidden


def _hidden_of(result: Any, name: str) -> Tensor:
    hidden = first_tensor(result)
    if hidden is None:
        raise SplitError(f"{name!r} gives {type(result).__name__}, an IR must be one tensor; cut elsewhere")
    return hidden


def _is_cache(value: Any) -> bool:
    """Keys and values of earlier tokens: a module that is called again would append to them."""
    return hasattr(value, "get_seq_length") and not isinstance(value, nn.Module)


Stretch = tuple[tuple[str, ...], tuple[str, ...]]  # names of modules, and of tensors beside theirs


def _outside(model: nn.Module, chain: Chain) -> tuple[Stretch, Stretch]:
    """What belongs to stem and head: modules, and tensors that modules around the chain own themselves."""
    inside = set(chain.modules)
    around = {name.rpartition(".")[0] for name in inside}
    around |= {prefix for name in around for prefix in _prefixes(name)} | {""}
    stem: tuple[list[str], list[str]] = ([], [])
    head: tuple[list[str], list[str]] = ([], [])
    reached = False

    def visit(module: nn.Module, path: str) -> None:
        nonlocal reached
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        (head if reached else stem)[1].extend(_join(path, name) for name, _ in own)
        for name, child in module.named_children():
            full = _join(path, name)
            if full in inside:
                reached = True
            elif full in around:
                visit(child, full)
            else:
                before = not reached if chain.stem is None else full in chain.stem
                (stem if before else head)[0].append(full)

    visit(model, "")
    return (tuple(stem[0]), tuple(stem[1])), (tuple(head[0]), tuple(head[1]))


def _prefixes(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
