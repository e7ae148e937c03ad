"""Streams beside the caller's, for work that does not wait for each other: forked and joined, also within a capture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

__all__ = ["SideStreams"]

# From torch 2.10 on autograd tells of gradients that come from another stream than the parameter's. It waits for them.
_set_warning: Callable[[bool], None] | None = getattr(
    torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None
)
_warns: Callable[[], bool] = getattr(torch._C, "_warn_on_accumulate_grad_stream_mismatch", lambda: True)


class SideStreams:
    """Some streams of a CUDA device, each of which is given work between two `join`: a capture waits for nothing else.

    A tensor that is made on one of them may be read on another that waits for it, and its memory is not used again
    before `join`: whatever a stream is given next comes after what the caller's had been given by then.

    Args:
        device: where.
        count: how many; the first is for work without gradients.
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

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Backward runs inside, on the streams of the forward pass; the caller's goes on after it.

        Weights that are used on two streams get gradients from both, as they should: torch's warning of that is off.
        """
        before = _warns()
        try:
            if _set_warning is not None:
                _set_warning(False)
            yield
        finally:
            if _set_warning is not None:
                _set_warning(before)
            self.join(1)

    def join(self, first: int = 0) -> None:
        """The caller's stream goes on after all that these, from number ``first`` on, have been given."""
        caller = torch.cuda.current_stream(self._device)
        for stream in self._streams[first:]:
            caller.wait_stream(stream)
