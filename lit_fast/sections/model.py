"""Cut a model into stem, sections and head by submodule names, sharing its parameters (LIT paper, section 3).

Nothing is copied and no hook is set: the model's own forward stays as it was, the parts run pieces of it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_fast.errors import SplitError
from lit_fast.sections.cuts import part_names
from lit_fast.sections.parts import Part, build

__all__ = ["Part", "SplitModel", "copy_parts", "split"]


def split(model: nn.Module, at: Sequence[str] | None = None, *, stem: str | None = None) -> SplitModel:
    """Cut a model into stem, sections and head.

    Args:
        model: any module that maps one tensor to its output.
        at: names of the submodules, in the order they run, whose OUTPUTS are the IRs. None takes ``model.sections``,
            which the built-in models have.
        stem: name of the submodule whose output is section 1's input. None: section 1 starts at the input of
            ``at[0]``, which is right where sections are modules ("layer1"); a stack of layers cut at its fourth and
            eighth needs it: ``at=["layers.3", "layers.7"], stem="embed"``.

    Returns:
        The model with its parts; parameters are shared.

    Raises:
        SplitError: unknown, duplicate or misordered names, a module that forward does not call or calls twice, more
            than one tensor crossing a cut, a forward that cannot be traced.

    Python values that the traced forward reads (``self.p`` in ``F.dropout(x, self.p)``) keep the value they had here.

    Example:
        >>> import lit_fast as lf
        >>> student = lf.split(lf.models.resnet20())
        >>> irs, logits = student.run(torch.zeros(2, 3, 32, 32))
        >>> [tuple(ir.shape) for ir in irs]
        [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]
    """
    return SplitModel(model, at, stem)


class SplitModel(nn.Module):
    """A model and its parts. Called, it runs the model's own forward; ``run`` goes through the parts.

    Args:
        model, at, stem: as for ``split``.
    """

    def __init__(self, model: nn.Module, at: Sequence[str] | None = None, stem: str | None = None) -> None:
        super().__init__()
        _check_model(model)
        self.at = _check_names(model, at, stem)
        self.stem_at = stem
        self.model = model
        self.training = model.training
        self._frozen: frozenset[str] = frozenset()
        self._switched_off: set[str] = set()  # parameters that freeze() switched off, by name, for unfreeze()
        self._parts = build(model, self.at, stem)

    def forward(self, x: Tensor) -> Any:
        """The model's own forward, untouched."""
        return self.model(x)

    @property
    def num_sections(self) -> int:
        """k: the number of sections, and of IRs."""
        return len(self.at)

    @property
    def part_names(self) -> tuple[str, ...]:
        """("stem", "section1", ..., "section<k>", "head")"""
        return part_names(self.num_sections)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Stem, sections and head, in this order."""
        return self._parts

    @property
    def stem(self) -> Part:
        """What stands before section 1."""
        return self._parts[0]

    @property
    def sections(self) -> tuple[Part, ...]:
        """S_1 ... S_k, counted from 0 here."""
        return self._parts[1:-1]

    @property
    def head(self) -> Part:
        """What stands after section k."""
        return self._parts[-1]

    def part(self, name: str) -> Part:
        """The part of that name.

        Raises:
            SplitError: no such part.
        """
        (found,) = self._check_parts([name])
        return self._parts[self.part_names.index(found)]

    def run(self, x: Tensor, after: Callable[[int, Tensor], None] | None = None) -> tuple[list[Tensor], Any]:
        """The composed pass: ``head(S_k(... S_1(stem(x))))``, which equals ``self.model(x)`` bit for bit.

        Args:
            x: model input, [B, ...].
            after: called with the number of each section, from 0, and its output, before the next one is begun.

        Returns:
            The k section outputs, and the logits.
        """
        irs = []
        out = self.stem(x)
        for i, section in enumerate(self.sections):
            out = section(out)
            irs.append(out)
            if after is not None:
                after(i, out)
        return irs, self.head(out)

    @property
    def frozen(self) -> frozenset[str]:
        """Names of the frozen parts."""
        return self._frozen

    def freeze(self, *parts: str) -> None:
        """Stop training these parts: no gradients, and their modules stay in eval mode under ``train()``.

        A module without parameters and buffers that a trained part uses too (one nn.ReLU for all) follows that part's
        mode.

        Raises:
            SplitError: an unknown part, or a parameter shared between a frozen and a trained part.
        """
        frozen = self._frozen | self._check_parts(parts)
        self._check_shared(frozen)
        for name in frozen - self._frozen:
            for key, parameter in self.part(name).named_parameters():
                if parameter.requires_grad:
                    parameter.requires_grad_(False)
                    self._switched_off.add(key)
        self._frozen = frozen
        self.train(self.training)

    def unfreeze(self, *parts: str) -> None:
        """Train these parts again; a parameter that did not require a gradient before ``freeze`` still does not.

        Raises:
            SplitError: an unknown part, or a parameter shared between a frozen and a trained part.
        """
        thawed = self._check_parts(parts) & self._frozen
        self._check_shared(self._frozen - thawed)
        for name in thawed:
            for key, parameter in self.part(name).named_parameters():
                if key in self._switched_off:
                    parameter.requires_grad_(True)
                    self._switched_off.discard(key)
        self._frozen -= thawed
        self.train(self.training)

    def train(self, mode: bool = True) -> SplitModel:
        """Set the mode of the model; frozen parts stay in eval mode."""
        super().train(mode)
        trained = {id(m) for part in self._parts if part.name not in self._frozen for m in part.modules()}
        for part in self._parts:
            part.training = mode and part.name not in self._frozen
            if part.name in self._frozen:
                for child in part.children():
                    if id(child) not in trained:
                        child.eval()
        return self

    def _check_parts(self, names: Iterable[str]) -> frozenset[str]:
        known = self.part_names
        for name in names:
            if name not in known:
                raise SplitError(f"no part {name!r}; this model's parts are {', '.join(known)}")
        return frozenset(names)

    def _check_shared(self, frozen: frozenset[str]) -> None:
        trained: dict[int, str] = {}
        for part in self._parts:
            if part.name not in frozen:
                for tensor in (*part.parameters(), *part.buffers()):
                    trained.setdefault(id(tensor), part.name)
        for part in self._parts:
            for key, tensor in (*part.named_parameters(), *part.named_buffers()) if part.name in frozen else ():
                if id(tensor) in trained:
                    raise SplitError(
                        f"{key} is shared between {part.name} (frozen) and {trained[id(tensor)]} (trained); "
                        "freeze both or neither"
                    )

    def __getstate__(self) -> dict[str, Any]:
        # Parts hold generated code, which neither pickle nor deepcopy can carry: they are cut anew from the copied
        # model.
        return {key: value for key, value in self.__dict__.items() if key != "_parts"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._parts = build(self.model, self.at, self.stem_at)
        for part in self._parts:
            part.training = self.training and part.name not in self._frozen


def copy_parts(teacher: SplitModel, student: SplitModel, parts: Sequence[str] = ("stem", "head")) -> None:
    """Copy the teacher's parameters and buffers into the student's parts of the same name, in place.

    The copied parts' keys and shapes must be equal; all are checked before anything is copied.

    Args:
        parts: names of the parts, "stem", "section<i>" or "head". Copying (and freezing) sections too is the
            paper's selective compression (section 4.1).

    Raises:
        SplitError: a part that one side lacks, other keys, or other shapes, listed by name.

    Example:
        >>> import lit_fast as lf
        >>> teacher, student = lf.split(lf.models.resnet32()), lf.split(lf.models.resnet20())
        >>> copy_parts(teacher, student, ["stem", "head"])
        >>> student.freeze("stem", "head")
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    problems = []
    for name in parts:
        source, target = _tensors(teacher.part(name)), _tensors(student.part(name))
        for owner, keys in (("teacher", source.keys() - target.keys()), ("student", target.keys() - source.keys())):
            if keys:
                shown = sorted(keys)[:4] + (["..."] if len(keys) > 4 else [])
                problems.append(f"{name}: only the {owner} has {', '.join(shown)} ({len(keys)} in all)")
        for key in source.keys() & target.keys():
            if source[key].shape != target[key].shape:
                problems.append(
                    f"{name}: {key} is {tuple(source[key].shape)} in the teacher, {tuple(target[key].shape)} in the "
                    "student"
                )
            else:
                pairs.append((source[key], target[key]))
    if problems:
        raise SplitError(
            "the teacher's parts do not fit the student's:\n  "
            + "\n  ".join(sorted(problems))
            + "\ncopy only parts that are built alike (parts=...)"
        )
    with torch.no_grad():
        for value, place in pairs:
            place.copy_(value)


def _tensors(part: Part) -> dict[str, Tensor]:
    return {**dict(part.named_parameters()), **dict(part.named_buffers())}


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
                f"the IRs. Its children: {children}"
            )
    if isinstance(at, str):
        raise SplitError(f"at: expected a list of submodule names, got the string {at!r}; write at=[{at!r}]")
    names = tuple(at)
    if not names:
        raise SplitError("at: the list of cuts is empty; name at least one submodule")
    unnamed = [name for name in (*names, stem) if not isinstance(name, str) and name is not None]
    if unnamed:
        raise SplitError(f"at, stem: expected names of submodules (strings), got {unnamed[0]!r}")
    known = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    for name in (*names, *([stem] if stem is not None else [])):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            tried = f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(known[:12])} ..."
            raise SplitError(f"{type(model).__name__} has no submodule {name!r}; {tried}")
        if (*names, stem).count(name) > 1:
            raise SplitError(f"{name!r} is named twice; each cut needs its own module")
    return names
