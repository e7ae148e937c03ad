"""linear_kd_loss on a real GPU, by each backend and in plain PyTorch, against naive autograd in float64."""

from __future__ import annotations

import linear_cases
import pytest
import torch
from linear_cases import BF16, DTYPES, F32, Counts, assert_right, build, oracle

from lit_fast.loss import backends
from lit_fast.loss.backends import linear

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(params=["native", "triton", "plain"])
def backend(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(linear, "FUSED", {})
        return "auto"
    try:
        return backends.select(torch.device("cuda"), request.param).name
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chunk", [4, 5, None])
def test_values_and_gradients_are_those_of_whole_logits(backend, dtype, chunk):
    problem = build(dtype)
    right = oracle(problem, alpha=0.4, label_smoothing=0.1)
    found = problem.to("cuda").result(alpha=0.4, label_smoothing=0.1, chunk=chunk, backend=backend)
    assert_right([tensor.cpu() for tensor in found], right, dtype, problem.leaves())


def test_rows_normalizer_and_class_weights(backend):
    problem, rows, weight = build(F32), torch.arange(13) % 4 != 1, torch.linspace(0, 2, 31)
    settings = {"alpha": 0.4, "normalizer": Counts(20, 30)}
    right = oracle(problem, rows=rows, class_weight=weight, **settings)
    settings |= {"rows": rows.cuda(), "class_weight": weight.cuda(), "chunk": 4, "backend": backend}
    found = problem.to("cuda").result(**settings)
    assert_right([tensor.cpu() for tensor in found], right, F32, problem.leaves())


def test_autocast(backend):
    problem = build(F32, 64, 4000, (32, 48)).to("cuda")
    with torch.autocast("cuda", dtype=BF16):
        found = problem.result(chunk=16, backend=backend)
    right = oracle(build(F32, 64, 4000, (32, 48)))
    assert found[0].dtype == F32
    for ours, exact in zip(found, right, strict=True):
        bound = linear_cases.GRADIENT[BF16] * float(exact.abs().max())
        torch.testing.assert_close(ours.double().cpu(), exact, rtol=0, atol=bound)


def test_a_large_vocabulary_takes_little_memory(backend):
    problem = build(BF16, 4096, 50_000, (64, 64)).to("cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    problem.result(backend=backend, chunk=256)
    assert torch.cuda.max_memory_allocated() - before < 4096 * 50_000 * 2
