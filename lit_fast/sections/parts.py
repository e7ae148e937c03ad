"""The parts of a split model: views on the modules and tensors that belong to them, under their names in the model.

Whatever happens to the model (``.to``, ``load_state_dict``, a replaced submodule, a directly owned parameter such as a
class token), the parts follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

__all__ = ["Part", "part_names"]


def part_names(num_sections: int) -> tuple[str, ...]:
    """("stem", "section1", ..., "section<k>", "head")"""
    return ("stem", *(f"section{i + 1}" for i in range(num_sections)), "head")


class Part(nn.Module):
    """Stem, section or head of a split model: a view that runs one piece of the model's forward.

    Holds no tensors. ``parameters()``, ``named_parameters()``, ``modules()`` and ``state_dict()`` give the live
    model's, those of this part alone, under their names in the model; ``train()`` and ``eval()`` act on its modules.

    Args:
        name: "stem", "section<i>" or "head".
        model: the whole model.
        modules: names of its modules, in the order they run.
        tensors: names of the parameters and buffers that the piece uses beside theirs.
    """

    def __init__(self, name: str, model: nn.Module, modules: tuple[str, ...], tensors: tuple[str, ...]) -> None:
        super().__init__()
        self.name = name
        self._owner = (model,)  # in a tuple: not registered, the model is registered once, in SplitModel
        self._targets, self._tensors = modules, tensors
        self.training = model.training

    @property
    def owner(self) -> nn.Module:
        """The whole model."""
        return self._owner[0]

    def _direct(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Tensors that the part's code uses itself, such as a class token."""
        for name in self._tensors:
            path, _, last = name.rpartition(".")
            value = getattr(self.owner.get_submodule(path), last)
            if isinstance(value, Tensor):
                yield f"{prefix}.{name}" if prefix else name, value

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        for name in self._targets:
            yield name, self.owner.get_submodule(name)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, module in self.named_children():
            yield from module.named_modules(memo, f"{prefix}.{name}" if prefix else name, remove_duplicate)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        seen = set()
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            seen.add(id(parameter))
            yield name, parameter
        for name, tensor in self._direct(prefix):
            if isinstance(tensor, nn.Parameter) and id(tensor) not in seen:
                yield name, tensor

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        seen = set()
        for name, buffer in super().named_buffers(prefix, recurse, remove_duplicate):
            seen.add(id(buffer))
            yield name, buffer
        for name, tensor in self._direct(prefix):
            if not isinstance(tensor, nn.Parameter) and id(tensor) not in seen:
                yield name, tensor

    def state_dict(  # type: ignore[override]
        self, *, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """The part's entries of the model's state_dict."""
        whole = self.owner.state_dict(prefix=prefix, keep_vars=keep_vars)
        modules = tuple(f"{prefix}{name}." for name in self._targets)
        tensors = {f"{prefix}{name}" for name in self._tensors}
        own = {key: value for key, value in whole.items() if key.startswith(modules) or key in tensors}
        if destination is None:
            return own
        destination.update(own)
        return destination

    def extra_repr(self) -> str:
        return f"{self.name}: {', '.join(self._targets) or 'no modules'}"
