"""Cut a model into stem, sections and head by module names, sharing its parameters (LIT paper, section 3)."""

from __future__ import annotations

import difflib
import inspect
import operator
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import nn

from lit_fast.errors import SplitError, UntraceableError
from lit_fast.literals import SplitHow
from lit_fast.sections.cuts import Cuts
from lit_fast.sections.inputs import Inputs, without_labels
from lit_fast.sections.model import SplitModel
from lit_fast.sections.parts import Part
from lit_fast.sections.recorded import Chain, RecordedModel
from lit_fast.sections.stacks import block_names, chain_of_cuts, chain_of_run, runs_of_blocks, with_stem
from lit_fast.sections.traced import TracedModel, TracedPart

__all__ = ["split"]


def split(
    model: nn.Module,
    at: Sequence[str] | None = None,
    *,
    stem: str | None = None,
    blocks: str | Sequence[str] | None = None,
    sections: int | None = None,
    cuts: Sequence[int] | None = None,
    how: SplitHow = "auto",
    example: Inputs | None = None,
) -> SplitModel:
    """Cut a model into stem, sections and head: at named modules, or a stack of blocks into runs.

    Args:
        model: any module.
        at: names of the submodules, in the order they run, whose OUTPUTS are the IRs. None takes ``model.sections``,
            which the built-in models have.
        stem: name of the submodule whose output is section 1's input. None: section 1 starts at the input of
            ``at[0]``, which is right where sections are modules ("layer1"); a stack of layers cut at its fourth and
            eighth needs it: ``at=["layers.3", "layers.7"], stem="embed"``.
        blocks: instead of ``at``: name of the module whose children are the blocks, such as ``"model.layers"``, or a
            list of names. What runs before them is the stem, what runs after them the head.
        sections: with ``blocks``: into so many runs, as equal as can be. None: each block is a section.
        cuts: with ``blocks``, instead of ``sections``: a section ends after so many blocks each; ``[4, 8]`` cuts a
            stack of 12 into three.
        how: ``"traced"`` reads the forward of a model that maps one tensor to its output; its parts then run alone,
            and a teacher's can be lowered. ``"recorded"`` watches the forward run, whatever it takes: blocks must hand
            the hidden state on, and are called again with their other arguments of the same batch. ``"auto"`` traces
            where that works and records otherwise; ``how`` and ``why`` of the result tell.
        example: a batch. ``"auto"`` records where it has several inputs. One forward of a recorded model on it shows
            what runs before section 1, the stem; without, that is what is registered before. With ``at`` it also shows
            the modules between the cuts; without, they are the neighbours in one stack, or the cut modules alone.

    Returns:
        The model with its parts; parameters are shared.

    Raises:
        SplitError: unknown, duplicate or misordered names, a module that forward does not call or calls twice, more
            than one tensor crossing a cut, with ``how="traced"`` a forward that cannot be traced. A recorded model
            is checked when it runs.

    Python values that a traced forward reads (``self.p`` in ``F.dropout(x, self.p)``) keep the value they had here.

    Example:
        >>> import lit_fast as lf
        >>> student = lf.split(lf.models.resnet20())
        >>> irs, logits = student.run(torch.zeros(2, 3, 32, 32))
        >>> [tuple(ir.shape) for ir in irs]
        [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]
    """
    _check_model(model)
    example, _ = without_labels(example, None)
    if how not in get_args(SplitHow):
        raise SplitError(f"how: expected one of {', '.join(map(repr, get_args(SplitHow)))}, got {how!r}")
    if blocks is not None:
        if at is not None or stem is not None:
            raise SplitError("blocks, at: expected one of the two ways to name the cuts, got both")
        runs = _chain_of_blocks(model, blocks, sections, cuts)

        def chain_of_blocks() -> Chain:
            return runs if example is None else with_stem(model, runs, example)

        split_model = _cut(model, Cuts(runs.at, start=runs.modules[0]), chain_of_blocks, how, example, SplitError)
        split_model.blocks = runs.sections
        return split_model
    if sections is not None or cuts is not None:
        raise SplitError("sections, cuts: they divide a stack of blocks; name it: blocks=...")
    names = _check_names(model, at, stem)

    def chain() -> Chain:
        return chain_of_cuts(model, names, stem) if example is None else chain_of_run(model, names, stem, example)

    return _cut(model, Cuts(names, stem), chain, how, example, UntraceableError)


def _cut(
    model: nn.Module, at: Cuts, chain: Callable[[], Chain], how: str, example: Inputs | None, failed: type[SplitError]
) -> SplitModel:
    """Traced or recorded, as asked for; by itself recorded where there are several inputs, or where tracing fails."""
    if how == "traced":
        return _without_checkpoints(TracedModel(model, at, "asked for"))
    if how == "recorded":
        return RecordedModel(model, chain(), "asked for")
    if isinstance(example, (Mapping, tuple, list)) and len(example) > 1:
        return RecordedModel(model, chain(), f"the example has {len(example)} inputs")
    if example is None and "attention_mask" in inspect.signature(model.forward).parameters:
        return RecordedModel(model, chain(), "its forward takes an attention_mask beside its input")
    try:
        traced = TracedModel(model, at, "its forward can be traced")
        for name, part in zip(traced.at, traced.parts[2:]):
            if failed is SplitError and _unpacks(part):
                raise SplitError(f"{name!r} gives several values, of which the hidden state is one")
    except failed as error:
        return RecordedModel(model, chain(), _cause(error))
    return _without_checkpoints(traced)


def _without_checkpoints(traced: TracedModel) -> TracedModel:
    """Warns where the model's forward asks for gradient checkpoints: a trace holds what they compute, not them."""
    switches = ("grad_checkpointing", "gradient_checkpointing")  # of timm and of Hugging Face
    for name, module in traced.model.named_modules():
        if any(getattr(module, switch, False) is True for switch in switches):
            warnings.warn(
                f"lit_fast: {name or type(module).__name__} has gradient checkpointing on, which tracing does away "
                "with: results are the same, no memory is saved; split it with how='recorded' to keep it",
                stacklevel=4,
            )
            break
    return traced


def _cause(error: SplitError) -> str:
    """What an error says without what it says to do."""
    return re.split(r"; |\. It is read|\n", str(error), maxsplit=1)[0]


def _unpacks(part: Part) -> bool:
    """Whether a traced part begins with an item of its input, which is then no tensor but a tuple or a dict."""
    assert isinstance(part, TracedPart)
    source = next(iter(part.graph.nodes))
    return any(user.target is operator.getitem and isinstance(user.args[1], (int, str)) for user in source.users)


def _chain_of_blocks(
    model: nn.Module, blocks: str | Sequence[str], sections: int | None, cuts: Sequence[int] | None
) -> Chain:
    for name in (blocks,) if isinstance(blocks, str) else blocks:
        _check_name(model, name)
    names = block_names(model, blocks)
    if len(set(names)) < len(names):
        raise SplitError(f"blocks: a module is named twice in {list(names)}")
    return Chain(runs_of_blocks(names, sections, cuts))


def _check_model(model: Any) -> None:
    if isinstance(model, SplitModel):
        raise SplitError("this model is split already; to cut it elsewhere pass its .model")
    if not isinstance(model, nn.Module):
        raise SplitError(f"model: expected an nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise SplitError("a TorchScript module cannot be cut; pass the nn.Module it was made from")
    if hasattr(model, "_orig_mod"):
        raise SplitError(
            "a torch.compile'd model cannot be cut; split the model first, compile the parts or the step after"
        )
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise SplitError(f"cut the model inside {type(model).__name__}: split(model.module), and wrap afterwards")


def _check_names(model: nn.Module, at: Sequence[str] | None, stem: str | None) -> tuple[str, ...]:
    if at is None:
        at = getattr(model, "sections", None)
        if not isinstance(at, (tuple, list)):
            children = ", ".join(name for name, _ in model.named_children())
            raise SplitError(
                f"{type(model).__name__} has no default cuts; pass at=[...], names of submodules whose outputs are "
                f"the IRs, or blocks=..., the name of a stack of blocks. Its children: {children}"
            )
    if isinstance(at, str):
        raise SplitError(f"at: expected a list of submodule names, got the string {at!r}; write at=[{at!r}]")
    names = tuple(at)
    if not names:
        raise SplitError("at: the list of cuts is empty; name at least one submodule")
    unnamed = [name for name in (*names, stem) if not isinstance(name, str) and name is not None]
    if unnamed:
        raise SplitError(f"at, stem: expected names of submodules (strings), got {unnamed[0]!r}")
    for name in (*names, *([stem] if stem is not None else [])):
        _check_name(model, name)
        if (*names, stem).count(name) > 1:
            raise SplitError(f"{name!r} is named twice; each cut needs its own module")
    return names


def _check_name(model: nn.Module, name: str) -> None:
    known = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        tried = f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(known[:12])} ..."
        raise SplitError(f"{type(model).__name__} has no submodule {name!r}; {tried}")
