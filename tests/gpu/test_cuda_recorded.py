"""Recorded models on a real GPU: the captured step is the eager one, the fused head gives what logits give."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from text_networks import Causal, text

import lit_fast as lf

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

BF16 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
PRECISIONS = [
    "fp32",
    pytest.param("bf16", marks=pytest.mark.skipif(not BF16, reason="bf16 needs compute capability 8.0")),
]
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}


def step_of(precision: str, **options: Any) -> lf.LITStep:
    torch.manual_seed(0)
    teacher, student = (lf.split(Causal(n).cuda(), blocks="layers", sections=2) for n in (4, 2))
    for layer in (*teacher.model.layers, *student.model.layers):
        layer.decides = False
    optimizer = torch.optim.AdamW(student.parameters(), lr=2**-7, fused=True, capturable=True)
    return lf.LITStep(
        teacher, student.train(), lf.LITLoss(), optimizer, targets="causal_lm", precision=precision, **options
    )


def batches() -> list[dict[str, torch.Tensor]]:
    return [{name: value.cuda() for name, value in text(32, 16, seed)[0].items()} for seed in range(10)]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_captured_step_is_the_eager_one(precision: str) -> None:
    eager, captured = (step_of(precision, capture=on, fused_head=False) for on in (False, True))
    losses = []
    for step in (eager, captured):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a warning would be the fall back to eager steps
            losses.append(torch.stack([step(batch).total for batch in batches()]))
    assert captured.captured, captured.capture_reason
    torch.testing.assert_close(*losses, rtol=TOLERANCE[precision], atol=TOLERANCE[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_fused_head_gives_what_logits_give(precision: str) -> None:
    fused, whole = (step_of(precision, fused_head=on) for on in (True, False))
    losses = [torch.stack([step(batch).total for batch in batches()]) for step in (fused, whole)]
    torch.testing.assert_close(*losses, rtol=TOLERANCE[precision], atol=TOLERANCE[precision])
