"""Which modules a section consists of: runs of a stack's blocks, or what a forward calls between two cuts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_fast.errors import SplitError
from lit_fast.sections.dryrun import untouched
from lit_fast.sections.inputs import Inputs, call, first_tensor, tensors_of
from lit_fast.sections.recorded import Chain
from lit_fast.sections.tracing import set_mode

__all__ = ["block_names", "chain_of_cuts", "chain_of_run", "runs_of_blocks", "with_stem"]


def block_names(model: nn.Module, blocks: str | Sequence[str]) -> tuple[str, ...]:
    """The names of a stack's blocks: the children of a module, or a list of names.

    Raises:
        SplitError: there are none.
    """
    if not isinstance(blocks, str):
        names = tuple(blocks)
    else:
        children = [name for name, _ in model.get_submodule(blocks).named_children()]
        names = tuple(f"{blocks}.{name}" for name in children)
    if not names:
        raise SplitError(
            f"blocks={blocks!r} has no blocks; name the module that holds them (an nn.ModuleList or nn.Sequential), "
            f"such as {_stacks(model)}"
        )
    return names


def _stacks(model: nn.Module) -> str:
    stacks = [
        f"{name!r} ({len(module)} blocks)"
        for name, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 1
    ]
    return ", ".join(stacks[:4]) or "none of its own"


def runs_of_blocks(
    names: tuple[str, ...], sections: int | None, cuts: Sequence[int] | None
) -> tuple[tuple[str, ...], ...]:
    """The blocks of each section.

    Args:
        names: of all blocks.
        sections: into so many runs, as equal as can be; None, without cuts: each block is a section.
        cuts: after so many blocks each, counted from 1; the rest is the last section.

    Raises:
        SplitError: more sections than blocks, or cuts that do not lie between blocks.
    """
    count = len(names)
    if sections is not None and cuts is not None:
        raise SplitError("sections, cuts: expected one of the two, got both")
    if cuts is not None:
        ends = [*cuts, count]
        whole = all(isinstance(end, int) and not isinstance(end, bool) for end in ends)
        if not whole or any(a >= b for a, b in zip([0, *ends], ends)):
            raise SplitError(
                f"cuts: expected ascending numbers of blocks from 1 to {count - 1}, after each of which a section "
                f"ends, got {list(cuts)}; the last section ends with the last of the {count} blocks"
            )
    else:
        sections = count if sections is None else sections
        if not isinstance(sections, int) or not 1 <= sections <= count:
            raise SplitError(f"sections: expected a number from 1 to {count}, the number of blocks, got {sections!r}")
        ends = [(i + 1) * count // sections for i in range(sections)]
    return tuple(names[start:end] for start, end in zip([0, *ends], ends))


def chain_of_cuts(model: nn.Module, at: Sequence[str], stem: str | None) -> Chain:
    """Sections as far as names tell: neighbours in one stack, else each cut module alone.

    Where the cuts are blocks of one nn.ModuleList or nn.Sequential, a section is what stands there after the cut before
    it. Section 1 begins after ``stem``, or with the first block where that is elsewhere; without one, at ``at[0]``.
    """
    holders = {name.rpartition(".")[0] for name in at}
    holder = holders.pop()
    stack = model.get_submodule(holder)
    if holders or not isinstance(stack, (nn.ModuleList, nn.Sequential)):
        return Chain(tuple((name,) for name in at))
    names = block_names(model, holder) if holder else tuple(name for name, _ in model.named_children())
    ends = [names.index(name) + 1 for name in at]
    start = ends[0] - 1 if stem is None else names.index(stem) + 1 if stem in names else 0
    if any(a >= b for a, b in zip([start, *ends], ends)):
        raise SplitError(f"cuts out of order: {', '.join(at)}; list them as they run")
    return Chain(tuple(names[a:b] for a, b in zip([start, *ends], ends)))


@dataclass
class _Called:
    """A call of a module: what it was given first, what it gave, and when it began and ended."""

    name: str
    given: list[Tensor]
    gave: Tensor | None
    began: int
    ended: int = 0


def chain_of_run(model: nn.Module, at: Sequence[str], stem: str | None, example: Inputs) -> Chain:
    """Sections as one forward shows them: the modules that hand the tensor on from one cut to the next.

    Raises:
        SplitError: a cut that is not called, or to which no chain of modules leads.
    """
    calls = _calls_of(model, example)
    by_name = {done.name: done for done in calls}
    for name in (*at, *([stem] if stem else [])):
        if name not in by_name:
            raise SplitError(f"cut {name!r}: the model's forward does not call it on the example; name another module")
    first = at[0] if stem is None else _next(calls, by_name[stem], at[0])
    sections = [(first, *_between(calls, by_name[first], at[0]))]
    for before, cut in itertools.pairwise(at):
        sections.append(tuple(_between(calls, by_name[before], cut)))
    return Chain(tuple(sections), _run_before(model, calls, first))


def with_stem(model: nn.Module, chain: Chain, example: Inputs) -> Chain:
    """The chain with what one forward shows to run before it; the chain itself is checked in every run."""
    return Chain(chain.sections, _run_before(model, _calls_of(model, example), chain.modules[0]))


def _run_before(model: nn.Module, calls: list[_Called], first: str) -> frozenset[str]:
    """All modules that begin before the first of the chain does, by every name they have.

    One that is not called itself is where what is in it begins, or where it is registered.
    """
    begun = [done.name for done in calls]
    before = {id(model.get_submodule(name)) for name in begun[: begun.index(first) if first in begun else None]}
    called = before | {id(model.get_submodule(name)) for name in begun}
    names, reached = set(), False
    for name, module in model.named_modules(remove_duplicate=False):
        reached |= name == first
        inside = {id(module)} if id(module) in called else {id(child) for child in module.modules()}
        if inside & before or not (inside & called or reached):
            names.add(name)
    return frozenset(names)


def _between(calls: list[_Called], before: _Called, cut: str) -> list[str]:
    """The modules that run after one, up to the cut."""
    names: list[str] = []
    by_name = {done.name: done for done in calls}
    while before.name != cut:
        names.append(_next(calls, before, cut))
        before = by_name[names[-1]]
    return names


def _next(calls: list[_Called], before: _Called, cut: str) -> str:
    """The outermost module without the cut inside it that is given what the one before gave."""
    for done in calls:  # in the order they began: those outside before those inside
        given = before.gave is not None and any(tensor is before.gave for tensor in done.given)
        if done.began > before.ended and given and not cut.startswith(f"{done.name}.") and done.gave is not None:
            return done.name
    raise SplitError(
        f"after {before.name!r} no module is given the tensor that it returned, on the way to {cut!r}: the model "
        "computes something there itself, which a section run again would leave out; move that into a module, or cut "
        "at modules that contain it"
    )


def _calls_of(model: nn.Module, example: Inputs) -> list[_Called]:
    calls: list[_Called] = []
    clock = iter(range(1 << 62))
    names = {id(module): name for name, module in model.named_modules() if name}
    open_calls: list[_Called] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        done = _Called(names[id(module)], list(tensors_of((args, kwargs))), None, next(clock))
        calls.append(done)
        open_calls.append(done)

    def after(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        done = open_calls.pop()
        done.gave, done.ended = first_tensor(result), next(clock)

    with torch.no_grad(), untouched(model), set_mode(model, False):
        for name, module in model.named_modules():
            if name:
                module.register_forward_pre_hook(before, with_kwargs=True)  # gone with `untouched`
                module.register_forward_hook(after, with_kwargs=True)
        call(model, example)
    return calls
