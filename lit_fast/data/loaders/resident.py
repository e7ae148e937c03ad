"""The loader "resident": the whole dataset lies on the device as bytes, and one op makes each batch there.

At the beginning of an epoch its tables (order, crops, flips) go to the device in one piece; after that the host does
nothing per step but call the op. Tables, position and images keep their addresses, so the call can be part of a CUDA
graph whose replays go on through the epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_fast.data.base import SPLITS, Batch, Data, Split, TensorSplit, TrainingPlan
from lit_fast.data.gather import MOVES, gather_for, levels
from lit_fast.data.loaders.base import Loader
from lit_fast.data.loaders.memory import free_bytes

_AT_ONCE = 64 << 20  # bytes that are read before they are moved


class ResidentLoader(Loader):
    """Keeps all three splits on the device. One training epoch at a time: beginning another ends the first.

    Raises:
        DataError: a file that cannot be decoded.
    """

    name = "resident"

    def __init__(self, data: Data, *, device: torch.device | str, channels_last: bool, reason: str) -> None:
        super().__init__(data, device=device, channels_last=channels_last, reason=reason)
        began = time.perf_counter()
        self._stored = {name: _stored(data.split(name), data.shape, self.device) for name in SPLITS}
        size = f"{shown(_size(data))} on {self.device}"
        if not all(isinstance(data.split(name), TensorSplit) for name in SPLITS):
            size += f", read in {time.perf_counter() - began:.1f} s"
        self.reason = f"{size}; {reason}"
        self.training = Feed(data, self._stored["train"], augmented=True)
        self._begun: TrainingPlan | None = None

    def begin(self, epoch: int, *, batch_size: int, seed: int, start_step: int = 0, augment: bool = True) -> list[int]:
        """Begin an epoch for `LITStep.train_on`, which reads `training` batch by batch; arguments as for
        `train_batches`.

        Returns:
            the rows of each batch that is left.
        """
        plan = self.data.training_plan(epoch, batch_size=batch_size, seed=seed, start_step=start_step, augment=augment)
        self._begin(plan)
        self.training.position.fill_(start_step * batch_size)
        return [place.stop - place.start for place in plan.left]

    def _begin(self, plan: TrainingPlan) -> None:
        self.training.begin(plan)
        self._begun = plan

    def _train(self, plan: TrainingPlan) -> Iterator[Batch]:
        self._begin(plan)
        return self._batches(plan)

    def _batches(self, plan: TrainingPlan) -> Iterator[Batch]:
        for step, place in enumerate(plan.left, plan.start_step):
            if plan is not self._begun:
                raise RuntimeError("resident loader: another epoch was begun; go through one before the next")
            start = step * plan.batch_size
            self.training.position.fill_(start)
            yield self._batch(self.training, place.stop - place.start, place.start - start)

    def eval_batches(self, split: str, *, batch_size: int) -> Iterator[Batch]:
        places = self.data.eval_places(split, batch_size=batch_size)
        return self._evaluate(Feed(self.data, self._stored[split], augmented=False), places)

    def _evaluate(self, feed: Feed, places: list[slice]) -> Iterator[Batch]:
        for place in places:
            feed.position.fill_(place.start)
            yield self._batch(feed, place.stop - place.start, 0)

    def _batch(self, feed: Feed, count: int, first: int) -> Batch:
        inputs, labels = feed.empty(count, channels_last=self.channels_last)
        feed.write(inputs, labels, first)
        return inputs, labels

    def close(self) -> None:
        self._stored.clear()
        self.__dict__.pop("training", None)


@dataclass(frozen=True)
class Stored:
    """A split on the device: the rows `rows` of `images` in order, and their labels. Splits may share images."""

    images: Tensor  # uint8 [M, C, H, W] or [M, L], contiguous
    rows: Tensor  # int64 [N], on the host
    labels: Tensor  # int64 [N] or attributes float32 [N, classes], on the host


class Feed:
    """Makes batches of a stored split in the order of a plan. All its tensors keep their addresses.

    Args:
        data: the dataset.
        stored: its split.
        augmented: the plans will have crops and flips, if the dataset has any; else the split's own order is the plan.

    Attributes:
        position: int64 [], on the device: row of the plan that the next (global) batch starts with. Set it, or let the
            device add to it, before each `write`.
    """

    def __init__(self, data: Data, stored: Stored, *, augmented: bool) -> None:
        device = stored.images.device
        self._data, self._stored = data, stored
        # The op carries one number per row: the class, or where its attributes are.
        self._attributes = stored.labels.to(device) if data.has_attributes else None
        self._numbers = torch.arange(len(stored.rows)) if data.has_attributes else stored.labels
        self._pad = data.augmentation.pad if augmented else 0
        moves = augmented and (data.augmentation.pad > 0 or data.augmentation.flip)
        self._plan = torch.empty((MOVES if moves else 2, len(stored.rows)), dtype=torch.int64, device=device)
        self.position = torch.zeros((), dtype=torch.int64, device=device)
        self._levels: dict[torch.dtype, Tensor | None] = {}
        self._gather = gather_for(device)
        if not augmented:
            self._plan.copy_(torch.stack([stored.rows, self._numbers]))

    def begin(self, plan: TrainingPlan) -> None:
        """Take the tables of another epoch, in one copy to the device."""
        tables, stored = plan.tables, self._stored
        rows = [stored.rows[tables.order], self._numbers[tables.order]]
        if len(self._plan) == MOVES:
            centred = torch.full_like(tables.order, self._pad)
            rows += [centred if table is None else table for table in (tables.rows, tables.columns)]
            rows.append(torch.zeros_like(centred) if tables.flips is None else tables.flips.to(torch.int64))
        self._plan.copy_(torch.stack(rows))

    def empty(self, rows: int, *, channels_last: bool = False) -> Batch:
        """Uninitialised tensors for a batch: inputs float32 [B, C, H, W] or int64 [B, L], labels as the dataset's."""
        device, text = self.position.device, self._data.is_text
        layout = torch.channels_last if channels_last and not text else torch.contiguous_format
        inputs = torch.empty(
            (rows, *self._data.shape),
            dtype=torch.int64 if text else torch.float32,
            device=device,
            memory_format=layout,
        )
        like = self._stored.labels
        return inputs, torch.empty((rows, *like.shape[1:]), dtype=like.dtype, device=device)

    def write(self, inputs: Tensor, labels: Tensor, first: int = 0) -> None:
        """Fill a batch with the rows that begin `first` after `position`; no host sync.

        Args:
            inputs: float32, float16 or bfloat16 [B, C, H, W], contiguous or channels_last; tokens: int64 [B, L].
            labels: int64 [B], or attributes float32 [B, classes].
            first: rows of the global batch that other processes take before this one.

        Raises:
            ValueError: tensors that do not fit.
            IndexError: rows beyond the end, on the CPU (elsewhere see `lit_fast.data.gather`).
        """
        self._write(self.position, inputs, labels, first)

    def _write(self, at: Tensor, inputs: Tensor, labels: Tensor, first: int) -> None:
        if inputs.dtype not in self._levels:
            known = None if self._data.is_text else levels(self._data.mean, self._data.std, inputs.dtype)
            self._levels[inputs.dtype] = None if known is None else known.to(inputs.device)
        images, table = self._stored.images, self._levels[inputs.dtype]
        if self._attributes is None:
            self._gather(at, self._plan, images, table, self._pad, first, inputs, labels)
            return
        numbers = torch.empty(len(labels), dtype=torch.int64, device=labels.device)
        self._gather(at, self._plan, images, table, self._pad, first, inputs, numbers)
        torch.index_select(self._attributes, 0, numbers, out=labels)

    def write_ahead(self, inputs: Tensor, labels: Tensor) -> None:
        """The same, of the plan's last rows where fewer are left behind `position`."""
        self._write(self.position.clamp(max=self._plan.shape[1] - len(labels)), inputs, labels, 0)


def misfit(data: Data, device: torch.device, processes: int = 1) -> str | None:
    """Why the dataset should not be made resident on a device, with the sizes; None where it fits.

    On a CPU each of `processes` gets its part of the memory; GPUs are not shared.
    """
    needed = sum(_new_bytes(data.split(name), data, device) for name in SPLITS) + _plan_bytes(data)
    if device.type == "cpu":
        needed *= processes
    free = free_bytes(device)
    if free is None or 2 * needed <= free:  # the other half is for networks, their steps and caches
        return None
    copies = f" for {processes} processes" if device.type == "cpu" and processes > 1 else ""
    return f"{shown(needed)}{copies} do not fit: a dataset may take half of the {shown(free)} that are free on {device}"


def shown(count: int) -> str:
    """A number of bytes for people."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}" if count < 100 * unit else f"{count / unit:,.0f} {name}"
    return f"{count / 1e3:.0f} kB"


def _size(data: Data) -> int:
    """Bytes of the three splits and the plan of an epoch."""
    return sum(len(data.split(name)) for name in SPLITS) * math.prod(data.shape) + _plan_bytes(data)


def _plan_bytes(data: Data) -> int:
    return len(data.train) * MOVES * 8


def _new_bytes(split: Split, data: Data, device: torch.device) -> int:
    """Bytes that a split takes on the device beyond those it takes already."""
    return 0 if _lies_on(split, device) is not None else len(split) * math.prod(data.shape)


def _lies_on(split: Split, device: torch.device) -> TensorSplit | None:
    """The split, if it can be used where it is."""
    if not isinstance(split, TensorSplit) or type(split).fetch is not TensorSplit.fetch:
        return None
    return split if split.images.device == device and split.images.is_contiguous() else None


def _stored(split: Split, shape: tuple[int, ...], device: torch.device) -> Stored:
    there = _lies_on(split, device)
    if there is not None:
        return Stored(there.images, there.indices, there.labels)
    images = torch.empty((len(split), *shape), dtype=torch.uint8, device=device)
    every = torch.arange(len(split))
    for rows in torch.split(every, max(1, _AT_ONCE // math.prod(shape))) if len(split) else ():
        images[rows[0] : rows[-1] + 1].copy_(split.read(rows, shape))
    return Stored(images, every, split.labels)
