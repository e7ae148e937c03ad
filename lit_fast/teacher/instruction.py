"""The instructions of csrc/teacher/program.cpp, and what is done to lists of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from lit_fast.errors import NotLowerable

__all__ = ["FUSED", "NONE", "OVERWRITE", "RELU", "Instruction", "fold", "overwrite_residuals"]

NONE = -1
# Of a convolution's numbers; numbers[0] also of the other ops that can end in a ReLU (program.cpp).
RELU, OVERWRITE, FUSED = 0, 1, 4


@dataclass
class Instruction:
    """One step of a program; `numbers` and `floats` as csrc/teacher/program.cpp documents them for each op."""

    op: str
    input: int
    output: int
    other: int = NONE
    numbers: list[int] = field(default_factory=list)
    floats: list[float] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)

    def unfused(self) -> Instruction:
        """The same with bias, residual and ReLU of a convolution as calls of their own."""
        numbers = list(self.numbers)
        if self.op == "convolution":
            numbers[FUSED] = 0
        return replace(self, numbers=numbers)

    def spec(self) -> tuple[str, list[int], list[int], list[float], list[Tensor]]:
        """As the C++ class takes it."""
        return self.op, [self.input, self.other, self.output], self.numbers, self.floats, self.tensors


def fold(convolution: Instruction, scale: Tensor, shift: Tensor) -> None:
    """BatchNorm's scale and shift, float64, into the convolution before it."""
    weight = convolution.tensors[0]
    out = 1 if convolution.numbers[2] else 0  # transposed: [in, out / groups, k...]
    if out and convolution.numbers[3] != 1:
        raise NotLowerable("a BatchNorm behind a grouped transposed convolution")
    shape = [1] * weight.dim()
    shape[out] = -1
    if len(convolution.tensors) > 1:
        shift = shift + convolution.tensors[1].double() * scale
    convolution.tensors = [(weight.double() * scale.view(shape)).to(weight.dtype), shift.to(weight.dtype)]


def overwrite_residuals(steps: Sequence[Instruction], output: int) -> None:
    """Let a convolution write over its residual where nothing reads that later: neither the input of the part, which
    may be an IR that is kept, nor its result."""
    last_read = {0: len(steps), output: len(steps)}
    for number, step in enumerate(steps):
        for register in (step.input, step.other):
            last_read[register] = max(number, last_read.get(register, 0))
    views = {step.output for step in steps if step.op in ("slice", "flatten")}
    for number, step in enumerate(steps):
        if step.op == "convolution" and step.other != NONE:
            fits = last_read[step.other] == number and step.other not in views
            step.numbers[OVERWRITE] = int(fits and step.input != step.other)
