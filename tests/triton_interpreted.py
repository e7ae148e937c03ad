"""The Triton kernels, run on the CPU by Triton's interpreter: needs TRITON_INTERPRET=1 before Triton is imported.

pytest does not collect this file by itself: tests/test_triton.py runs it in a process of its own, because the
interpreter is chosen once per process.
"""

from __future__ import annotations

from dataclasses import replace

import linear_cases
import loss_cases
import pytest
import torch
import triton
import triton.language as tl
from everyday import but_first, exhaustive, in_turn
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import BF16, DTYPES, F16, F32, F64, IR_KINDS, LAYOUTS, Case
from torch import Tensor

from lit_fast.loss import backends
from lit_fast.loss.backends import Inputs, LossOptions, eager
from lit_fast.loss.backends import triton as backend
from lit_fast.loss.backends.ops import arguments
from lit_fast.loss.functional import lit_loss
from lit_fast.triton import launch, loss
from lit_fast.triton.maths import INTERPRETED
from lit_fast.triton.scalars import coded, exact, find_section, integer, three_floats

assert INTERPRETED, "run tests/test_triton.py"

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of inf and NaN in the interpreter

# Fewer of what comes in great numbers: the interpreter takes seconds for each. Still many tiles, many launches.
FEWER = {
    "600 rows": {"batch": 100},
    "50,257 classes": {"classes": 20001},
    "70 sections": {"shapes": tuple((3, 1 + i % 5) for i in range(35))},
    "rows of 70 IRs": {"shapes": tuple((3, 1 + i % 5) for i in range(35))},
}
CASES = [replace(case, **FEWER.get(loss_cases.without_dtype(case), {})) for case in loss_cases.matrix()]
MATRIX = {case.name: case for case in CASES}
PLAIN = Case("plain")
OP = torch.ops.lit_fast.lit_loss_triton.default
RESCALE = torch.ops.lit_fast.rescale_triton_.default


def test_the_interpreter_is_what_runs() -> None:
    assert INTERPRETED
    assert backend.available("cpu") == (True, "Triton's interpreter runs the kernels on the CPU")
    assert backends.select(torch.device("cpu"), "triton").name == "triton"


# --- the loss


@pytest.mark.parametrize("case", in_turn(CASES, loss_cases.without_dtype), ids=str)
def test_triton_is_as_accurate_as_eager(case: Case) -> None:
    loss_cases.check(backend.lit_loss, case)


@exhaustive
@settings(max_examples=12)
@given(
    shapes=st.lists(st.lists(st.integers(0, 9), min_size=0, max_size=4).map(tuple), min_size=1, max_size=4).map(tuple),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    layout=st.sampled_from(LAYOUTS),
    batch=st.integers(0, 20),
    classes=st.integers(1, 700),
    kind=st.sampled_from(IR_KINDS),
    alpha=st.sampled_from((0.0, 0.3, 1.0)),
    tau=st.floats(0.5, 20),
    smoothing=st.sampled_from((0.0, 0.2)),
    class_weight=st.booleans(),
    labels=st.sampled_from(("plain", "some ignored")),
)
def test_any_shapes(shapes, dtypes, layout, batch, classes, kind, alpha, tau, smoothing, class_weight, labels) -> None:
    chosen = {"ir": kind, "alpha": alpha, "tau": tau, "label_smoothing": smoothing, "beta": 0.6}
    case = Case("any", *dtypes, shapes, layout, batch, classes, chosen, labels, class_weight=class_weight)
    loss_cases.check(backend.lit_loss, case)


@pytest.mark.parametrize(
    "name", ["float32-several blocks", "float16-some ignored, smoothing", "bfloat16-1,000 classes"]
)
def test_repeat_runs_are_equal_bit_for_bit(name: str) -> None:
    case = MATRIX[name]
    problem = loss_cases.build(case)
    one, other = (loss_cases.run(backend.lit_loss, problem, case.options) for _ in range(2))
    assert all(map(torch.equal, [*one.parts, *one.grads], [*other.parts, *other.grads]))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_programs_that_take_several_blocks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "PROGRAMS", 3)  # about: 10 blocks, 4 for each program
    loss_cases.check(backend.lit_loss, Case("long", dtype, shapes=((3, 3000), (3, 1), (3, 341), (0, 2))))


@pytest.mark.parametrize("settings", [{}, {"alpha": 1.0, "label_smoothing": 0.1}], ids=str)
def test_programs_that_take_several_tiles_of_rows(settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "PROGRAMS", 3)  # 13 tiles of 4 rows, 5 for each program
    case = Case("rows", shapes=(), batch=50, classes=20, settings={"beta": 1.0, **settings}, labels="some ignored")
    loss_cases.check(backend.lit_loss, case)


def test_sections_of_many_kinds_in_one_loss() -> None:
    torch.manual_seed(0)
    dtypes = [(F16, F16), (F32, F16), (F32, F16), (BF16, F32), (F16, F16)]
    students = [torch.randn(2, 33).to(s).requires_grad_() for s, _ in dtypes]
    teachers = [torch.randn(2, 33).to(t) for _, t in dtypes]
    options = LossOptions(beta=0.0, section_weights=(1.0, 2.0, 0.5, 3.0, 0.0))
    inputs = Inputs(students, teachers)
    ours, right = backend.lit_loss(inputs, options), eager.lit_loss(inputs, options)
    torch.testing.assert_close(ours.ir, right.ir, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.total, right.total, rtol=1e-6, atol=0)
    grads, right_grads = (torch.autograd.grad(parts.total, students) for parts in (ours, right))
    for grad, right_grad in zip(grads, right_grads):
        torch.testing.assert_close(grad, right_grad, rtol=2 * torch.finfo(grad.dtype).eps, atol=1e-8)


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.1}], ids=str)
def test_so_many_labels_that_they_are_counted_first(settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "FEW_LABELS", 8)
    monkeypatch.setattr(loss, "LABELS", 4)  # 4 programs, every one of which takes every 4th block of 4 labels
    numbers = {"beta": 1.0, **settings}
    case = Case("many", shapes=(), batch=70, classes=3, settings=numbers, labels="some ignored", class_weight=True)
    loss_cases.check(backend.lit_loss, case)


def test_gradient_keeps_the_students_layout() -> None:
    student = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    logits = torch.randn(3, 5).t().requires_grad_()
    labels = torch.zeros(5, dtype=torch.long)
    teacher = torch.randn(2, 8, 4, 4)
    total = backend.lit_loss(Inputs([student], [teacher], logits, logits.detach(), labels), LossOptions()).total
    grad, logits_grad = torch.autograd.grad(total, (student, logits))
    assert grad.is_contiguous(memory_format=torch.channels_last)
    assert logits_grad.is_contiguous()
    torch.testing.assert_close(grad, 0.25 * 2 * (student - teacher).detach() / student.numel())


# --- of hidden states and heads


@pytest.mark.parametrize("dtype", but_first([F32, F64, F16, BF16]), ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 0.5, "label_smoothing": 0.1, "class_weight": torch.linspace(0, 2, 31)},
        {"alpha": 0.4, "rows": torch.arange(13) % 4 != 1, "normalizer": linear_cases.Counts(20, 30)},
        {"alpha": 1.0},
        {"alpha": 0.0},
    ],
    ids=lambda settings: ", ".join(settings),
)
def test_chunks_of_hidden_states_and_heads(settings: dict, dtype: torch.dtype) -> None:
    problem = linear_cases.build(dtype)
    found = problem.result(backend="triton", chunk=4, **settings)
    linear_cases.assert_right(found, linear_cases.oracle(problem, **settings), dtype, problem.leaves())
    loss = problem.loss(backend="triton", chunk=4, **settings)
    for grad, right in zip(torch.autograd.grad(loss, problem.leaves(), torch.tensor(2.0, dtype=loss.dtype)), found[1:]):
        torch.testing.assert_close(grad, 2 * right)


# --- labels


@pytest.mark.parametrize("label", [10, 1 << 40, -1, -101])
def test_label_out_of_range_is_an_error_that_names_it(label: int) -> None:
    problem = loss_cases.build(PLAIN)
    problem.labels[1] = label
    with pytest.raises(IndexError, match=rf"label {label} is out of range for 10 classes"):
        backend.lit_loss(problem.inputs(), LossOptions())


@pytest.mark.parametrize("label", [10, 1 << 40, -1, -101])
def test_label_out_of_range_makes_the_kernels_give_nan_and_read_nothing(
    label: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "check_label_values", lambda *_: None)  # as on a GPU, where the host cannot look
    problem = loss_cases.build(Case("plain", class_weight=True))
    problem.labels[1] = label
    result = loss_cases.run(backend.lit_loss, problem, LossOptions())
    assert result.parts.total.isnan()
    assert result.parts.ce.isnan()
    assert result.parts.kl.isfinite()
    assert result.grads[-1].isnan().all()
    assert all(grad.isfinite().all() for grad in result.grads[:-1])


def test_ignore_index_may_be_a_class() -> None:
    problem = loss_cases.build(PLAIN)
    problem.labels[:] = torch.tensor([3, 4, 3])
    options = LossOptions(ignore_index=3, alpha=1.0, beta=1.0)
    assert torch.isclose(backend.lit_loss(problem.inputs(), options).ce, eager.lit_loss(problem.inputs(), options).ce)


# --- launches


def launches(case: Case) -> list[str]:
    problem, options = loss_cases.build(case), case.options
    sections = [backend._section(s.detach(), t, True) for s, t in zip(problem.student_irs, problem.teacher_irs)]
    rows = backend._rows(problem.inputs(), True)
    numbers = loss.Settings((1.0,) * len(sections), 0, options.alpha, options.beta, options.tau, True, -100, 0.0)
    parts = torch.empty(3 + len(sections))
    return [one.kernel.__name__ for one in loss.loss_launches(sections, rows, parts, None, numbers)]


@pytest.mark.parametrize(
    ("case", "kernels"),
    [
        (PLAIN, ["loss_kernel", "parts_kernel"]),
        (Case("labels only", settings={"beta": 1.0}, shapes=()), ["loss_kernel", "parts_kernel"]),
        (Case("IRs only", settings={"beta": 0.0}), ["loss_kernel", "parts_kernel"]),
        (Case("long rows", classes=3000), ["loss_kernel", "loss_kernel", "parts_kernel"]),
        (Case("17 sections", shapes=((3, 2),) * 17), ["loss_kernel"] * 3 + ["parts_kernel"]),
        (Case("many rows", batch=9000, classes=2), ["label_kernel", "loss_kernel", "parts_kernel"]),
    ],
    ids=lambda value: str(value) if isinstance(value, Case) else "",
)
def test_two_launches_for_the_usual_loss(case: Case, kernels: list[str]) -> None:
    assert launches(case) == kernels


# --- autograd


def test_gradcheck() -> None:
    problem = loss_cases.build(Case("double", F64, shapes=((2,), (1,)), classes=3, class_weight=True))
    problem.labels[:] = torch.tensor([0, 1, 2])
    options = LossOptions(alpha=0.4, beta=0.6, tau=2.0, label_smoothing=0.1, section_weights=(1.5, 0.5), ignore_index=1)

    def loss(logits: Tensor, *irs: Tensor) -> Tensor:
        return backend.lit_loss(Inputs(irs, problem.teacher_irs, logits, *problem.inputs()[3:]), options).total

    assert torch.autograd.gradcheck(loss, (problem.student_logits, *problem.student_irs))


@pytest.mark.parametrize("dtype", but_first([BF16, F64, F32, F16]), ids=str)
def test_a_graph_may_be_walked_twice(dtype: torch.dtype) -> None:
    problem = loss_cases.build(Case("plain", dtype))
    grads = loss_cases.run(backend.lit_loss, problem, LossOptions()).grads
    total = backend.lit_loss(problem.inputs(), LossOptions()).total
    total.backward(retain_graph=True)
    (2 * total).backward(retain_graph=True)
    (4 * total).backward()  # the last time: rescaled in place
    for leaf, grad in zip(problem.leaves(), grads):
        torch.testing.assert_close(leaf.grad, 7 * grad, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


def test_no_gradient_is_computed_where_none_is_needed() -> None:
    problem = loss_cases.build(PLAIN)
    parts, ir_grads, logits_grad = OP(*op_arguments(problem, PLAIN.options, need_grad=False))
    assert ir_grads == []
    assert logits_grad.shape == (0,)
    with torch.no_grad():
        total = backend.lit_loss(problem.inputs(), PLAIN.options).total
    assert not total.requires_grad
    assert torch.equal(total, parts[0])


def test_double_backward_is_refused() -> None:
    problem = loss_cases.build(PLAIN)
    total = backend.lit_loss(problem.inputs(), LossOptions()).total
    with pytest.raises(RuntimeError, match="lit_loss does not support double backward"):
        torch.autograd.grad(total, problem.leaves(), create_graph=True)


def test_autocast_does_not_change_the_result() -> None:
    problem = loss_cases.build(PLAIN)
    plain = backend.lit_loss(problem.inputs(), LossOptions())
    with torch.autocast("cpu", dtype=BF16):
        assert all(map(torch.equal, backend.lit_loss(problem.inputs(), LossOptions()), plain))


def test_grad_scale_keeps_float16_gradients_from_underflow() -> None:
    case = MATRIX["half underflow saved by the scale"]
    problem = loss_cases.build(case)
    (grad,) = loss_cases.run(backend.lit_loss, problem, case.options).grads
    assert (grad != 0).float().mean() > 0.99
    problem.grad_scale = None
    (unscaled,) = loss_cases.run(backend.lit_loss, problem, case.options).grads
    assert (unscaled.float() - grad.float() / 65536).abs().max() > 1e-8  # what the scale is for


@pytest.mark.parametrize("dtype", but_first([F16, F32, BF16, F64]), ids=str)
@pytest.mark.parametrize("grad_output", [1.0, 128.0, 3.0])
def test_any_grad_output_is_right_whatever_scale_was_expected(grad_output: float, dtype: torch.dtype) -> None:
    case = Case("plain", dtype)
    problem = loss_cases.build(case)
    grads = loss_cases.run(backend.lit_loss, problem, LossOptions()).grads
    problem.grad_scale = torch.tensor(128.0)
    total = backend.lit_loss(problem.inputs(), LossOptions()).total
    scaled = torch.autograd.grad(total, problem.leaves(), torch.tensor(grad_output, dtype=total.dtype))
    for grad, plain in zip(scaled, grads):
        torch.testing.assert_close(grad, grad_output * plain, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


# --- rescale_


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("factor", [0.3, 65536.0, -2.0, float("inf")])
def test_rescale_multiplies_in_the_type_that_is_computed_in(dtype: torch.dtype, factor: float) -> None:
    grads = [torch.randn(shape) * 1e-3 for shape in ((2, 3), (2500,), (0,), (), (4, 2, 3, 3))]
    grads = [grad.to(dtype) for grad in grads]
    grads[4] = grads[4].to(memory_format=torch.channels_last)
    compute = F64 if dtype == F64 else F32
    by = torch.tensor(factor, dtype=F64)
    expected = [(grad.to(compute) * by.to(compute)).to(dtype) for grad in grads]
    RESCALE(grads, by)
    for grad, right in zip(grads, expected):
        torch.testing.assert_close(grad, right, rtol=0, atol=0)


def test_rescale_by_1_writes_nothing() -> None:
    grad = torch.full((10,), 0x7FC1, dtype=torch.int16).view(BF16)  # a NaN that rounding would change
    RESCALE([grad], torch.tensor(1.0))
    assert (grad.view(torch.int16) == 0x7FC1).all()
    RESCALE([grad], torch.tensor(0.3), torch.tensor(0.3))
    assert (grad.view(torch.int16) == 0x7FC1).all()
    RESCALE([grad], torch.tensor(0.3), torch.tensor(0.6))
    assert (grad.view(torch.int16) != 0x7FC1).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale_dtype", DTYPES, ids=str)
def test_rescale_divides_the_factor_by_the_scale_in_float64(dtype: torch.dtype, scale_dtype: torch.dtype) -> None:
    factor, scale = torch.tensor(0.7), torch.tensor(3.0, dtype=scale_dtype)
    grad = torch.randn(50).to(dtype)
    compute = F64 if dtype == F64 else F32
    expected = (grad.to(compute) * (factor.item() / 3.0)).to(dtype)
    RESCALE([grad], factor, scale)
    torch.testing.assert_close(grad, expected, rtol=0, atol=0)


def test_rescale_refuses_what_is_not_dense() -> None:
    with pytest.raises(ValueError, match="rescale_: expected dense tensors"):
        RESCALE([torch.zeros(1).expand(4)], torch.tensor(2.0))


# --- as an op


def op_arguments(problem: loss_cases.Problem, options: LossOptions, need_grad: bool) -> tuple:
    detached = [[t.detach() for t in side] for side in (problem.student_irs, problem.teacher_irs)]
    others = [t if t is None else t.detach() for t in problem.inputs()[2:-1]]
    return (*arguments(Inputs(*detached, *others, problem.ir_rows), options), need_grad)


CHECKED = [
    Case("all", F16, layout="channels_last", class_weight=True, grad_scale=8.0, settings={"label_smoothing": 0.1}),
    Case("IRs", F64, layout="expanded", settings={"beta": 0.0}),
    Case("logits", F32, shapes=(), settings={"beta": 1.0}),
    Case("soft labels, rows", F16, labels="soft", batch=9, rows=True, ir_rows=1),
]


@pytest.mark.parametrize(
    ("case", "need_grad"),
    in_turn([(case, need) for case in CHECKED for need in (True, False)], lambda chosen: chosen[0].name),
    ids=str,
)
def test_opcheck(case: Case, need_grad: bool) -> None:
    torch.library.opcheck(OP, op_arguments(loss_cases.build(case), case.options, need_grad))


@pytest.mark.parametrize("scale", [None, torch.tensor(4.0)])
def test_opcheck_of_rescale(scale: Tensor | None) -> None:
    torch.library.opcheck(RESCALE, ([torch.randn(3, 2), torch.randn(5)], torch.tensor(2.0), scale))


@pytest.mark.parametrize("scaled", but_first([True, False]))
def test_compiles_to_one_graph(scaled: bool) -> None:
    problem = loss_cases.build(PLAIN)
    scale = torch.tensor(16.0) if scaled else None
    grads = loss_cases.run(backend.lit_loss, problem, LossOptions()).grads

    def loss(student_irs: list[Tensor], logits: Tensor, grad_scale: Tensor | None) -> Tensor:
        rest = (problem.teacher_logits, problem.labels)
        return lit_loss(student_irs, problem.teacher_irs, logits, *rest, grad_scale=grad_scale, backend="triton")

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    total = compiled([s * 1.0 for s in problem.student_irs], problem.student_logits, scale)
    assert torch.equal(total, loss(problem.student_irs, problem.student_logits, scale))
    (3 * total).backward()
    for leaf, grad in zip(problem.leaves(), grads):
        torch.testing.assert_close(leaf.grad, 3 * grad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_irs": []}, "student gives 3 IRs, teacher 0"),
        ({"teacher_irs": [torch.zeros(3, 5, 4, 4)] * 3}, r"section 2: student gives \(B, 7, 2, 3\), teacher \(B, 5, 4"),
        ({"student_logits": torch.zeros(8)}, r"student_logits: expected shape \(B, classes\) .*, got \(8,\)"),
        ({"teacher_logits": torch.zeros(3, 9)}, r"teacher_logits: expected .* \(3, 10\), got \(3, 9\)"),
        ({"labels": torch.zeros(4, dtype=torch.long)}, r"labels: expected shape \(3,\) .*, got \(4,\)"),
        ({"class_weight": torch.ones(9)}, r"class_weight: expected shape \(10,\), .*, got \(9,\)"),
        ({"student_irs": [], "teacher_irs": [], "student_logits": None}, "expected IRs or student_logits"),
        ({"labels": torch.rand(3, 9)}, r"labels: expected probabilities of the logits' shape \(3, 10\), got \(3, 9\)"),
        ({"rows": torch.ones(4).bool()}, r"rows: expected shape \(3,\), .*, got \(4,\)"),
        ({"rows": torch.ones(3).bool()}, "rows that do not count need counts, got None"),
        ({"ir_rows": [torch.ones(3).bool()] * 2}, "ir_rows: expected one tensor or None for each of the 3 sections"),
        ({"counts": torch.ones(4)}, r"counts: expected 5 numbers, got shape \(4,\)"),
    ],
)
def test_the_op_refuses_what_it_would_read_out_of_bounds(change: dict, message: str) -> None:
    problem = loss_cases.build(PLAIN)
    vars(problem).update(change)
    with pytest.raises(ValueError, match=message):
        OP(*op_arguments(problem, PLAIN.options, need_grad=True))


# --- arguments of kernels


@triton.jit
def echo_kernel(floats, integers, numbers, counts):
    tl.store(numbers, exact(floats[0], floats[1], floats[2]))
    tl.store(counts, integer(integers[0]))


@given(number=st.floats(-1e30, 1e30).filter(lambda x: x == 0 or abs(x) > 1e-15), count=st.integers(0, 1 << 58))
def test_numbers_reach_the_kernel_exactly(number: float, count: int) -> None:
    numbers, counts = torch.zeros(1, dtype=F64), torch.zeros(1, dtype=torch.int64)
    echo_kernel[(1,)](three_floats(number), (coded(count),), numbers, counts)
    assert numbers.item() == number
    assert counts.item() == count


@triton.jit
def find_kernel(numels, programs, found, COUNT: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    section, first, count, numel = find_section(program, numels, programs, COUNT)
    place = found + program * 4
    tl.store(place, section)
    tl.store(place + 1, first)
    tl.store(place + 2, count)
    tl.store(place + 3, numel)


def test_programs_find_their_section_also_beyond_32_bits() -> None:
    numels, programs = [3, 1 << 40, 0, 7], [1, 5, 1, 2]
    found = torch.zeros(9, 4, dtype=torch.int64)
    find_kernel[(9,)](tuple(map(coded, numels)), tuple(map(coded, programs)), found, 4)
    rows = [[i, sum(programs[:i]), programs[i], numels[i]] for i in range(4) for _ in range(programs[i])]
    assert found.tolist() == rows
