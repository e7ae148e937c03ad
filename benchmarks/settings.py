"""What is measured: shapes, precisions and sizes, most important first, so that a time limit cuts the least."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16

# The sections of ResNet-110 -> 20 on CIFAR, without the batch.
CIFAR = ((16, 32, 32), (32, 16, 16), (64, 8, 8))
TINY = ((4, 4, 4), (8, 2, 2), (8, 1, 1))

MODES = ("default", "max-autotune-no-cudagraphs")
CUDA_MODES = ("reduce-overhead", *MODES)


@dataclass(frozen=True)
class Setting:
    """One loss at one size.

    Attributes:
        family: what the shapes are: "cifar", "cifar-large", "kd-1000", "kd-50257" or "tiny".
        batch: B.
        dtype: of the student's and the teacher's IRs and logits; half types are what autocast leaves behind.
        sections: shapes of the IRs without B; empty for the KD loss alone.
        classes: C; the logits are [B, C].
        modes: of torch.compile; the fastest counts.
    """

    family: str
    batch: int
    dtype: torch.dtype
    sections: tuple[tuple[int, ...], ...] = CIFAR
    classes: int = 10
    modes: tuple[str, ...] = MODES

    @property
    def name(self) -> str:
        return f"{self.family}-b{self.batch}-{self.precision}"

    @property
    def precision(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def beta(self) -> float:
        return 0.75 if self.sections else 1.0

    @property
    def elements(self) -> int:
        """Of the student's IRs and logits together."""
        return self.batch * (sum(map(prod, self.sections)) + self.classes)

    @property
    def bytes_per_element(self) -> int:
        """The least that must move: read student, read teacher, write gradient."""
        return 3 * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        return self.bytes_per_element * self.elements


def settings(device: str, *, tiny: bool = False) -> list[Setting]:
    """The settings for a device, in the order in which they are measured; `tiny` ones only try the code."""
    if tiny:
        small = Setting("tiny", 4, F32, TINY, modes=("default",))
        return [small, replace(small, dtype=BF16), Setting("tiny-kd", 4, F32, (), classes=100, modes=())]
    return _cuda() if device == "cuda" else _cpu()


def _cpu() -> list[Setting]:
    cifar = [Setting("cifar", batch, dtype) for batch in (32, 128, 512, 1024) for dtype in (F32, BF16)]
    return [*cifar, *(Setting("kd-1000", 256, dtype, (), 1000) for dtype in (F32, BF16)), _language_model(32, F32)]


def _cuda() -> list[Setting]:
    bars = [Setting("cifar", batch, dtype, modes=CUDA_MODES) for batch in (32, 1024) for dtype in (F16, BF16)]
    # The smallest section has 67 MB, the largest 268 MB.
    large = [Setting("cifar-large", 4096 * 4 // dtype.itemsize, dtype, modes=MODES[:1]) for dtype in (F32, F16, BF16)]
    fewer = CUDA_MODES[:2]  # compiling is what takes long
    single = [Setting("cifar", batch, F32, modes=fewer) for batch in (32, 1024)]
    between = [Setting("cifar", batch, dtype, modes=fewer) for batch in (128, 512) for dtype in (F16, BF16, F32)]
    kd = [Setting("kd-1000", 1024, dtype, (), 1000, fewer) for dtype in (F16, F32)]
    language = [replace(_language_model(1024, dtype), modes=fewer) for dtype in (BF16, F32)]
    return [bars[0], *large[:2], *bars[1:], large[2], *single, *kd, *language, *between]


def _language_model(tokens: int, dtype: torch.dtype) -> Setting:
    return Setting("kd-50257", tokens, dtype, (), 50257)
