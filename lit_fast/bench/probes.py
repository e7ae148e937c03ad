"""What a clock does not show: launches, time in kernels, memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def launches(step: Callable[[], object]) -> dict[str, Any]:
    """Kernels, copies and fills that one call puts on the CUDA device: their number, names and time."""
    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    events = [event for event in profiler.events() if _is_launch(event)]
    if not events:
        raise RuntimeError("the profiler saw nothing on the device")
    microseconds = sum(event.time_range.elapsed_us() for event in events)
    names = [f"{count} x {name[:80]}" for name, count in Counter(event.name for event in events).items()]
    return {"launches": len(events), "kernel_us": microseconds, "kernels": names}


def _is_launch(event: Any) -> bool:
    """torch.compile's regions and waits are shown on the device as well."""
    on_device = event.device_type == torch.autograd.DeviceType.CUDA
    return on_device and not getattr(event, "is_user_annotation", False) and not event.name.endswith(" Sync")


def peak_bytes(step: Callable[[], object], device: str) -> int:
    """The most memory that one call holds at a time above what there was, gradients included."""
    step()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        results = step()
    # At least the results: memory that a backend uses again does not come from the allocator that is watched.
    tensors = [tensor for tensor in results if isinstance(tensor, Tensor)] if isinstance(results, Iterable) else []
    peak = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    held = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
