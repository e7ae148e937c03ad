"""The teacher one batch ahead within a captured step: it makes the next batch's targets beside what this one's train.

A replay finds the teacher's outputs for its batch where the replay before has left them, and leaves those for the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from lit_fast.streams import SideStreams
from lit_fast.teacher.frozen import FrozenTeacher, Outputs

__all__ = ["Following", "TeacherAhead"]


class Following(Protocol):
    """What knows the next batch."""

    position: Tensor
    """int64 [], on the device: where the next batch begins."""

    def write_ahead(self, inputs: Tensor, labels: Tensor) -> None:
        """Fill them with the rows from `position` on, or with the last ones where fewer are left."""


class TeacherAhead:
    """The teacher's outputs for the batch at hand, and what makes those of the next.

    Args:
        frozen: the teacher.
        feed: what the batches come from.
        batch: uninitialised inputs and labels of a batch, which are written to.
        streams: one, that it runs on beside the step; None: the caller's.
    """

    def __init__(
        self, frozen: FrozenTeacher, feed: Following, batch: tuple[Tensor, Tensor], streams: SideStreams | None
    ) -> None:
        self._frozen, self._feed, self._batch, self._streams = frozen, feed, batch, streams
        self._made: Outputs | None = None
        self._held: Outputs | None = None  # always in the same memory
        self._fits: int | None = None

    def prepare(self) -> None:
        """Have the outputs for the batch that begins at the feed's position, unless the last step has left them.

        They are its if nobody has written to the position since; a replay does so behind torch's back.
        """
        if self._fits != self._feed.position._version:
            self._make()
            self._keep()

    def forget(self) -> None:
        """What it has is for no batch that will come."""
        self._fits = None

    def left(self) -> None:
        """A step has moved the position on by a batch, and left the outputs for that."""
        self._fits = self._feed.position._version

    @contextmanager
    def beside(self, inputs: Tensor) -> Iterator[None]:
        """Around the training on a batch, behind whose rows the feed's position is by now.

        Inside `FrozenTeacher.prefetched` gives its outputs for these inputs, and it runs on the next batch.
        """
        assert self._held is not None
        with self._streams.beside(0) if self._streams is not None else nullcontext():
            self._make()
        self._frozen.announce(inputs, self._held)
        try:
            yield
        finally:  # also after an error: the caller goes on with what it reads
            if self._streams is not None:
                self._streams.join()
        self._keep()

    @torch.no_grad()
    def _make(self) -> None:
        inputs, labels = self._batch
        self._feed.write_ahead(inputs, labels)
        self._made = self._frozen.run(inputs)

    def _keep(self) -> None:
        """Copy what was made to where the next step reads it."""
        assert self._made is not None
        irs, logits = self._made
        if self._held is None:
            held_logits = None if logits is None else torch.empty_like(logits)
            self._held = [torch.empty_like(ir) for ir in irs], held_logits
        kept, kept_logits = self._held
        torch._foreach_copy_(kept, irs)
        if kept_logits is not None and logits is not None:
            kept_logits.copy_(logits)
        self._made = None
