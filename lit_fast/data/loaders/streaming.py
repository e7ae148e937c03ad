"""The loader "torch": batches are read, augmented and moved to the device as they are needed."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lit_fast.data.base import Batch
from lit_fast.data.loaders.base import Loader


class StreamingLoader(Loader):
    """Streams the batches of `Data` itself: needs no memory beyond a batch or two, and works for every dataset."""

    name = "torch"

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
        return self._laid_out(
            self.data.train_batches(
                epoch,
                batch_size=batch_size,
                seed=seed,
                start_step=start_step,
                augment=augment,
                device=self.device,
                shard=shard,
            )
        )

    def eval_batches(self, split: str, *, batch_size: int) -> Iterator[Batch]:
        return self._laid_out(self.data.eval_batches(split, batch_size=batch_size, device=self.device))

    def _laid_out(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        if not self.channels_last:
            return batches
        return ((images.contiguous(memory_format=torch.channels_last), labels) for images, labels in batches)
