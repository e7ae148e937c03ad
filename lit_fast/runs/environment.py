"""What a result was made with: versions and the device."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lit_fast.float32 import tf32
from lit_fast.version import __version__

__all__ = ["cudnn_benchmark", "describe_environment", "processor", "resolve_device", "rounding_environment", "tf32"]


def resolve_device(wanted: str) -> torch.device:
    """``"auto"``: CUDA where there is one, else the CPU.

    Raises:
        ValueError: the device does not exist here.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"step.device: {wanted!r} is not usable here ({reason}); 'cpu' always is") from error
    return device


@contextmanager
def cudnn_benchmark(on: bool) -> Iterator[None]:
    """Whether cuDNN tries its algorithms on each new shape and takes the fastest, inside; afterwards as before."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def describe_environment(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Versions, processor and device, for reports."""
    return {
        "lit_fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def rounding_environment(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """What decides in which order sums are made, so that results depend on it in their last bits."""
    named = describe_environment(device, processes)
    kept = {key: named[key] for key in ("torch", "processor", "device", "threads", "processes")}
    return {**kept, "instructions": torch.backends.cpu.get_cpu_capability()}


def processor() -> str:
    """The processor's model, or its kind where the system does not tell."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
