"""The compiled loss on the CPU over the matrix of losses (tests/loss_cases.py)."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import loss_cases
import pytest
import torch
from everyday import exhaustive, in_turn
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import DTYPES, IR_KINDS, LAYOUTS, Case

from lit_fast.extension import EXTENSION
from lit_fast.loss.backends import eager, native

pytestmark = pytest.mark.skipif(not native.available()[0], reason=f"no compiled extension: {native.available()[1]}")

MATRIX = in_turn(loss_cases.matrix(), loss_cases.without_dtype)


@pytest.mark.parametrize("case", MATRIX, ids=str)
def test_native_is_as_accurate_as_eager(case):
    loss_cases.check(native.lit_loss, case)


@pytest.mark.parametrize("case", MATRIX, ids=str)
def test_repeat_runs_are_equal_bit_for_bit_for_any_number_of_threads(case):
    problem = loss_cases.build(case)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            results.append(loss_cases.run(native.lit_loss, problem, case.options))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for one, same in zip([*results[0].parts, *results[0].grads], [*other.parts, *other.grads]):
            torch.testing.assert_close(one, same, rtol=0, atol=0, equal_nan=True)


# The judge itself: a wrong loss must not pass.


def _loss_with(change):
    def lit_loss(*arguments):
        parts = eager.lit_loss(*arguments)
        return parts._replace(total=change(parts.total))

    return lit_loss


@pytest.mark.parametrize("dtype", DTYPES, ids=loss_cases.short)
def test_a_wrong_loss_fails_the_check(dtype):
    case = Case("plain", dtype)
    loss_cases.check(eager.lit_loss, case)
    with pytest.raises(AssertionError, match="total: error"):
        loss_cases.check(_loss_with(lambda total: total * (1 + 2e-6)), case)
    with pytest.raises(AssertionError, match="gradient of section 1: error"):
        loss_cases.check(_loss_with(lambda total: 2 * total - total.detach()), case)


@settings(max_examples=150, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 9), min_size=0, max_size=4).map(tuple), min_size=1, max_size=5).map(tuple),
    dtype=st.sampled_from(DTYPES),
    teacher_dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    batch=st.integers(0, 40),
    classes=st.integers(1, 700),
    kind=st.sampled_from(IR_KINDS),
    alpha=st.sampled_from((0.0, 0.3, 1.0)),
    tau=st.floats(0.5, 20),
    smoothing=st.sampled_from((0.0, 0.2)),
    class_weight=st.booleans(),
    labels=st.sampled_from(("plain", "some ignored")),
)
def test_native_on_any_shapes(
    shapes, dtype, teacher_dtype, layout, batch, classes, kind, alpha, tau, smoothing, class_weight, labels
):
    chosen = {"ir": kind, "alpha": alpha, "tau": tau, "label_smoothing": smoothing, "beta": 0.6}
    case = Case("any", dtype, teacher_dtype, shapes, layout, batch, classes, chosen, labels, class_weight=class_weight)
    loss_cases.check(native.lit_loss, case)


# --- older processors


@pytest.mark.skipif(platform.machine() != "x86_64", reason="one instruction set is compiled here")
@exhaustive
@pytest.mark.parametrize("instruction_set", ["baseline", "avx2"])
def test_older_instruction_sets(instruction_set):
    if instruction_set == "avx2" and EXTENSION.instruction_set == "baseline":
        pytest.skip("this processor has no AVX2")
    code = """
        import loss_cases
        from lit_fast.loss.backends import native
        from lit_fast.extension import EXTENSION
        print(EXTENSION.instruction_set)
        for case in loss_cases.matrix():
            loss_cases.check(native.lit_loss, case)
        """
    here = Path(__file__).parent
    environment = os.environ | {
        "LIT_FAST_CPU": instruction_set,
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
    }
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.split() == [instruction_set]
