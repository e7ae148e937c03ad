"""Streams beside the caller's, for work that does not wait for each other: forked and joined, also within a capture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["SideStreams"]


class SideStreams:
    """Some streams of a CUDA device.

    A tensor that is made on one of them may be read on another that waits for it, and its memory is not used again
    before `join`: whatever a stream is given next comes after what the caller's had been given by then.

    Args:
        device: where.
        count: how many.
    """

    def __init__(self, device: torch.device, count: int) -> None:
        self._device = device
        self._streams = [torch.cuda.Stream(device) for _ in range(count)]

    @contextmanager
    def beside(self, number: int, after: int | None = None) -> Iterator[None]:
        """Work inside goes to stream `number`, after all that stream `after` (None: the caller's) has been given."""
        stream = self._streams[number]
        stream.wait_stream(torch.cuda.current_stream(self._device) if after is None else self._streams[after])
        with torch.cuda.stream(stream):
            yield

    def join(self) -> None:
        """The caller's stream goes on after all that these have been given."""
        caller = torch.cuda.current_stream(self._device)
        for stream in self._streams:
            caller.wait_stream(stream)
