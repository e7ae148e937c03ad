"""What every split model is, however it was cut: stem, sections and head, and which of them are trained.

Nothing is copied and no hook is set: the model's own forward stays as it was.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from torch import Tensor, nn

from lit_fast.errors import SplitError, expect
from lit_fast.sections.inputs import Inputs
from lit_fast.sections.parts import Part, part_names

__all__ = ["After", "Around", "Part", "SplitModel", "expect_split"]

After = Callable[[int, Tensor], None]  # of a section, from 0, with its output
Around = Callable[[int], AbstractContextManager[Any]]  # of a section, from 0


class SplitModel(nn.Module):
    """A model and its parts, which share its parameters: what `split` makes.

    Called, it runs the model's own forward; ``run`` gives what passes the cuts as well.

    Attributes:
        model: the model, as it was.
        at: the cuts: names of the modules whose outputs are the IRs.
        how: "traced": its parts are pieces of its forward and run alone. "recorded": its own forward runs, and
            sections run again with the arguments that they had in it.
        why: why it was cut so, where that was left open.
        blocks: names of the blocks of each section, where a stack was cut; else None.
    """

    how: ClassVar[str]
    blocks: tuple[tuple[str, ...], ...] | None = None

    def __init__(self, model: nn.Module, at: tuple[str, ...], why: str = "") -> None:
        super().__init__()
        self.at, self.why = at, why
        self.model = model
        self.training = model.training
        self._frozen: frozenset[str] = frozenset()
        self._switched_off: set[str] = set()  # parameters that freeze() switched off, by name, for unfreeze()
        self._parts = self._build()

    @abstractmethod
    def _build(self) -> tuple[Part, ...]:
        """Stem, sections and head."""

    @abstractmethod
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
        """The composed pass: what ``self.model`` makes of the inputs, bit for bit, and its IRs.

        Args:
            inputs: what the model's forward takes: a tensor [B, ...], a tuple of arguments, a dict of keywords.
            after: called with the number of each section, from 0, and its output, before the next one is begun.
            around: gives a context for each section, from 0, that it runs in.
            sections: how many sections are needed; more may run.
            head: whether the model's output is needed; it may be None where it is not.
            copied: go on from each section with a copy of its output: what overwrites that leaves the IR intact.

        Returns:
            The section outputs, and the model's output.
        """

    @property
    def entered(self) -> Tensor:
        """What section 1 of a recorded model was given in the last `run`."""
        raise SplitError("a traced model keeps nothing of its runs: its stem(x) gives what section 1 is given")

    def release(self) -> None:
        """Let go of what the last `run` kept for the sections, where it kept anything."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward, untouched."""
        return self.model(*args, **kwargs)

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
        # Parts may hold generated code, which neither pickle nor deepcopy can carry: they are made anew from the copied
        # model.
        return {key: value for key, value in self.__dict__.items() if key != "_parts"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._parts = self._build()
        for part in self._parts:
            part.training = self.training and part.name not in self._frozen


def expect_split(**models: Any) -> None:
    """Raises TypeError where one of the models, which are called so, is not split."""
    for role, model in models.items():
        expect(role, model, SplitModel, "a split model", f"use split({role}, ...)")
