"""`Loader`: where the batches of a run come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

from lit_fast.data.base import Batch, Data, TrainingPlan
from lit_fast.sections.inputs import replaced

L = TypeVar("L", bound="Loader")


class Loader(ABC):
    """Makes the batches of one dataset on one device.

    Every loader gives the batches of `Data.train_batches` and `Data.eval_batches`: the same images in the same order
    with the same crops and flips, for any epoch from any step, without state of its own that a checkpoint would need.

    Args:
        data: the dataset.
        device: where the batches lie.
        channels_last: images come in this memory format; it changes no value. Nothing for texts.
        reason: see the attribute.

    Attributes:
        name: one of `lit_fast.data.loaders.NAMES`, without "auto".
        reason: why this loader is used, in one line for the user.
    """

    name: str

    def __init__(self, data: Data, *, device: torch.device | str, channels_last: bool, reason: str) -> None:
        self.data = data
        self.device = torch.device(device)
        self.channels_last = channels_last and not data.is_text
        self._layout = torch.channels_last if self.channels_last else torch.contiguous_format
        self.reason = reason

    def train_batches(
        self,
        epoch: int,
        *,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        augment: bool = True,
        shard: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """Batches of one training epoch; arguments and errors as `Data.train_batches`."""
        return self._train(
            self.data.training_plan(
                epoch, batch_size=batch_size, seed=seed, start_step=start_step, augment=augment, shard=shard
            )
        )

    @abstractmethod
    def _train(self, plan: TrainingPlan) -> Iterator[Batch]:
        """The batches that are left in a plan."""

    def eval_batches(self, split: str, *, batch_size: int) -> Iterator[Batch]:
        """All of a split in its fixed order; arguments and errors as `Data.eval_batches`."""
        return self._laid_out(self.data.eval_batches(split, batch_size=batch_size, device=self.device))

    def _laid_out(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        return ((replaced(inputs, self._in_layout), labels) for inputs, labels in batches)

    def _in_layout(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or (self.channels_last and value.dim() != 4):
            return value
        return value.contiguous(memory_format=self._layout)

    def close(self) -> None:  # noqa: B027  # most loaders hold nothing that must be let go
        """Let go of memory, threads and pipelines. The loader cannot be used afterwards; a second call does nothing."""

    def __enter__(self: L) -> L:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
