"""How exactly float32 convolutions and matrix products are computed, for the time of a context."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch

__all__ = ["full_float32", "tf32"]

_CUDA = ("cuda.matmul", "cudnn.conv", "cudnn.rnn")
_CPU = ("mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether CUDA may compute float32 convolutions and matrix products in TF32, inside; afterwards as before."""
    with _kept():
        _set_cuda(allowed)
        yield


@contextmanager
def full_float32() -> Iterator[None]:
    """Within the context no device rounds float32 operands to fewer bits; afterwards all settings are as before."""
    with _kept():
        _quietly(lambda: torch.set_float32_matmul_precision("highest"))
        _set_cuda(False)
        for operation in _operations(_CPU):
            operation.fp32_precision = "ieee"
        yield


def _set_cuda(allowed: bool) -> None:
    """Both interfaces of torch, the flags and (from 2.9) the names: where they disagree, torch refuses to compute."""
    _quietly(lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", allowed))
    if _cudnn_flag() is not None:
        _quietly(lambda: setattr(torch.backends.cudnn, "allow_tf32", allowed))
    for operation in _operations(_CUDA):
        operation.fp32_precision = "tf32" if allowed else "ieee"


@contextmanager
def _kept() -> Iterator[None]:
    matmul, cudnn = _matmul_word(), _cudnn_flag()
    operations = [*_operations(_CUDA), *_operations(_CPU)]
    names = [operation.fp32_precision for operation in operations]
    try:
        yield
    finally:
        _quietly(lambda: torch.set_float32_matmul_precision(matmul))
        if cudnn is not None:
            _quietly(lambda: setattr(torch.backends.cudnn, "allow_tf32", cudnn))
        for operation, name in zip(operations, names):  # last: the flags write to them
            operation.fp32_precision = name


def _cudnn_flag() -> bool | None:
    """None where convolutions and recurrent networks were set apart by name: torch then refuses to read the flag."""
    try:
        return bool(_quietly(lambda: torch.backends.cudnn.allow_tf32))
    except RuntimeError:
        return None


def _matmul_word() -> str:
    """torch refuses to say where names were given that disagree with it; it can then be told from what disagrees."""
    matmul = torch.backends.cuda.matmul
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        try:
            allowed = bool(_quietly(lambda: matmul.allow_tf32))
        except RuntimeError:
            allowed = matmul.fp32_precision != "tf32"
        return "high" if allowed else "highest"


def _operations(names: tuple[str, ...]) -> list[Any]:
    """What torch lets set by name: from 2.9 all of them."""
    found = []
    for name in names:
        try:
            operation = attrgetter(name)(torch.backends)
        except AttributeError:
            continue
        if hasattr(operation, "fp32_precision"):
            found.append(operation)
    return found


def _quietly(call: Callable[[], Any]) -> Any:
    """Some releases warn of the flags, which are all that older ones have."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Please use the new API settings")
        return call()
