"""The loader "torch": batches are read, augmented and moved to the device as they are needed."""

from __future__ import annotations

from collections.abc import Iterator

from lit_fast.data.base import Batch, TrainingPlan
from lit_fast.data.loaders.base import Loader


class StreamingLoader(Loader):
    """Streams the batches of `Data` itself: needs no memory beyond a batch or two, and works for every dataset."""

    name = "torch"

    def _train(self, plan: TrainingPlan) -> Iterator[Batch]:
        return self._laid_out(self.data.planned_batches(plan, self.device))
