"""Which operations a part does, written down while it runs: what a trace would hold, at a fraction of its time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_fast.loss.targets import logits_of
from lit_fast.sections.inputs import tensors_of

__all__ = ["Watched", "watch"]


class Watched(NamedTuple):
    """A part's output, and what it did.

    Attributes:
        output: of the part.
        operations: equal for two inputs that a part does the same to: the same operations in the same order on the same
            tensors, with the same numbers. Sizes count where they are numbers that an operation is given, or decide
            whether two of its tensors have one shape. ``None`` where the part does not run while it is watched.
        shapes: of all that it computed.
    """

    output: Tensor
    operations: str | None
    shapes: list[torch.Size]


def watch(part: nn.Module, x: Tensor) -> Watched:
    """Run ``part`` on a copy of ``x``, and write down what it does."""
    watcher = _Watcher(part, x.clone())
    try:
        with watcher:
            output = logits_of(part(watcher.input))
    except Exception:  # the part's own errors come again
        return Watched(logits_of(part(x.clone())), None, [])
    return Watched(output, watcher.described(output), watcher.shapes)


class _Watcher(TorchDispatchMode):
    """Names every tensor by where it comes from: the input, a name in the part, the operation that made it, or what is
    in it."""

    def __init__(self, part: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.input = x
        self.shapes: list[torch.Size] = []
        self._digest = hashlib.blake2b()
        self._names: dict[int, str] = {}
        self._named: list[Tensor] = []  # kept, so that no other tensor gets their ids
        for name, tensor in [*part.named_parameters(), *part.named_buffers(), ("input", self.input)]:
            self._name(tensor, name)

    def __torch_dispatch__(
        self, operation: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = [args, kwargs or {}]
        written = self._written(given)
        output = operation(*args, **(kwargs or {}))
        made = list(tensors_of(output))
        for tensor in made:
            self._name(tensor, f"tensor {len(self._named)}")
        self.shapes += [tensor.shape for tensor in made]
        self._digest.update(f"{operation} {written} {_kinds([*tensors_of(given), *made])}\n".encode())
        return output

    def described(self, output: Any) -> str:
        """All that was done to come to ``output``, in a few letters."""
        self._digest.update(self._written(output).encode())
        return self._digest.hexdigest()

    def _name(self, tensor: Tensor, name: str) -> None:
        self._names[id(tensor)] = name
        self._named.append(tensor)

    def _written(self, value: Any) -> str:
        if isinstance(value, Tensor):
            if id(value) not in self._names:
                self._name(value, _contents(value))
            return self._names[id(value)]
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(self._written, value))}]"
        if isinstance(value, Mapping):
            return self._written([*value.items()])
        return repr(value)


def _kinds(tensors: list[Tensor]) -> list[tuple[Any, ...]]:
    """Of the tensors of one operation: dimensions, dtypes, rows, and which of them have one shape."""
    shapes = [tensor.shape for tensor in tensors]
    return [(t.dim(), t.dtype, t.shape[:1], shapes.index(t.shape)) for t in tensors]


def _contents(tensor: Tensor) -> str:
    """Of a tensor that the part has from elsewhere."""
    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return f"{tuple(tensor.shape)} {hashlib.blake2b(values.data).hexdigest()}"
