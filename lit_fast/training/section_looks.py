"""A look at the student's sections now and then in the course of a run, always on the same images."""

from __future__ import annotations

from typing import Any

import torch

from lit_fast.data import Data
from lit_fast.step.diagnostics import section_diagnostics
from lit_fast.step.lit_step import LITStep

__all__ = ["SectionLooks"]


class SectionLooks:
    """`section_diagnostics` on the first batch of the validation split.

    Args:
        data: the dataset.
        batch_size: of the training; of fewer images if the split has fewer.
        device: of the networks.
        every: steps between two looks, beside those after each epoch.
    """

    def __init__(self, data: Data, batch_size: int, device: torch.device, every: int) -> None:
        self._every, self._device = every, device
        self._images, self._labels = next(data.eval_batches("val", batch_size=batch_size, device=device))

    def due(self, total_steps: int) -> bool:
        return total_steps % self._every == 0

    def look(self, step: LITStep) -> dict[str, Any]:
        """The fields of `SectionDiagnostics`, as they are logged."""
        return section_diagnostics(step, self._images, self._labels)._asdict()
