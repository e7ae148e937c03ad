"""Find the modules that write into tensors which LIT keeps: the images and the IRs, in a dry run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lit_fast.sections.model import SplitModel


class Overwrites:
    """Context in which every module call is preceded and followed by a look at the watched tensors' version counters.

    torch counts the in-place writes to a tensor and its views; a count that grew names the module that just ran. The
    hooks are gone when the context ends: they are no part of training.

    Args:
        models: role -> split model.
    """

    def __init__(self, models: Mapping[str, SplitModel]) -> None:
        self.models = models
        self.problems: list[str] = []
        self._watched: list[tuple[Tensor, str]] = []
        self._versions: list[int] = []
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> Overwrites:
        for role, model in self.models.items():
            for name, module in model.model.named_modules():
                if name:
                    # What changed before the module ran was a statement of the forward that calls it.
                    before = f"a statement before {name!r} in the {role}'s forward"
                    self._hooks.append(module.register_forward_pre_hook(self._hook(before)))
                    self._hooks.append(module.register_forward_hook(self._hook(f"the {role}'s {name!r}")))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def watch(self, tensor: Tensor, label: str) -> None:
        """Report writes to ``tensor`` from now on."""
        self._watched.append((tensor, label))
        self._versions.append(tensor._version)

    def after(self, role: str) -> Callable[[str, Tensor], None]:
        """For ``walk``: check after each part, and watch each section's output."""

        def callback(part: str, out: Tensor) -> None:
            self.check(f"the {role}'s {part}")
            if part.startswith("section"):
                self.watch(out, f"the {role}'s IR {part.removeprefix('section')}")

        return callback

    def check(self, writer: str) -> None:
        """Note every watched tensor that changed since the last check as written to by ``writer``."""
        for i, (tensor, label) in enumerate(self._watched):
            if tensor._version != self._versions[i]:
                self._versions[i] = tensor._version
                self.problems.append(
                    f"{writer} overwrites {label} in place, which is still needed; make it out of place (inplace=False)"
                )

    def _hook(self, writer: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self.check(writer)

        return hook
