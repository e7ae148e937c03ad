"""What captures work and replays it: CUDA graphs, behind an interface that a stand-in can have too."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from lit_fast.errors import NotCapturable

__all__ = ["CudaGraphs", "Graphs", "graphs_for"]

WARM_UPS = 3  # allocator, cuDNN and cuBLAS settle; torch's own number


class Graphs(Protocol):
    """What captures."""

    def warm_up(self, run: Callable[[], Tensor]) -> None:
        """Call ``run`` a few times, as it will be captured.

        Raises:
            NotCapturable: it waits for the device.
        """

    def capture(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Record what ``run`` does; returns what repeats it and gives its result, the same tensor every time."""


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: cuBLAS keeps a workspace for every stream that it was used on."""
    return torch.cuda.Stream(device)


class CudaGraphs:
    """Captures on a stream of its own; all graphs share one pool of memory.

    Their intermediate results may overlap, which is right as long as no two of them run at the same time: they are
    replayed on the caller's stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = _side_stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, run: Callable[[], Tensor]) -> None:
        with self._on_stream():
            for _ in range(WARM_UPS - 1):
                run()
            with _no_waiting():  # a part that waits would break the capture itself, and that is hard to come back from
                run()

    def capture(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        graph = torch.cuda.CUDAGraph()
        # thread_local: threads that load data may allocate meanwhile.
        with (
            self._on_stream(),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            result = run()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        caller = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(caller)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:  # also after an error: what it began still runs, on tensors that the caller goes on with
            caller.wait_stream(self._stream)


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Notices where this thread waits for the device.

    Raises:
        NotCapturable: at the end, with the places.
    """
    places: list[str] = []
    this_thread, show, mode = threading.get_ident(), warnings.showwarning, torch.cuda.get_sync_debug_mode()

    def notice(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        if threading.get_ident() == this_thread and "synchronizing CUDA operation" in str(message):
            places.append(f"{filename}:{lineno}")
        else:
            show(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=".*synchronizing CUDA operation")
        # torch's note that this mode is a prototype: once in a process, and an error under `python -W error`.
        warnings.filterwarnings("ignore", message="Synchronization debug mode")
        warnings.showwarning = notice
        try:
            torch.cuda.set_sync_debug_mode("warn")
            yield
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    if places:
        raise NotCapturable(f"it waits for the GPU at {', '.join(dict.fromkeys(places))}")


def graphs_for(device: torch.device) -> Graphs:
    """What captures on ``device``.

    Raises:
        NotCapturable: nothing does.
    """
    if device.type != "cuda":
        raise NotCapturable(f"the student is on {device}, and only CUDA devices capture")
    return CudaGraphs(device)
