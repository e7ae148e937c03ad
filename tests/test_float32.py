"""The precision of float32: set inside the contexts whichever of torch's interfaces set it before, then as before."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch

from lit_fast.float32 import _CPU, _CUDA, _matmul_word, _operations, full_float32, tf32

MATMUL, CUDNN = torch.backends.cuda.matmul, torch.backends.cudnn
NAMED = bool(_operations(("cudnn.conv",)))


def state() -> list[object]:
    return [_matmul_word(), *(operation.fp32_precision for operation in _operations((*_CUDA, *_CPU)))]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before, *named = state()
    cudnn = CUDNN.allow_tf32
    yield
    torch.set_float32_matmul_precision(str(before))
    CUDNN.allow_tf32 = cudnn
    for operation, name in zip(_operations((*_CUDA, *_CPU)), named):
        operation.fp32_precision = name


def by_flags() -> None:
    MATMUL.allow_tf32 = CUDNN.allow_tf32 = True


def by_word() -> None:
    torch.set_float32_matmul_precision("medium")


def by_names() -> None:
    for operation in _operations(_CUDA):
        operation.fp32_precision = "tf32"
    for operation in _operations(_CPU):
        operation.fp32_precision = "bf16"


def by_both() -> None:
    """As torch refuses to be asked about: "you have used mix of the legacy and new APIs"."""
    torch.set_float32_matmul_precision("high")
    MATMUL.fp32_precision = "ieee"
    CUDNN.conv.fp32_precision = "ieee"


SETTINGS = [lambda: None, by_flags, by_word, *([by_names, by_both] if NAMED else [])]


@pytest.mark.parametrize("setting", SETTINGS)
def test_full_float32_is_full_and_leaves_no_trace(setting: Callable[[], None]) -> None:
    setting()
    before = state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with full_float32():
            assert not MATMUL.allow_tf32
            assert torch.get_float32_matmul_precision() == "highest"
            assert {operation.fp32_precision for operation in _operations((*_CUDA, *_CPU))} <= {"ieee"}
            assert setting is by_both or not CUDNN.allow_tf32
    assert state() == before


def test_settings_are_put_back_after_an_error() -> None:
    by_word()
    before = state()
    with pytest.raises(KeyError), full_float32():
        raise KeyError
    assert state() == before


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_cudas_alone(setting: Callable[[], None], allowed: bool) -> None:
    setting()
    before = state()
    with tf32(allowed):
        assert MATMUL.allow_tf32 == allowed
        assert [operation.fp32_precision for operation in _operations(_CPU)] == before[1:][len(_operations(_CUDA)) :]
    assert state() == before
