"""The op that makes batches of a resident dataset, compiled and in plain PyTorch: every bit as the data's functions."""

from __future__ import annotations

import gather_cases
import pytest
import torch
from gather_cases import CASES, Case
from hypothesis import given
from hypothesis import strategies as st

from lit_fast.data import Augmentation
from lit_fast.data.gather import eager_gather, gather_for
from lit_fast.loss.backends import native

COMPILED = native.available()
needs_extension = pytest.mark.skipif(not COMPILED[0], reason=f"no compiled extension: {COMPILED[1]}")
CPU = torch.device("cpu")


@pytest.fixture(params=["eager", pytest.param("native", marks=needs_extension)])
def gather(request):
    return eager_gather if request.param == "eager" else gather_for(CPU)


@needs_extension
def test_the_compiled_op_is_what_the_cpu_takes():
    assert gather_for(CPU) is torch.ops.lit_fast.gather_batch.default


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_bit_is_right(gather, case):
    gather_cases.check(gather, case)


@given(
    channels=st.integers(1, 4),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    pad=st.integers(0, 14),
    flip=st.booleans(),
    dtype=st.sampled_from(gather_cases.DTYPES),
    channels_last=st.booleans(),
)
def test_any_shape(channels, height, width, pad, flip, dtype, channels_last):
    shape, augmentation = (channels, height, width), Augmentation(pad, flip)
    case = Case("any", shape, dtype, channels_last, augmentation)
    gather_cases.check(eager_gather, case)
    if COMPILED[0]:
        gather_cases.check(gather_for(CPU), case)


@needs_extension
def test_several_threads_give_the_same():
    case = Case("large", (3, 64, 64), count=60, planned=60, batch=50, channels_last=True)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            gather_cases.check(gather_for(CPU), case)
    finally:
        torch.set_num_threads(before)


def test_the_position_is_read_at_each_call(gather):
    """As in a graph, whose replays repeat one call with the same arguments."""
    problem, later = gather_cases.build(Case("first")), gather_cases.build(Case("second", start=13))
    gather(*problem.arguments, problem.out, problem.labels)
    problem.arguments[0].add_(8)
    gather(*problem.arguments, problem.out, problem.labels)
    assert torch.equal(problem.out, later.right_out)
    assert torch.equal(problem.labels, later.right_labels)


@pytest.mark.parametrize(("start", "first"), [(23, 0), (20, 3), (-1, 0)])
def test_rows_beyond_the_plan_are_refused(gather, start, first):
    problem = gather_cases.build(Case("beyond"))
    problem.arguments[0].fill_(start)
    problem.arguments[5] = first
    with pytest.raises((IndexError, RuntimeError), match=r"outside the plan|out of DATA bounds|out of range"):
        gather(*problem.arguments, problem.out, problem.labels)


def test_an_image_that_is_not_there_is_refused(gather):
    problem = gather_cases.build(Case("image"))
    problem.arguments[1][0, 6] = 40
    with pytest.raises(
        (IndexError, RuntimeError), match=r"expected images 0\.\.39, got 40 at position 6|out of range|out of DATA"
    ):
        gather(*problem.arguments, problem.out, problem.labels)


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, torch.zeros(2, dtype=torch.int64), "position: expected one int64"),
        (0, torch.zeros(()), "position: expected one int64"),
        (1, torch.zeros(3, 30, dtype=torch.int64), r"plan: expected contiguous int64 \[2 or 5, N\]"),
        (1, torch.zeros(30, 5, dtype=torch.int64).t(), r"plan: expected contiguous int64 \[2 or 5, N\]"),
        (2, torch.zeros(40, 3, 32, 32), "images: expected contiguous uint8"),
        (2, torch.zeros(40, 32, 32, 3, dtype=torch.uint8).permute(0, 3, 1, 2), "images: expected contiguous uint8"),
        (2, torch.zeros(40, 1024, dtype=torch.uint8), "images: expected contiguous uint8"),
        (3, torch.zeros(3, 255), r"levels: expected contiguous [Ff]loat.* \[3, 256\]"),
        (3, torch.zeros(3, 256, dtype=torch.float16), r"levels: expected contiguous [Ff]loat.* \[3, 256\]"),
        (6, torch.zeros(8, 3, 32, 31), r"out: expected \[B, \.\.\.\] of images"),
        (6, torch.zeros(8, 3, 32, 64)[..., ::2], "out: expected contiguous or channels_last, got strides"),
        (7, torch.zeros(7, dtype=torch.int64), r"labels: expected contiguous int64 \[8\]"),
        (7, torch.zeros(8), r"labels: expected contiguous int64 \[8\]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(gather, place, wrong, message):
    problem = gather_cases.build(Case("misfit"))
    arguments = [*problem.arguments, problem.out, problem.labels]
    arguments[place] = wrong
    with pytest.raises(ValueError, match=f"gather_batch: {message}"):
        gather(*arguments)


def test_tokens_are_written_as_int64_only(gather):
    problem = gather_cases.build(Case("tokens", (5,), torch.int64, augmentation=Augmentation()))
    with pytest.raises(ValueError, match="out: expected int64 for tokens"):
        gather(*problem.arguments, problem.out.float(), problem.labels)


@needs_extension
@pytest.mark.parametrize("name", ["tokens", "torch.float16 True"])
def test_opcheck(name):
    problem = gather_cases.build(next(case for case in CASES if case.name == name))
    torch.library.opcheck(torch.ops.lit_fast.gather_batch.default, (*problem.arguments, problem.out, problem.labels))
