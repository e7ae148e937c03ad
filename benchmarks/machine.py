"""Where something was measured: device, versions, commit. ``python -m benchmarks.machine`` prints it as JSON."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import shutil
import statistics
from typing import Any

import torch

from benchmarks.checkout import commit, printed
from lit_fast.bench.pairing import Pairs
from lit_fast.runs.environment import processor


def describe(device: str) -> dict[str, Any]:
    """What a results file says of the machine that it comes from."""
    return {
        "device": device_name(device),
        "kind": device,
        "capability": ".".join(map(str, torch.cuda.get_device_capability(0))) if device == "cuda" else None,
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
    }


def versions() -> dict[str, str | None]:
    """Of what computes or compiles; None for what is not there."""
    names = ("triton", "numpy", "setuptools", "ninja", "pytest", "pytest-benchmark", "pytest-xdist", "hypothesis")
    compiler = shutil.which(os.environ.get("CXX", "c++")) or ""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": printed("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "nvcc": _last_line(printed(nvcc, "--version")),
        "c++": (printed(compiler, "--version") or "").partition("\n")[0] or None,
        **{name: _version(name) for name in names},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(0) if device == "cuda" else processor()


def slug(device: str) -> str:
    """The device's name as part of a file name."""
    name = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return name if device == "cuda" else f"{name}-{torch.get_num_threads()}-threads"


def copy_rate(device: str) -> float:
    """Bytes per second, read and written, of a copy far larger than any cache."""
    elements = (1 << 28) if device == "cuda" else (1 << 25)
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    pairs = Pairs({"copy": lambda: target.copy_(source)}, device)
    for _ in range(15):
        pairs.round()
    return 2 * source.nbytes / statistics.median(pairs.times["copy"])


def _last_line(text: str | None) -> str | None:
    return text.splitlines()[-1] if text else None


if __name__ == "__main__":
    print(json.dumps(describe("cuda" if torch.cuda.is_available() else "cpu")))
