"""linear_kd_loss: the KD loss of hidden states and heads, in chunks of rows."""

from __future__ import annotations

import doctest
import functools
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import linear_cases
import pytest
import torch
from linear_cases import BF16, DTYPES, F16, F32, F64, Counts, Problem, assert_right, build, oracle
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lit_fast.errors import UnavailableError
from lit_fast.loss import functional, linear_kd
from lit_fast.loss.backends import chunks, linear, native
from lit_fast.loss.functional import kd_loss, linear_kd_loss

OP = torch.ops.lit_fast.linear_kd.default
WAYS = ("native", "plain", "eager")
WEIGHT = torch.linspace(0.0, 2.0, 31)
SETTINGS: list[dict[str, Any]] = [
    {},
    {"alpha": 1.0},
    {"alpha": 0.0, "tau": 2.0},
    {"alpha": 0.3, "tau": 1.5, "tau_squared": False},
    {"alpha": 0.5, "label_smoothing": 0.1},
    {"alpha": 0.5, "class_weight": WEIGHT},
    {"alpha": 1.0, "class_weight": WEIGHT, "label_smoothing": 0.2},
    {"alpha": 0.5, "ignore_index": 3},
    {"alpha": 0.4, "rows": torch.arange(13) % 4 != 1},
    {"alpha": 1.0, "rows": torch.arange(13) > 5},
    {"alpha": 0.4, "normalizer": Counts(20, 30)},
    {"alpha": 0.4, "normalizer": Counts(torch.tensor(7.5), torch.tensor(30)), "class_weight": WEIGHT},
]
CASES = [(settings, dtype) for settings in SETTINGS for dtype in DTYPES]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Settings of the loss for each implementation; "plain" is what "auto" takes where nothing else is there."""
    if request.param == "native" and not native.available()[0]:
        pytest.skip(native.available()[1])
    if request.param == "plain":
        monkeypatch.setattr(linear, "FUSED", {})
    return {"backend": "auto" if request.param == "plain" else request.param}


def named(value: Any) -> str:
    return ", ".join(value) or "plain" if isinstance(value, dict) else str(value).removeprefix("torch.")


# --- results


@pytest.mark.parametrize(("settings", "dtype"), CASES, ids=named)
def test_values_and_gradients_are_those_of_whole_logits(settings: dict, dtype: torch.dtype, way: dict) -> None:
    problem = build(dtype)
    if settings.get("ignore_index") == 3:
        problem.labels[1::3] = 3
    found = problem.result(**settings, **way, chunk=4)
    assert found[0].dtype == (F64 if dtype == F64 else F32)
    assert_right(found, oracle(problem, **settings), dtype, problem.leaves())


@pytest.mark.parametrize("chunk", [1, 3, 8, 20, None])
@pytest.mark.parametrize(
    ("rows", "classes", "widths"), [(1, 31, (5, 7)), (7, 33, (4, 4)), (12, 1, (3, 2)), (20, 64, (8, 1)), (9, 2, (1, 6))]
)
def test_any_shape_and_chunk(rows: int, classes: int, widths: tuple[int, int], chunk: int | None, way: dict) -> None:
    problem = build(F32, rows, classes, widths, ignored=rows > 1)
    assert_right(problem.result(**way, chunk=chunk), oracle(problem), F32, problem.leaves())


def test_many_classes_are_multiplied_in_blocks(way: dict) -> None:
    problem = build(F32, 5, 30_000, (40, 3))
    assert_right(problem.result(**way, chunk=2), oracle(problem), F32, problem.leaves())


def test_without_bias(way: dict) -> None:
    problem = build(F64, bias=False)
    assert_right(problem.result(**way, chunk=4), oracle(problem), F64, problem.leaves())


@pytest.mark.parametrize("dtypes", [(F16, F32), (F32, BF16), (BF16, F16), (F32, F64)], ids=str)
def test_student_and_teacher_may_have_different_dtypes(dtypes: tuple, way: dict) -> None:
    problem = build(dtypes[0], teacher_dtype=dtypes[1])
    found = problem.result(**way, chunk=4)
    assert found[0].dtype == (F64 if F64 in dtypes else F32)
    worst = max(dtypes, key=lambda dtype: linear_cases.GRADIENT[dtype])
    assert_right(found, oracle(problem), worst, problem.leaves())


@pytest.mark.parametrize("settings", SETTINGS[:8], ids=named)
def test_eager_is_kd_loss_of_both_heads_bit_for_bit(settings: dict) -> None:
    problem = build(F32)
    problem.labels[1::3] = settings.get("ignore_index", -100)
    z_s = F.linear(problem.student_hidden, problem.student_weight, problem.student_bias)
    z_t = F.linear(problem.teacher_hidden, problem.teacher_weight, problem.teacher_bias)
    expected = kd_loss(z_s, z_t, problem.labels, **settings, backend="eager")
    assert torch.equal(problem.loss(**settings, backend="eager"), expected)


def test_parts_add_up_to_the_loss(way: dict) -> None:
    problem = build(F64)
    parts = problem.loss(alpha=0.3, chunk=4, return_parts=True, **way)
    assert torch.equal(parts.total, problem.loss(alpha=0.3, chunk=4, **way))
    torch.testing.assert_close(parts.total.detach(), 0.3 * parts.ce + 0.7 * parts.kl)
    torch.testing.assert_close(parts.ce, oracle(problem, alpha=1.0)[0])
    torch.testing.assert_close(parts.kl, oracle(problem, alpha=0.0)[0])
    assert [part.requires_grad for part in parts] == [True, False, False, False]
    assert parts.ir.shape == (0,)


def test_a_head_is_a_module_a_weight_or_a_pair(way: dict) -> None:
    problem = build(F32)
    modules = nn.Linear(5, 31), nn.Linear(7, 31)
    pairs = [(module.weight, module.bias) for module in modules]
    one, other = (
        linear_kd_loss(problem.student_hidden, heads[0], problem.teacher_hidden, heads[1], problem.labels, **way)
        for heads in (modules, pairs)
    )
    assert torch.equal(one, other)
    one.backward()
    assert modules[0].weight.grad is not None
    assert modules[0].bias.grad is not None
    assert modules[1].weight.grad is None
    weights = problem.student_weight, problem.teacher_weight
    one, other = (
        linear_kd_loss(problem.student_hidden, heads[0], problem.teacher_hidden, heads[1], problem.labels, **way)
        for heads in (weights, [(weight, None) for weight in weights])
    )
    assert torch.equal(one, other)


def test_alpha_1_needs_no_teacher_and_alpha_0_no_labels(way: dict) -> None:
    problem = build(F32)
    student = problem.student_hidden, (problem.student_weight, problem.student_bias)
    teacher = problem.teacher_hidden, (problem.teacher_weight, problem.teacher_bias)
    hard = linear_kd_loss(*student, labels=problem.labels.int(), alpha=1.0, **way)
    torch.testing.assert_close(hard, problem.loss(alpha=1.0, **way))
    soft = linear_kd_loss(*student, *teacher, alpha=0.0, **way)
    torch.testing.assert_close(soft, problem.loss(alpha=0.0, **way))


@pytest.mark.parametrize(
    "layout", ["transposed hidden", "sliced hidden", "transposed weight", "sliced weight", "offset"]
)
def test_any_strides(layout: str, way: dict) -> None:
    problem = build(F32)
    wanted = problem.result(**way, chunk=4)
    for name in ("student_hidden", "student_weight", "teacher_hidden", "teacher_weight"):
        tensor = getattr(problem, name).detach()
        if layout.endswith(name.partition("_")[2]):
            spread = tensor.new_empty(tensor.shape[0], 2 * tensor.shape[1])[:, ::2].copy_(tensor)
            tensor = tensor.t().contiguous().t() if layout.startswith("transposed") else spread
        elif layout == "offset":
            tensor = tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)
        setattr(problem, name, tensor.requires_grad_(name.startswith("student")))
    for found, right in zip(problem.result(**way, chunk=4), wanted):
        torch.testing.assert_close(found, right)


def test_gradcheck(way: dict) -> None:
    problem = build(F64, 5, 6, (3, 2))
    settings = {"alpha": 0.4, "tau": 2.0, "label_smoothing": 0.1, "chunk": 2, "rows": torch.arange(5) != 2, **way}

    def loss(*leaves: Tensor) -> Tensor:
        problem.student_hidden, problem.student_weight, problem.student_bias = leaves
        return problem.loss(**settings)

    assert torch.autograd.gradcheck(loss, problem.leaves())


# --- rows that do not count


def test_nothing_of_a_row_that_does_not_count_is_looked_at(way: dict) -> None:
    problem, rows = build(F32), torch.arange(13) % 3 != 0
    right = oracle(problem, rows=rows)
    with torch.no_grad():
        problem.student_hidden[~rows] = float("nan")
        problem.teacher_hidden[~rows] = float("inf")
        problem.labels[~rows] = 999
    found = problem.result(rows=rows, chunk=4, **way)
    assert (found[1][~rows] == 0).all()
    assert_right(found, right, F32, problem.leaves())


def test_ignored_rows_count_in_kl_alone(way: dict) -> None:
    problem = build(F32)
    grad = problem.result(alpha=0.5, chunk=4, **way)[1]
    assert (grad[1::3] != 0).any(1).all()
    grad = problem.result(alpha=1.0, chunk=4, **way)[1]
    assert (grad[1::3] == 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("class_weight", [None, WEIGHT], ids=["", "class weights"])
def test_labels_that_are_all_ignored_give_nan_and_the_gradient_of_kl(
    smoothing: float, class_weight: Tensor | None, way: dict
) -> None:
    problem = build(F32)
    problem.labels[:] = -100
    settings = {"alpha": 0.5, "label_smoothing": smoothing, "class_weight": class_weight}
    found = problem.result(chunk=4, **settings, **way)
    assert found[0].isnan()
    right = oracle(problem, alpha=0.0)
    for grad, exact in zip(found[1:], right[1:]):
        torch.testing.assert_close(grad.double(), 0.5 * exact, rtol=1e-4, atol=1e-7)
    hard = problem.result(chunk=4, **settings | {"alpha": 1.0}, **way)
    assert hard[0].isnan()
    assert all((grad == 0).all() for grad in hard[1:])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_chunk_whose_labels_weigh_nothing(smoothing: float, way: dict) -> None:
    problem = build(F32, ignored=False)
    problem.labels[4:8] = 0  # the second chunk: of weight 0
    settings = {"alpha": 0.5, "class_weight": WEIGHT, "label_smoothing": smoothing}
    assert_right(problem.result(chunk=4, **settings, **way), oracle(problem, **settings), F32, problem.leaves())


def test_no_rows_give_nan_and_gradients_of_0(way: dict) -> None:
    for problem, settings in ((build(F32, rows=0), {}), (build(F32), {"rows": torch.zeros(13, dtype=torch.bool)})):
        loss, *grads = problem.result(**settings, **way)
        assert loss.isnan()
        assert all((grad == 0).all() for grad in grads)
        assert [grad.shape for grad in grads] == [leaf.shape for leaf in problem.leaves()]


def test_nan_gives_nan(way: dict) -> None:
    problem = build(F32)
    with torch.no_grad():
        problem.student_hidden[4] = float("nan")
    assert problem.loss(**way).isnan()


def test_classes_masked_in_both_heads_add_nothing(way: dict) -> None:
    problem = build(F32)
    problem.labels[problem.labels > 20] = 0
    fewer = Problem(*(getattr(problem, name).detach() for name in vars(problem)))
    for name in ("student_weight", "student_bias", "teacher_weight", "teacher_bias"):
        setattr(fewer, name, getattr(fewer, name)[:21].requires_grad_(name.startswith("student")))
    fewer.student_hidden.requires_grad_()
    with torch.no_grad():
        problem.student_bias[21:] = problem.teacher_bias[21:] = -float("inf")
    found, right = problem.result(chunk=4, **way), oracle(fewer)
    torch.testing.assert_close(found[0].double(), right[0])
    torch.testing.assert_close(found[1].double(), right[1], rtol=1e-5, atol=1e-6)
    assert (found[2][21:] == 0).all()


# --- normalizer


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-12), (F32, 1e-6)], ids=str)
@pytest.mark.parametrize("class_weight", [None, WEIGHT], ids=["", "class weights"])
def test_micro_batches_of_unequal_padding_add_up_to_the_whole(
    dtype: torch.dtype, tolerance: float, class_weight: Tensor | None, way: dict
) -> None:
    problem, counted = build(dtype, rows=40), torch.arange(40) % 7 > 1
    counted[10:14] = False  # a micro-batch of padding alone
    problem.labels[15:20] = -100
    settings = {"alpha": 0.6, "class_weight": class_weight, "label_smoothing": 0.1, "chunk": 4, **way}
    whole = problem.result(rows=counted, **settings)
    labels = problem.labels[counted & (problem.labels != -100)]
    ce = len(labels) if class_weight is None else class_weight.double()[labels].sum()
    counts = Counts(ce, counted.sum())
    edges = [0, 10, 14, 20, 21, 40]
    parts = [(problem.rows(*own), counted[slice(*own)]) for own in pairwise(edges)]
    found = [part.result(rows=rows, normalizer=counts, **settings) for part, rows in parts]
    assert found[1][0] == 0
    sums = [
        torch.stack([losses[0] for losses in found]).sum(),
        torch.cat([losses[1] for losses in found]),
        *(torch.stack([losses[i] for losses in found]).sum(0) for i in (2, 3)),
    ]
    for total, right in zip(sums, whole):
        torch.testing.assert_close(total, right, rtol=tolerance, atol=tolerance * float(right.abs().max()))


# --- precision


@pytest.mark.parametrize("hidden", [F32, BF16], ids=str)
def test_autocast_multiplies_in_its_dtype(hidden: torch.dtype, way: dict) -> None:
    problem = build(F32)
    problem.student_hidden = problem.student_hidden.detach().to(hidden).requires_grad_()
    with torch.autocast("cpu", dtype=BF16):
        z_s = F.linear(problem.student_hidden, problem.student_weight, problem.student_bias)
        z_t = F.linear(problem.teacher_hidden, problem.teacher_weight, problem.teacher_bias)
        expected = kd_loss(z_s, z_t, problem.labels)
        loss = problem.loss(chunk=4, **way)
    assert loss.dtype == F32
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    grads = [torch.autograd.grad(one, problem.leaves()) for one in (loss, expected)]
    for leaf, grad, right in zip(problem.leaves(), *grads):
        assert grad.dtype == leaf.dtype
        torch.testing.assert_close(grad, right, rtol=2e-2, atol=2e-2 * float(right.abs().max()))
    plain = problem.loss(chunk=4, **way) if hidden == F32 else loss
    assert hidden == BF16 or not torch.equal(plain, loss)


@functools.cache
def flat() -> tuple[Problem, list[Tensor]]:
    """Flat logits, many rows and classes, and the exact gradients of the head.

    A class that is no label has gradients below the least number of float16.
    """
    problem = build(F16, 2048, 4000, (3, 2), ignored=False)
    with torch.no_grad():
        problem.student_hidden *= 0.01
        problem.student_bias *= 0.1
    problem.labels %= 1000
    return problem, oracle(problem, alpha=1.0)[2:]


@pytest.mark.parametrize("known", [False, True])
def test_float16_gradients_do_not_vanish_under_a_loss_scale(known: bool, way: dict) -> None:
    problem, gradients = flat()
    scale = torch.tensor(65536.0)
    loss = problem.loss(alpha=1.0, grad_scale=scale if known else None, **way)
    grads = torch.autograd.grad(loss, problem.leaves(), scale)
    for grad, exact in zip(grads[1:], gradients):
        assert exact[1000:].abs().median() < 1e-3 / 4
        bound = 4e-3 * float(exact[1000:].abs().max())
        torch.testing.assert_close(grad[1000:].double() / 65536, exact[1000:], rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("grad_output", [1.0, 128.0, 3.0])
def test_any_grad_output_is_right_whatever_scale_was_expected(
    grad_output: float, dtype: torch.dtype, way: dict
) -> None:
    problem = build(dtype)
    plain = problem.result(chunk=4, **way)[1:]
    loss = problem.loss(chunk=4, grad_scale=torch.tensor(128.0), **way)
    found = torch.autograd.grad(loss, problem.leaves(), torch.tensor(grad_output))
    for grad, right in zip(found, plain):
        bound = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(grad, grad_output * right, rtol=bound, atol=bound * float(right.abs().max()))


def test_small_differences_of_student_and_teacher_are_exact(way: dict) -> None:
    problem = build(F32, widths=(5, 5), ignored=False)
    noise = 1e-3 * torch.randn(13, 5, generator=torch.Generator().manual_seed(1))
    problem.teacher_hidden = problem.student_hidden.detach() + noise
    problem.teacher_weight, problem.teacher_bias = problem.student_weight.detach(), problem.student_bias.detach()
    right = oracle(problem, alpha=0.0)[0]
    assert right < 1e-4
    # What is left is the logits' own rounding, 1e-7 of about 3 against differences of 1e-3.
    torch.testing.assert_close(problem.loss(alpha=0.0, **way).double(), right, rtol=1e-3, atol=0)


# --- autograd


def test_a_graph_may_be_walked_twice(way: dict) -> None:
    problem = build(F32)
    grads = problem.result(chunk=4, **way)[1:]
    loss = problem.loss(chunk=4, **way)
    loss.backward(retain_graph=True)
    (2 * loss).backward()
    for leaf, grad in zip(problem.leaves(), grads):
        torch.testing.assert_close(leaf.grad, 3 * grad)


def test_double_backward_is_refused(way: dict) -> None:
    problem = build(F32)
    with pytest.raises(RuntimeError, match="lit_loss does not support double backward"):
        torch.autograd.grad(problem.loss(**way), problem.leaves(), create_graph=True)


def test_the_loss_may_be_changed_in_place(way: dict) -> None:
    problem = build(F32)
    half = problem.result(**way)[1] / 2
    loss = problem.loss(**way)
    loss /= 2
    torch.testing.assert_close(torch.autograd.grad(loss, problem.student_hidden)[0], half)


def arguments(problem: Problem, needed: list[bool], kernel: str = "", **changes: Any) -> tuple[Any, ...]:
    """The op's."""
    tensors = [None if tensor is None else tensor.detach() for tensor in vars(problem).values()]
    rest: dict[str, Any] = dict.fromkeys(chunks.LinearInputs._fields[7:]) | changes
    return (*tensors, *rest.values(), 0.5, 6.0, True, -100, 0.1, 4, None, kernel, needed)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_gradients_that_nobody_needs_are_not_computed(frozen: str) -> None:
    problem = build(F32)
    place = ["hidden", "weight", "bias"].index(frozen)
    whole = OP(*arguments(problem, [True] * 3))[1:]
    found = OP(*arguments(problem, [number != place for number in range(3)]))[1:]
    assert found[place].shape == (0,)
    assert all(torch.equal(found[i], whole[i]) for i in range(3) if i != place)
    problem.leaves()[place].requires_grad_(False)
    problem.loss(chunk=4).backward()
    assert [leaf.grad is None for leaf in problem.leaves()] == [number == place for number in range(3)]


def test_without_gradients_none_are_computed(monkeypatch: pytest.MonkeyPatch, way: dict) -> None:
    problem = build(F32)
    right = problem.loss(chunk=4, **way)
    monkeypatch.setattr(chunks._Gradients, "add", None)
    with torch.no_grad():
        loss = problem.loss(chunk=4, **way)
    assert torch.equal(loss, right.detach())
    for leaf in problem.leaves():
        leaf.requires_grad_(False)
    assert not problem.loss(chunk=4, **way).requires_grad


def test_inputs_are_left_as_they_are(way: dict) -> None:
    problem = build(F32)
    before = [tensor.detach().clone() for tensor in vars(problem).values()]
    problem.result(chunk=4, rows=torch.arange(13) != 3, **way)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(vars(problem).values(), before))


# --- memory


class Largest(TorchDispatchMode):
    """The most elements of any tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is OP:  # what happens inside the op is looked at as well
            with self:
                return linear._linear_kd(*args)
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else [result]
        self.elements = max([self.elements, *(one.numel() for one in made if isinstance(one, Tensor))])
        return result


@pytest.mark.parametrize("settings", [{}, {"rows": torch.arange(200) % 2 == 0}, {"alpha": 1.0}], ids=named)
def test_no_tensor_is_as_large_as_the_logits(settings: dict, way: dict) -> None:
    problem = build(F32, rows=200, classes=301, widths=(2, 3))
    with Largest() as largest:
        loss = problem.loss(chunk=8, **settings, **way)
        loss.backward()
    if way["backend"] == "eager":
        assert largest.elements >= 100 * 301  # half of the rows may not count
    else:
        assert 0 < largest.elements <= 8 * 301


@pytest.mark.parametrize("classes", [100, 32_000, 250_000])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_chunks_have_a_bounded_number_of_bytes(classes: int, dtype: torch.dtype) -> None:
    for device, bound in (("cpu", 60 << 20), ("cuda", 512 << 20)):
        rows = chunks.rows_at_once(classes, dtype, torch.device(device))
        assert rows >= 32
        assert rows == 32 or rows * classes * dtype.itemsize * 2 < bound


# --- compiled, and as an op


@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_to_one_graph(autocast: bool, way: dict) -> None:
    problem = build(F32)
    right = problem.result(chunk=4, **way) if not autocast else None

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=BF16, enabled=autocast):
            student, teacher = (weight, bias), (problem.teacher_weight, problem.teacher_bias)
            return linear_kd_loss(hidden, student, problem.teacher_hidden, teacher, problem.labels, chunk=4, **way)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    total = compiled(*problem.leaves())
    torch.testing.assert_close(total, loss(*problem.leaves()), rtol=1e-5, atol=0)
    (2 * total).backward()
    if right is not None:
        for leaf, grad in zip(problem.leaves(), right[1:]):
            torch.testing.assert_close(leaf.grad, 2 * grad)


def test_a_compiled_graph_takes_any_number_of_rows() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(linear_kd_loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (13, 9, 20):
        problem = build(F32, rows=rows)
        student, teacher = (
            (problem.student_weight, problem.student_bias),
            (problem.teacher_weight, problem.teacher_bias),
        )
        loss = compiled(problem.student_hidden, student, problem.teacher_hidden, teacher, problem.labels)
        found = [loss.detach(), *torch.autograd.grad(loss, problem.leaves())]
        assert_right(found, oracle(problem), F32, problem.leaves())


@pytest.mark.parametrize("needed", [[True, True, True], [True, False, False], [False, False, False]], ids=str)
@pytest.mark.parametrize("dtypes", [(F32, F32), (F16, F16), (F32, F64)], ids=str)
def test_opcheck(dtypes: tuple[torch.dtype, torch.dtype], needed: list[bool]) -> None:
    torch.library.opcheck(OP, arguments(build(dtypes[0], teacher_dtype=dtypes[1]), needed, rows=torch.arange(13) != 3))


def test_checks_read_no_values() -> None:
    problem = build(F32)
    meta = Problem(*(tensor.detach().to("meta") for tensor in vars(problem).values()))
    assert meta.loss(backend="eager").shape == ()
    assert meta.loss().shape == ()


# --- what is refused


def test_a_label_out_of_range_is_named(way: dict) -> None:
    problem = build(F32)
    problem.labels[3] = 31
    with pytest.raises(IndexError, match="label 31 is out of range for 31 classes"):
        problem.loss(**way)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"student_hidden": torch.zeros(2, 6, 5)},
            ValueError,
            "student_hidden: expected shape (N, width), got (2, 6, 5)",
        ),
        (
            {"student_hidden": torch.zeros(2, 6, 5)},
            ValueError,
            "flatten batch and positions into N, for example hidden.",
        ),
        (
            {"student_hidden": torch.zeros(13, 5).long()},
            TypeError,
            "student_hidden: expected float16, bfloat16, float32",
        ),
        ({"student_hidden": [1]}, TypeError, "student_hidden: expected a tensor, got list"),
        (
            {"student_head": nn.Sequential()},
            TypeError,
            "student_head: expected an nn.Linear, its weight, or (weight, bias)",
        ),
        (
            {"student_head": nn.Sequential()},
            TypeError,
            "got Sequential; a head that is more than one linear layer needs",
        ),
        ({"student_head": None}, TypeError, "student_head: expected a tensor, got NoneType"),
        (
            {"student_head": torch.zeros(31, 6)},
            ValueError,
            "student_head: expected a weight of shape (classes, 5), the",
        ),
        (
            {"student_head": torch.zeros(5, 31)},
            ValueError,
            "got (5, 31); pass the hidden states that the head is given, or",
        ),
        ({"student_head": torch.zeros(0, 5)}, ValueError, "student_head: expected a weight of shape (classes, 5)"),
        (
            {"student_head": (torch.zeros(31, 5), torch.zeros(5))},
            ValueError,
            "student_head: expected a bias of shape (31,), got (5,)",
        ),
        (
            {"student_head": torch.zeros(31, 5, dtype=BF16)},
            TypeError,
            "student_head: expected a weight of float32 as student_hidden, got bfloat16; cast one of them, for example",
        ),
        (
            {"student_head": (torch.zeros(31, 5), torch.zeros(31, dtype=F64))},
            TypeError,
            "student_head: expected a bias of float32 as student_hidden, got float64",
        ),
        ({"teacher_hidden": None}, ValueError, "teacher_hidden: alpha=0.95 needs the teacher's soft targets, got None"),
        ({"teacher_head": None}, ValueError, "teacher_head: alpha=0.95 needs the teacher's soft targets, got None"),
        ({"teacher_head": None}, ValueError, "set alpha=1 for the label loss alone"),
        (
            {"teacher_hidden": torch.zeros(12, 7)},
            ValueError,
            "teacher_hidden: expected 13 rows as student_hidden, got 12",
        ),
        (
            {"teacher_head": torch.zeros(32, 7)},
            ValueError,
            "teacher_head: expected 31 classes as student_head, got 32; teacher and student must know the same",
        ),
        (
            {"labels": None},
            ValueError,
            "labels: alpha=0.95 needs labels of shape (N,), got None; pass them, or set alpha=0",
        ),
        ({"labels": torch.zeros(12).long()}, ValueError, "labels: expected shape (13,)"),
        ({"labels": torch.zeros(13).bool()}, TypeError, "labels: expected class indices (int64 or int32), got bool"),
        (
            {"labels": torch.zeros(13, 31)},
            TypeError,
            "labels: expected class indices (int64), got float32 of shape (13, 31); soft labels are as large as",
        ),
        ({"class_weight": torch.ones(30)}, ValueError, "class_weight: expected shape (31,), one weight for each class"),
        ({"class_weight": torch.ones(31).int()}, TypeError, "class_weight: expected float16, bfloat16, float32"),
        (
            {"rows": torch.ones(13)},
            TypeError,
            "rows: expected bool, which rows count, got float32; use mask.flatten().bool",
        ),
        ({"rows": torch.ones(12).bool()}, ValueError, "rows: expected shape (13,), one for each row of student_hidden"),
        ({"rows": [True]}, TypeError, "rows: expected a tensor, got list"),
        (
            {"normalizer": 3.0},
            TypeError,
            "normalizer: expected counts with the fields ce and kl, got float; pass the sums",
        ),
        ({"grad_scale": torch.ones(2)}, ValueError, "grad_scale: expected a 0-d tensor, got shape (2,)"),
        ({"chunk": 0}, ValueError, "chunk: expected a number of rows of at least 1, or None, got 0"),
        ({"chunk": 2.0}, ValueError, "chunk: expected a number of rows of at least 1, or None, got 2.0"),
        ({"alpha": 95}, ValueError, "alpha: expected a number in [0, 1], got 95"),
        ({"backend": "cuda"}, ValueError, "backend: expected one of 'auto', 'native', 'triton', 'eager', got 'cuda'"),
        (
            {"labels": torch.zeros(13, dtype=torch.int64, device="meta")},
            ValueError,
            "labels: expected device cpu as the student's, got meta",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_the_mend(changes: dict, error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {
        "student_hidden": torch.zeros(13, 5),
        "student_head": torch.zeros(31, 5),
        "teacher_hidden": torch.zeros(13, 7),
        "teacher_head": nn.Linear(7, 31),
        "labels": torch.zeros(13, dtype=torch.int64),
    }
    linear_kd_loss(**given)
    with pytest.raises(error, match=re.escape(message)):
        linear_kd_loss(**given | changes)


def test_a_backend_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_fast.loss import backends

    backends._pick.cache_clear()
    monkeypatch.setattr(native, "available", lambda *device: (False, "no compiler"))
    with pytest.raises(UnavailableError, match="'native' is not available"):
        build().loss(backend="native")
    backends._pick.cache_clear()


def test_it_is_found_where_kd_loss_is() -> None:
    import lit_fast as lf

    assert lf.functional.linear_kd_loss is linear_kd_loss is linear_kd.linear_kd_loss
    assert "linear_kd_loss" in functional.__all__


def test_docstring_examples_run() -> None:
    result = doctest.testmod(linear_kd)
    assert result.attempted > 0
    assert result.failed == 0
