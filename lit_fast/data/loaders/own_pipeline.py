"""A DALI pipeline of one's own as a loader: `PipelineLoader`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from lit_fast.data.base import Batch, Data, TrainingPlan
from lit_fast.data.loaders.base import Loader
from lit_fast.data.loaders.dali import missing
from lit_fast.data.tables import generator
from lit_fast.errors import DataError


@dataclass(frozen=True)
class EpochRequest:
    """What a pipeline for one epoch of training is asked for.

    Attributes:
        rows: images of a batch of this process: DALI's ``batch_size``.
        seed: of everything random in it, DALI's ``seed``: another in every epoch, the same in every process.
        rank, size: this process, of how many; it takes its own shard.
        device_id: the GPU; None: the pipeline runs on the CPU.
        num_threads: of the CPU.
    """

    rows: int
    seed: int
    rank: int
    size: int
    device_id: int | None
    num_threads: int


class PipelineLoader(Loader):
    """Training batches from a DALI pipeline of one's own; evaluation batches from the dataset.

    The pipeline is built anew for every epoch, and a run that is resumed in the middle of one lets it make the batches
    that were used already, and throws them away. So a resumed run is exact as far as the pipeline gives the same
    batches whenever it is built with the same `EpochRequest`: everything random in it must come from `seed`. State that
    it keeps elsewhere (Python functions, files that change, a reader that goes on where the last epoch ended) breaks
    that, and nothing here can notice it.

    Args:
        data: the dataset: shape, classes, evaluation, and how many images an epoch of training has.
        make: builds the pipeline. It has two outputs: images float32 [C, H, W] per sample, normalised (or tokens int64
            [L]), and one integer label per sample. It gives `rows` samples at a time, and at least as many as an epoch
            has; what is beyond is cut off.
        device, channels_last: as for every loader.

    Raises:
        DataError: DALI is not installed. For training batches with `augment=False`: what the pipeline does is its own
            affair. While batches are made: the pipeline ends too early, or its outputs do not fit.
    """

    name = "dali"

    def __init__(
        self,
        data: Data,
        make: Callable[[EpochRequest], Any],
        *,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
    ) -> None:
        super().__init__(data, device=device, channels_last=channels_last, reason="a pipeline of your own")
        why = missing()
        if why is not None:
            raise DataError(why)
        self._make = make

    def _train(self, plan: TrainingPlan) -> Iterator[Batch]:
        if not plan.augment:
            raise DataError("a pipeline of your own augments as it likes; set data.augment=true, or use another loader")
        counts = [place.stop - place.start for place in plan.places]
        drawn = torch.randint(0, 2**31 - 1, (), generator=generator("pipeline", plan.seed, plan.epoch))
        gpu = (self.device.index or 0) if self.device.type == "cuda" else None
        threads = len(os.sched_getaffinity(0))
        request = EpochRequest(max(counts), int(drawn), *plan.shard, gpu, threads)
        return self._batches(request, counts, plan.start_step)

    def _batches(self, request: EpochRequest, counts: list[int], start: int) -> Iterator[Batch]:
        pipeline = self._make(request)
        pipeline.build()
        for step, count in enumerate(counts):
            try:
                outputs = pipeline.run()
            except StopIteration:
                raise DataError(
                    f"your pipeline ended after {step} of {len(counts)} batches of {request.rows}; let its reader "
                    f"repeat its last samples (pad_last_batch=True), or check that it has {len(self.data.train)} images"
                ) from None
            if step >= start:
                yield self._checked(outputs, count, step)

    def _checked(self, outputs: Any, count: int, step: int) -> Batch:
        if len(outputs) != 2:
            raise DataError(f"your pipeline has {len(outputs)} outputs; expected two: images and labels")
        inputs, labels = (torch.from_dlpack(output.as_tensor()) for output in outputs)
        dtype = torch.int64 if self.data.is_text else torch.float32
        if inputs.shape[1:] != self.data.shape or inputs.dtype != dtype or len(inputs) < count:
            raise DataError(
                f"batch {step} of your pipeline: expected at least {count} x {self.data.shape} of {dtype}, got "
                f"{tuple(inputs.shape)} of {inputs.dtype}"
            )
        labels = labels.flatten()
        # Labels on a GPU are left to the loss, which finds bad ones without waiting for the device.
        outside = labels.device.type == "cpu" and bool(((labels < 0) | (labels >= self.data.num_classes)).any())
        if len(labels) != len(inputs) or outside:
            raise DataError(
                f"batch {step} of your pipeline: expected one label of 0..{self.data.num_classes - 1} per image, got "
                f"{len(labels)} for {len(inputs)} images: {labels[:8].tolist()} ..."
            )
        # Copies, for DALI uses its buffers again.
        images = inputs[:count].to(self.device).clone(memory_format=self._layout)
        return images, labels[:count].to(self.device, torch.int64, copy=True)
