"""What was built and what is used: ``lit_fast.build_info()``."""

from __future__ import annotations

import platform
from typing import TypedDict

import torch

from lit_fast.extension import EXTENSION
from lit_fast.version import __version__


class BuildInfo(TypedDict):
    """What ``build_info()`` tells; the fields on the extension are None, False or empty where there is none.

    Attributes:
        version: of lit_fast.
        python: version of the interpreter.
        torch: version in use.
        built_for_torch: version that the extension was compiled for.
        compiler: that compiled it.
        openmp: whether its loops run on torch's threads.
        instruction_set: of the processor, that its loops use: ``"avx512"``, ``"avx2"`` or ``"baseline"``.
        cuda_archs: GPU architectures that it has code for, as ``"sm_80"``, and as PTX, which newer GPUs compile for
            themselves, ``"compute_90"``; empty for a CPU build.
        extension: the extension's file.
        backend: which backend computes a loss on the CPU under ``backend="auto"``.
        reason: why that one.
        threads: how many threads torch uses within one operation.
    """

    version: str
    python: str
    torch: str
    built_for_torch: str | None
    compiler: str | None
    openmp: bool
    instruction_set: str | None
    cuda_archs: tuple[str, ...]
    extension: str | None
    backend: str
    reason: str
    threads: int


def build_info() -> BuildInfo:
    """Tell what was built, for which torch, and what is used and why.

    Example:
        >>> import lit_fast
        >>> lit_fast.build_info()["backend"] in ("native", "eager")
        True
    """
    return {
        "version": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "built_for_torch": EXTENSION.built.get("torch"),
        "compiler": EXTENSION.built.get("compiler"),
        "openmp": EXTENSION.built.get("openmp") == "1",
        "instruction_set": EXTENSION.instruction_set,
        "cuda_archs": EXTENSION.cuda_archs,
        "extension": None if EXTENSION.path is None else str(EXTENSION.path),
        "backend": "native" if EXTENSION.loaded else "eager",
        "reason": EXTENSION.reason,
        "threads": torch.get_num_threads(),
    }
