"""The Triton kernel that makes batches, run on the CPU by Triton's interpreter; see tests/triton_interpreted.py."""

from __future__ import annotations

import gather_cases
import pytest
import torch
from everyday import exhaustive
from gather_cases import CASES, Case
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_fast.data import Augmentation
from lit_fast.data import gather as _registers_the_op  # noqa: F401
from lit_fast.triton.maths import INTERPRETED

assert INTERPRETED, "run tests/test_triton.py"

GATHER = torch.ops.lit_fast.gather_batch_triton.default


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_bit_is_right(case: Case) -> None:
    gather_cases.check(GATHER, case)


@exhaustive
@settings(max_examples=20)
@given(
    channels=st.integers(1, 4),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    pad=st.integers(0, 14),
    flip=st.booleans(),
    dtype=st.sampled_from(gather_cases.DTYPES),
    channels_last=st.booleans(),
)
def test_any_shape(channels, height, width, pad, flip, dtype, channels_last) -> None:
    case = Case("any", (channels, height, width), dtype, channels_last, Augmentation(pad, flip))
    gather_cases.check(GATHER, case)


def test_the_position_is_read_on_the_device() -> None:
    problem, later = gather_cases.build(Case("first")), gather_cases.build(Case("second", start=13))
    problem.arguments[0].add_(8)
    GATHER(*problem.arguments, problem.out, problem.labels)
    assert torch.equal(problem.out, later.right_out)
    assert torch.equal(problem.labels, later.right_labels)


@pytest.mark.parametrize("start", [27, -3])
def test_a_row_beyond_the_plan_gets_the_label_minus_1_and_nothing_is_read(start: int) -> None:
    problem = gather_cases.build(Case("beyond"))
    problem.arguments[0].fill_(start)
    GATHER(*problem.arguments, problem.out, problem.labels)
    beyond = torch.arange(start, start + 8)
    beyond = (beyond < 0) | (beyond >= 30)
    assert problem.labels[beyond].eq(-1).all()
    assert problem.labels[~beyond].ge(0).all()
    levels = problem.arguments[3]
    assert torch.equal(problem.out[beyond], levels[:, :1, None].expand_as(problem.out[beyond]))


def test_an_image_that_is_not_there_is_not_read() -> None:
    problem = gather_cases.build(Case("image"))
    problem.arguments[1][0, 6] = 40
    GATHER(*problem.arguments, problem.out, problem.labels)
    assert problem.labels[1] == -1
    assert problem.labels[0] >= 0


def test_tensors_that_do_not_fit_are_refused() -> None:
    problem = gather_cases.build(Case("misfit"))
    with pytest.raises(ValueError, match="gather_batch: labels: expected contiguous int64"):
        GATHER(*problem.arguments, problem.out, problem.labels[1:])


def test_opcheck() -> None:
    problem = gather_cases.build(CASES[0])
    torch.library.opcheck(GATHER, (*problem.arguments, problem.out, problem.labels))
