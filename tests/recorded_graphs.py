"""CUDA graphs for the CPU: what `lit_fast.step.cuda_graphs` offers, with the properties that make them hard to use.

A recorded graph repeats the calls of ATen that were made while it was captured, on the very tensors and with the very
numbers they had then; no Python of the step runs. So a learning rate read on the host is baked in, a tensor that was
replaced is not seen, and reading a number breaks the capture, as on a GPU. Unlike there, capturing also computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_fast.step.cuda_graphs import WARM_UPS

WAITS = ("_local_scalar_dense", "nonzero", "equal")


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[-1]
        if name in WAITS:
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, [t for t in tree_leaves(out) if isinstance(t, Tensor)]))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, results in self.calls:
            again = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, Tensor)]
            for result, new in zip(results, again, strict=True):
                if result is not new and (result.is_mkldnn or result.data_ptr() != new.data_ptr()):
                    result.copy_(new)


class RecordedGraphs:
    """In place of `lit_fast.step.cuda_graphs.CudaGraphs`."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def warm_up(self, run: Callable[[], Tensor]) -> None:
        for _ in range(WARM_UPS):
            run()

    def capture(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        recorder = Recorder()
        with recorder:
            result = run()
        self.captures += 1

        def replay() -> Tensor:
            self.replays += 1
            recorder.replay()
            return result

        return replay
