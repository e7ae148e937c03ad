"""Run models once to learn their shapes, and leave no trace: buffers, modes and random state stay as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lit_fast.sections import SplitModel


class PairError(ValueError):
    """A teacher and a student that do not fit together.

    Attributes:
        problems: every problem found, each naming the part, what was expected, what was got and how to mend it.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} problems" if len(problems) != 1 else "1 problem"
        lines = (f"  {i}. {problem}" for i, problem in enumerate(problems, 1))
        super().__init__("\n".join((f"teacher and student do not fit together ({count}):", *lines)))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)


@contextlib.contextmanager
def untouched(*models: nn.Module) -> Iterator[None]:
    """Within the context the models may run; afterwards buffers, modes and random state are what they were."""
    modules = [module for model in models for module in model.modules()]
    parts = [part for model in models if isinstance(model, SplitModel) for part in model.parts]
    modes = [(module, module.training) for module in (*modules, *parts)]
    # The models run on copies of their buffers: BatchNorm writes into running statistics without counting the write.
    buffers = [(module, name, buffer) for module in modules for name, buffer in module._buffers.items()]
    copies = {id(buffer): buffer.detach().clone() for _, _, buffer in buffers if buffer is not None}
    tensors = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
    devices = sorted({tensor.get_device() for tensor in tensors if tensor.is_cuda})
    try:
        for module, name, buffer in buffers:
            module._buffers[name] = None if buffer is None else copies[id(buffer)]
        with torch.random.fork_rng(devices):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, name, buffer in buffers:
            module._buffers[name] = buffer


@dataclass
class Walk:
    """One pass through a split model's parts: what each part got and gave, up to the first that failed."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def walk(
    model: SplitModel, role: str, x: Tensor, after: Callable[[str, Tensor], None] = lambda name, out: None
) -> Walk:
    """Run ``x`` through stem, sections and head, in the mode the model is in.

    Args:
        model: the split model.
        role: "teacher" or "student", for messages.
        x: the input, [B, ...].
        after: called with each part's name and output.
    """
    result = Walk()
    for name in model.part_names:
        result.inputs.append(x)
        try:
            out = model.part(name)(x)
        except Exception as error:  # whatever the user's modules raise
            result.problems.append(f"{name}: the {role} fails on its own input {describe(x)}: {first_line(error)}")
            return result
        if not isinstance(out, Tensor):
            mend = "let the model return the logits alone" if name == "head" else "cut where a single tensor passes"
            result.problems.append(f"{name}: the {role} gives {type(out).__name__}, expected one tensor; {mend}")
            return result
        after(name, out)
        result.outputs.append(out)
        x = out
    return result


def describe(tensor: Tensor) -> str:
    """``(B, 64, 16, 16) float32``"""
    return f"{batch_shape(tensor)} {dtype_name(tensor)}"


def batch_shape(tensor: Tensor) -> str:
    """``(B, 64, 16, 16)``"""
    return f"({', '.join(['B', *map(str, tensor.shape[1:])])})" if tensor.dim() else "()"


def dtype_name(tensor: Tensor) -> str:
    """``float32``"""
    return str(tensor.dtype).removeprefix("torch.")


def first_line(error: Exception) -> str:
    """The first line of an error's message, with its type."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".removesuffix(": ")
