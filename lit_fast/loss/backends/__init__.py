"""Which implementation computes a loss: ``select`` picks one and says why.

Every backend module offers the same differentiable function ``lit_loss(inputs, options)`` (see ``eager.lit_loss``).

| backend | what | devices |
|---|---|---|
| ``native`` | fused forward and gradient in C++ and CUDA, in the compiled extension | CPU; CUDA where built with it |
| ``triton`` | the same in Triton kernels, compiled when first used | CUDA from capability 7.0 on |
| ``eager`` | plain PyTorch operations: the reference of all others | every device of PyTorch |
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch

from lit_fast.errors import UnavailableError
from lit_fast.loss.backends import eager
from lit_fast.loss.backends.eager import transformed
from lit_fast.loss.backends.options import IR_KINDS, Inputs, LossOptions, LossParts

__all__ = ["IR_KINDS", "NAMES", "Choice", "Inputs", "LossOptions", "LossParts", "check", "select", "transformed"]

NAMES = ("auto", "native", "triton", "eager")
_BY_DEVICE = {"cpu": ("native",), "cuda": ("native", "triton")}  # what "auto" tries, best first
_MEND = {"native": "build the extension or use backend='auto'", "triton": "use backend='auto'"}


class Choice(NamedTuple):
    """A backend and why it was chosen."""

    name: str
    reason: str
    lit_loss: Callable[[Inputs, LossOptions], LossParts]


def check(requested: str) -> None:
    """Check a backend's name, and that it can be used at all, where the request is made.

    Raises:
        ValueError: there is no such backend.
        UnavailableError: ``"native"`` is requested and its compiled extension is missing or does not load, or
            ``"triton"`` and Triton is not installed.
    """
    if not isinstance(requested, str) or requested not in NAMES:
        raise ValueError(f"backend: expected one of {', '.join(map(repr, NAMES))}, got {requested!r}")
    if requested in _MEND:
        usable, reason = _load(requested).available()
        if not usable:
            raise UnavailableError(f"backend {requested!r} is not available: {reason}; {_MEND[requested]}")


def select(device: torch.device, requested: str = "auto") -> Choice:
    """Pick the backend for tensors on `device`: native where it is built for that device, else Triton, else eager.

    Warns once per process and device if ``"auto"`` has to fall back to eager where it need not be so.

    Raises:
        ValueError: there is no backend of that name.
        UnavailableError: the requested backend is missing, or has no code for `device`.
    """
    if not isinstance(requested, str):
        check(requested)
    if transformed():
        if requested not in ("auto", "eager"):
            check(requested)
            raise UnavailableError(
                f"backend {requested!r} is not available under torch.func's transforms, which take operations of "
                "PyTorch alone; use backend='auto'"
            )
        return Choice("eager", "torch.func's transforms take operations of PyTorch alone", eager.lit_loss)
    name, reason = _constant_pick(device.type, device.index, requested)
    if name == "native":
        from lit_fast.loss.backends import native

        return Choice(name, reason, native.lit_loss)
    if name == "triton":
        from lit_fast.loss.backends import triton

        return Choice(name, reason, triton.lit_loss)
    return Choice(name, reason, eager.lit_loss)


@torch.compiler.assume_constant_result  # compiled graphs must not trace the search for the extension
def _constant_pick(device_type: str, device_index: int | None, requested: str) -> tuple[str, str]:
    return _pick(device_type, device_index, requested)


@functools.cache
def _pick(device_type: str, device_index: int | None, requested: str) -> tuple[str, str]:
    check(requested)
    if requested == "eager":
        return "eager", "requested"
    reasons = []
    for name in _BY_DEVICE.get(device_type, ()) if requested == "auto" else (requested,):
        usable, reason = _load(name).available(device_type, device_index)
        if usable:
            return name, reason
        reasons.append(f"{name} is not available: {reason}")
    if requested != "auto":
        raise UnavailableError(f"backend {requested!r} is not available: {reason}; use backend='auto'")
    if not reasons:
        return "eager", f"no fused backend has code for {device_type}"
    warnings.warn(  # once: this function is cached
        f"lit_fast: no fused loss ({'; '.join(reasons)}); using plain PyTorch, slower but equal", stacklevel=5
    )
    return "eager", "; ".join(reasons)


def _load(name: str) -> ModuleType:
    return importlib.import_module(f"lit_fast.loss.backends.{name}")  # not before a loss may need it
