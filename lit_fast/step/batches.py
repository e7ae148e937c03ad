"""Where the batch of a step comes from: tensors that the caller gives, or a dataset that lies on the device.

A captured step reads its batch at fixed addresses. Given tensors are copied there before each replay; rows of a
resident dataset are gathered there by the graph itself, which also moves on to the next ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Batch", "FedBatch", "Feed", "GivenBatch", "laid_out"]


def laid_out(images: Tensor, channels_last: bool) -> Tensor:
    """The images, in ``channels_last`` if asked for and they are any [B, C, H, W]."""
    return images.contiguous(memory_format=torch.channels_last) if channels_last and images.dim() == 4 else images


class Feed(Protocol):
    """A dataset on the device that makes its own batches (`lit_fast.data.loaders.resident.Feed`)."""

    position: Tensor
    """int64 [], on the device: the row of the epoch that the next batch begins with."""

    def empty(self, rows: int, *, channels_last: bool = False) -> tuple[Tensor, Tensor]:
        """Uninitialised inputs and labels of a batch."""

    def write(self, inputs: Tensor, labels: Tensor) -> None:
        """Fill them with the rows from `position` on, without waiting for the device."""


class Batch(Protocol):
    """The batch of a step."""

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for batches that one graph can read."""

    @property
    def changed(self) -> Sequence[Tensor]:
        """Tensors that `read` changes beside the batch's own."""

    def read(self) -> tuple[Tensor, Tensor | None]:
        """Images and labels."""

    def static(self) -> Batch:
        """The same batch in tensors of its own, in the student's layout: what a graph reads."""

    def rewind(self) -> None:
        """Make the next `read` give what the last one gave."""

    def copy_from(self, other: Any) -> None:
        """Make `read` give another batch with the same key, in the same tensors."""


class GivenBatch:
    """Images [B, ...] and labels [B] of the caller's, or no labels."""

    changed = ()

    def __init__(self, images: Tensor, labels: Tensor | None, channels_last: bool) -> None:
        self.images, self.labels, self.channels_last = images, labels, channels_last

    def __str__(self) -> str:
        return f"{tuple(self.images.shape)} {str(self.images.dtype).removeprefix('torch.')}"

    @property
    def key(self) -> tuple[Any, ...]:
        labels = self.labels
        return self.images.shape, self.images.dtype, None if labels is None else (labels.shape, labels.dtype)

    def read(self) -> tuple[Tensor, Tensor | None]:
        return self.images, self.labels

    def static(self) -> GivenBatch:
        images = laid_out(torch.empty_like(self.images), self.channels_last).copy_(self.images)
        return GivenBatch(images, None if self.labels is None else self.labels.clone(), self.channels_last)

    def rewind(self) -> None:
        """Nothing: it is always the same batch."""

    def copy_from(self, other: GivenBatch) -> None:
        self.images.copy_(other.images, non_blocking=True)
        if self.labels is not None and other.labels is not None:
            self.labels.copy_(other.labels, non_blocking=True)


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
        images, labels = self._into or self.feed.empty(self.rows, channels_last=self.channels_last)
        self.feed.write(images, labels)
        self.feed.position.add_(self.rows)
        return images, labels

    def static(self) -> FedBatch:
        into = self.feed.empty(self.rows, channels_last=self.channels_last)
        return FedBatch(self.feed, self.rows, self.channels_last, into)

    def rewind(self) -> None:
        self.feed.position.sub_(self.rows)

    def copy_from(self, other: FedBatch) -> None:
        """Nothing: the position on the device says which rows come next."""
