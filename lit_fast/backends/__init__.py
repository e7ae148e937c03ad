"""Which implementation computes a loss: ``select`` picks one and says why.

Every backend module offers the same differentiable function ``lit_loss`` (see ``eager.lit_loss``).

| backend | what | devices |
|---|---|---|
| ``native`` | fused forward and gradient in C++, in the compiled extension | CPU |
| ``eager`` | plain PyTorch operations: the reference of all others | every device of PyTorch |
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch

from lit_fast.backends import eager
from lit_fast.backends.options import IR_KINDS, LossOptions, LossParts

__all__ = ["IR_KINDS", "NAMES", "Choice", "LossOptions", "LossParts", "check", "select"]

NAMES = ("auto", "native", "eager")
_NATIVE_DEVICES = ("cpu",)


class Choice(NamedTuple):
    """A backend and why it was chosen."""

    name: str
    reason: str
    lit_loss: Callable[..., LossParts]


def check(requested: str) -> None:
    """Check a backend's name, and that it was built, where the request is made.

    Raises:
        ValueError: there is no such backend.
        RuntimeError: ``"native"`` is requested and its compiled extension is missing or does not load.
    """
    if requested not in NAMES:
        raise ValueError(f"backend: expected one of {', '.join(map(repr, NAMES))}, got {requested!r}")
    if requested == "native":
        built, reason = _native_available()
        if not built:
            raise RuntimeError(
                f"backend 'native' is not available: {reason}; build the extension or use backend='auto'"
            )


def select(device: torch.device, requested: str = "auto") -> Choice:
    """Pick the backend for tensors on `device`: native where it is built for that device, else eager.

    Warns once per process if ``"auto"`` has to fall back to eager because the extension is missing.

    Raises:
        ValueError: there is no backend of that name.
        RuntimeError: ``"native"`` is requested but not built, or has no code for `device`.
    """
    name, reason = _constant_pick(device.type, requested)
    if name == "eager":
        return Choice(name, reason, eager.lit_loss)

    from lit_fast.backends import native

    return Choice(name, reason, native.lit_loss)


@torch.compiler.assume_constant_result  # compiled graphs must not trace the search for the extension
def _constant_pick(device_type: str, requested: str) -> tuple[str, str]:
    return _pick(device_type, requested)


@functools.cache
def _pick(device_type: str, requested: str) -> tuple[str, str]:
    check(requested)
    if requested == "eager":
        return "eager", "requested"
    if device_type not in _NATIVE_DEVICES:
        if requested == "native":
            raise RuntimeError(
                f"backend 'native' runs on {', '.join(_NATIVE_DEVICES)}, got {device_type} tensors; use backend='auto'"
            )
        return "eager", f"native has no code for {device_type}"
    built, reason = _native_available()
    if not built:  # said once per process: this function is cached
        warnings.warn(
            f"lit_fast: the compiled loss is not available ({reason}); using plain PyTorch, slower but equal",
            stacklevel=5,
        )
        return "eager", f"native is not available: {reason}"
    return "native", "requested" if requested == "native" else f"built for {device_type}"


def _native_available() -> tuple[bool, str]:
    from lit_fast.backends import native  # loads the extension: not before a loss may need it

    return native.available()
