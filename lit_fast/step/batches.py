"""Where the batch of a step comes from: tensors that the caller gives, or a dataset that lies on the device.

A captured step reads its batch at fixed addresses. Given tensors are copied there before each replay; rows of a
resident dataset are gathered there by the graph itself, which also moves on to the next ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lit_fast.sections.inputs import Inputs, replaced, tensors_of

__all__ = ["Batch", "FedBatch", "Feed", "GivenBatch", "laid_out", "signature"]


def laid_out(inputs: Inputs, channels_last: bool) -> Inputs:
    """The inputs, images [B, C, H, W] among them in ``channels_last`` if asked for."""
    return replaced(inputs, _channels_last) if channels_last else inputs


def _channels_last(value: Any) -> Any:
    images = isinstance(value, Tensor) and value.dim() == 4
    return value.contiguous(memory_format=torch.channels_last) if images else value


class Feed(Protocol):
    """A dataset on the device that makes its own batches (`lit_fast.data.loaders.resident.Feed`)."""

    position: Tensor
    """int64 [], on the device: the row of the epoch that the next batch begins with."""

    def empty(self, rows: int, *, channels_last: bool = False) -> tuple[Tensor, Tensor]:
        """Uninitialised inputs and labels of a batch."""

    def write(self, inputs: Tensor, labels: Tensor) -> None:
        """Fill them with the rows from `position` on, without waiting for the device."""

    def write_ahead(self, inputs: Tensor, labels: Tensor) -> None:
        """The same, of the last rows where fewer are left; for ``teacher_ahead`` alone."""


class Batch(Protocol):
    """The batch of a step."""

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for batches that one graph can read."""

    @property
    def changed(self) -> Sequence[Tensor]:
        """Tensors that `read` changes beside the batch's own."""

    def read(self) -> tuple[Inputs, Tensor | None]:
        """Inputs and labels."""

    def static(self) -> Batch:
        """The same batch in tensors of its own, in the student's layout: what a graph reads."""

    def rewind(self) -> None:
        """Make the next `read` give what the last one gave."""

    def copy_from(self, other: Any) -> None:
        """Make `read` give another batch with the same key, in the same tensors."""


class GivenBatch:
    """Inputs, [B, ...] each, and labels of the caller's, or no labels."""

    changed = ()

    def __init__(self, inputs: Inputs, labels: Tensor | None, channels_last: bool) -> None:
        self.inputs, self.labels, self.channels_last = inputs, labels, channels_last

    def __str__(self) -> str:
        shapes = (f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors_of(self.inputs))
        return ", ".join(shapes)

    @property
    def key(self) -> tuple[Any, ...]:
        return signature(self.inputs), signature(self.labels)

    def read(self) -> tuple[Inputs, Tensor | None]:
        return self.inputs, self.labels

    def static(self) -> GivenBatch:
        inputs = replaced(self.inputs, lambda value: _copy(value, self.channels_last))
        return GivenBatch(inputs, None if self.labels is None else self.labels.clone(), self.channels_last)

    def rewind(self) -> None:
        """Nothing: it is always the same batch."""

    def copy_from(self, other: GivenBatch) -> None:
        for mine, given in zip(tensors_of(self.inputs), tensors_of(other.inputs), strict=True):
            mine.copy_(given, non_blocking=True)
        if self.labels is not None and other.labels is not None:
            self.labels.copy_(other.labels, non_blocking=True)


def signature(value: Any) -> Any:
    """Equal for inputs that differ in the numbers of their tensors alone."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if isinstance(value, Mapping):
        return tuple((key, signature(item)) for key, item in value.items())
    if isinstance(value, (tuple, list)):
        return tuple(map(signature, value))
    return repr(value)


def _copy(value: Any, channels_last: bool) -> Any:
    if not isinstance(value, Tensor):
        return value
    return laid_out(torch.empty_like(value), channels_last).copy_(value)


class FedBatch:
    """The next `rows` rows of a feed; reading them moves the feed on."""

    def __init__(self, feed: Feed, rows: int, channels_last: bool, into: tuple[Tensor, Tensor] | None = None) -> None:
        self.feed, self.rows, self.channels_last, self._into = feed, rows, channels_last, into

    def __str__(self) -> str:
        return f"{self.rows} rows of the resident dataset"

    @property
    def key(self) -> tuple[Any, ...]:
        return id(self.feed), self.rows  # a graph keeps its feed, so that its id is not used again

    @property
    def changed(self) -> Sequence[Tensor]:
        return (self.feed.position,)

    def read(self) -> tuple[Tensor, Tensor]:
        images, labels = self._into or self.empty()
        self.feed.write(images, labels)
        self.feed.position.add_(self.rows)
        return images, labels

    def static(self) -> FedBatch:
        return FedBatch(self.feed, self.rows, self.channels_last, self.empty())

    def empty(self) -> tuple[Tensor, Tensor]:
        """Uninitialised inputs and labels."""
        return self.feed.empty(self.rows, channels_last=self.channels_last)

    def rewind(self) -> None:
        self.feed.position.sub_(self.rows)

    def copy_from(self, other: FedBatch) -> None:
        """Nothing: the position on the device says which rows come next."""
