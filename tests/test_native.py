"""The compiled loss against torch's own functions: values, gradients, edge cases, and its manners as an op."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from lit_fast.loss.backends import Inputs, LossOptions, LossParts, eager, fused, native
from lit_fast.loss.backends.checks import check_inputs
from lit_fast.loss.backends.ops import arguments
from lit_fast.loss.functional import compute

pytestmark = pytest.mark.skipif(not native.available()[0], reason=f"no compiled extension: {native.available()[1]}")

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
KINDS = ["l2", "l1", "smooth_l1"]
INF, NAN = float("inf"), float("nan")


@dataclass
class Problem:
    """The inputs of one loss."""

    student_irs: list[Tensor] = field(default_factory=list)
    teacher_irs: list[Tensor] = field(default_factory=list)
    student_logits: Tensor | None = None
    teacher_logits: Tensor | None = None
    labels: Tensor | None = None
    class_weight: Tensor | None = None
    grad_scale: Tensor | None = None

    def inputs(self) -> Inputs:
        return Inputs(**vars(self))

    def leaves(self) -> list[Tensor]:
        return [*self.student_irs, *([] if self.student_logits is None else [self.student_logits])]

    def to(self, dtype: torch.dtype, teacher_dtype: torch.dtype | None = None) -> Problem:
        """The same numbers as fresh leaves in another dtype."""

        def student(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype, copy=True).requires_grad_()

        def teacher(tensor: Tensor) -> Tensor:
            return tensor.detach().to(teacher_dtype or dtype, copy=True)

        return replace(
            self,
            student_irs=[student(s) for s in self.student_irs],
            teacher_irs=[teacher(t) for t in self.teacher_irs],
            student_logits=None if self.student_logits is None else student(self.student_logits),
            teacher_logits=None if self.teacher_logits is None else teacher(self.teacher_logits),
        )


def make(
    batch: int = 8,
    classes: int = 10,
    shapes: tuple = ((16, 8, 8), (32, 4, 4), (7,)),
    dtype: torch.dtype = torch.float32,
) -> Problem:
    irs = [torch.randn(batch, *shape) for shape in shapes]
    return Problem(
        student_irs=irs,
        teacher_irs=[ir + 0.8 * torch.randn_like(ir) for ir in irs],
        student_logits=4 * torch.randn(batch, classes),
        teacher_logits=4 * torch.randn(batch, classes),
        labels=torch.randint(0, classes, (batch,)),
    ).to(dtype)


def torch_loss(problem: Problem, options: LossOptions) -> LossParts:
    """The loss by torch's own functions, in the dtype of the inputs; every part is needed."""
    p, o = problem, options
    element = {"l2": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}[o.ir]
    weight = None if p.class_weight is None else p.class_weight.to(p.student_logits.dtype)
    ce = F.cross_entropy(
        p.student_logits, p.labels, weight, ignore_index=o.ignore_index, label_smoothing=o.label_smoothing
    )
    log_q, log_p = (F.log_softmax(z / o.tau, 1) for z in (p.student_logits, p.teacher_logits))
    kl = (o.tau**2 if o.tau_squared else 1) * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    ir = torch.stack([element(s, t) for s, t in zip(p.student_irs, p.teacher_irs)])
    weights = ir.new_tensor(o.section_weights or [1.0] * len(ir))
    total = o.beta * (o.alpha * ce + (1 - o.alpha) * kl) + (1 - o.beta) * (weights * ir).sum()
    return LossParts(total, ce.detach(), kl.detach(), ir.detach())


def run(loss, problem: Problem, options: LossOptions) -> tuple[list[Tensor], list[Tensor]]:
    """(total, ce, kl, ir..., all detached), gradients of the leaves; by `loss` = a backend's lit_loss or torch_loss."""
    parts = loss(problem, options) if loss is torch_loss else loss(problem.inputs(), options)
    grads = torch.autograd.grad(parts.total, problem.leaves())
    return [parts.total.detach(), parts.ce, parts.kl, *parts.ir], list(grads)


OPTIONS = {
    "defaults": LossOptions(),
    "l1": LossOptions(ir="l1"),
    "smooth_l1": LossOptions(ir="smooth_l1"),
    "soft": LossOptions(alpha=0.1, tau=2.5, tau_squared=False),
    "smoothing": LossOptions(label_smoothing=0.1),
    "all": LossOptions(alpha=0.4, beta=0.3, label_smoothing=0.2, ignore_index=3, section_weights=(0.5, 2.0, 0.0)),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_values_and_gradients_equal_torch_up_to_rounding(name: str, dtype: torch.dtype) -> None:
    options = OPTIONS[name]
    problem = replace(make(batch=16, dtype=dtype), class_weight=0.2 + torch.rand(10))
    values, grads = run(native.lit_loss, problem, options)
    exact_values, exact_grads = run(torch_loss, problem.to(torch.float64), options)
    # Computed in float32 and summed in float64: only the final rounding depends on the inputs' dtype.
    epsilon = 1e-13 if dtype == torch.float64 else 1e-6
    for value, exact in zip(values, exact_values):
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert abs(value.double() - exact) <= epsilon * exact.abs().clamp(min=1)
    info = torch.finfo(dtype)
    for grad, exact in zip(grads, exact_grads):
        assert grad.dtype == dtype
        bound = info.eps / 2 * exact.abs() + epsilon * exact.abs().max() + info.smallest_normal * info.eps
        assert ((grad.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_no_value_is_further_from_float64_than_torchs_at_that_dtype(kind: str, dtype: torch.dtype) -> None:
    options = LossOptions(ir=kind, alpha=0.5, label_smoothing=0.1)
    problem = make(batch=32, classes=100, shapes=((64, 16, 16), (33,)), dtype=dtype)
    values, grads = run(native.lit_loss, problem, options)
    try:
        theirs, their_grads = run(torch_loss, problem, options)
    except RuntimeError as error:
        if "not implemented for" not in str(error):
            raise
        pytest.skip(f"this torch has no such loss: {error}")
    exact, exact_grads = run(torch_loss, problem.to(torch.float64), options)
    small = 1e-14 if dtype == torch.float64 else 3e-7
    for ours, torchs, true in zip(values, theirs, exact):
        assert abs(ours.double() - true) <= abs(torchs.double() - true) + small * true.abs()
    for ours, torchs, true in zip(grads, their_grads, exact_grads):
        error, torch_error = ((x.double() - true).abs().max() for x in (ours, torchs))
        assert error <= torch_error + small * true.abs().max()


@given(
    batch=st.integers(1, 5),
    classes=st.integers(1, 1500),
    sizes=st.lists(st.integers(1, 1200), min_size=1, max_size=3),
    kind=st.sampled_from(KINDS),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    alpha=st.sampled_from([0.0, 0.3, 1.0]),
    beta=st.sampled_from([0.0, 0.3, 1.0]),
    smoothing=st.sampled_from([0.0, 0.2]),
    weighted=st.booleans(),
)
def test_agrees_with_the_eager_backend(batch, classes, sizes, kind, dtypes, alpha, beta, smoothing, weighted) -> None:
    assume(alpha < 1 or torch.float64 not in dtypes)  # the backends need not agree on an unused tensor's dtype
    options = LossOptions(ir=kind, alpha=alpha, beta=beta, label_smoothing=smoothing)
    problem = make(batch, classes, tuple((size,) for size in sizes)).to(*dtypes)
    problem.class_weight = torch.rand(classes) if weighted else None
    problem.labels[0] = options.ignore_index
    inputs = check_inputs(problem.inputs(), options)
    ours, oracle = native.lit_loss(inputs, options), eager.lit_loss(inputs, options)
    for mine, theirs in zip(ours, oracle):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=2e-6, atol=2e-6, equal_nan=True)
    grads, oracle_grads = (
        torch.autograd.grad(parts.total, problem.leaves(), allow_unused=True) for parts in (ours, oracle)
    )
    for grad, oracle_grad in zip(grads, oracle_grads):
        if oracle_grad is None:
            assert grad is None or not grad.any()
        else:
            assert grad.dtype == oracle_grad.dtype
            scale = oracle_grad.abs().max().item()
            eps = max(torch.finfo(grad.dtype).eps, 1e-6)
            torch.testing.assert_close(grad, oracle_grad, rtol=2 * eps, atol=eps * scale + 5e-7, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str) -> None:
    options = LossOptions(
        ir=kind, alpha=0.4, beta=0.6, tau=2.0, label_smoothing=0.1, section_weights=(1.5, 0.5), ignore_index=1
    )
    problem = make(batch=4, classes=5, shapes=((3, 2), (2,)), dtype=torch.float64)
    problem.class_weight = torch.rand(5, dtype=torch.float64)
    problem.labels = torch.tensor([0, 1, 4, 2])

    def loss(logits: Tensor, *irs: Tensor) -> Tensor:
        changed = replace(problem, student_irs=list(irs), student_logits=logits)
        return native.lit_loss(changed.inputs(), options).total

    assert torch.autograd.gradcheck(loss, (problem.student_logits, *problem.student_irs))


# --- edge cases of the numbers


def test_fp16_difference_of_300_does_not_overflow() -> None:
    student = torch.full((2, 3), 300.0, dtype=torch.float16, requires_grad=True)
    parts = native.lit_loss(Inputs([student], [torch.zeros_like(student)]), LossOptions(beta=0.0))
    assert parts.total.dtype == torch.float32
    assert parts.total.item() == 90000.0
    assert parts.ce.item() == parts.kl.item() == 0.0


def test_l1_has_gradient_zero_where_student_equals_teacher() -> None:
    student = torch.tensor([0.0, 1.0, -1.0], requires_grad=True)
    parts = native.lit_loss(Inputs([student], [torch.zeros(3)]), LossOptions(beta=0.0, ir="l1"))
    parts.total.backward()
    torch.testing.assert_close(student.grad, torch.tensor([0.0, 1 / 3, -1 / 3]))


@pytest.mark.parametrize("distance", [1.0, 1e-1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_kl_of_nearly_equal_rows_keeps_its_digits(classes: int, distance: float) -> None:
    teacher = 5 * torch.randn(4, classes) + 20
    student = (teacher + distance * torch.randn(4, classes)).requires_grad_()
    options = LossOptions(alpha=0.0, beta=1.0, tau=1.0)
    parts = native.lit_loss(Inputs(student_logits=student, teacher_logits=teacher), options)
    (grad,) = torch.autograd.grad(parts.total, student)

    exact = student.detach().double().requires_grad_()
    log_p, log_q = F.log_softmax(teacher.double(), 1), F.log_softmax(exact, 1)
    kl = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    (exact_grad,) = torch.autograd.grad(kl, exact)
    torch.testing.assert_close(parts.kl.double(), kl.detach(), rtol=2e-4, atol=1e-13)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=1e-3, atol=2e-4 * exact_grad.abs().max().item())


def test_equal_rows_have_kl_exactly_zero() -> None:
    logits = 30 * torch.randn(5, 100)
    parts = native.lit_loss(Inputs([], [], logits.clone().requires_grad_(), logits), LossOptions(alpha=0.0, beta=1.0))
    assert parts.kl.item() == 0.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_classes_masked_in_both_rows_play_no_role(dtype: torch.dtype) -> None:
    options = LossOptions(alpha=0.5, beta=1.0)
    problem = make(batch=6, classes=8, shapes=(), dtype=dtype)
    problem.labels = torch.tensor([0, 1, 2, 3, 4, 5])
    masked = replace(
        problem,
        student_logits=torch.cat([problem.student_logits.detach(), torch.full((6, 600), -INF, dtype=dtype)], 1),
        teacher_logits=torch.cat([problem.teacher_logits, torch.full((6, 600), -INF, dtype=dtype)], 1),
    )
    masked.student_logits.requires_grad_()
    (total, *_), (grad,) = run(native.lit_loss, problem, options)
    (masked_total, *_), (masked_grad,) = run(native.lit_loss, masked, options)
    torch.testing.assert_close(masked_total, total)
    torch.testing.assert_close(masked_grad[:, :8], grad)
    assert not masked_grad[:, 8:].any()


def test_class_masked_in_the_student_alone_makes_the_loss_infinite_and_the_gradient_finite() -> None:
    problem = make(batch=3, classes=4, shapes=())
    problem.student_logits.data[1, 2] = -INF
    problem.labels = torch.tensor([0, 0, 0])
    parts = native.lit_loss(problem.inputs(), LossOptions(alpha=0.5, beta=1.0))
    assert parts.kl.item() == INF
    assert parts.ce.isfinite()
    (grad,) = torch.autograd.grad(parts.total, problem.student_logits)
    assert grad.isfinite().all()


def test_masked_class_of_weight_zero_is_silent_under_label_smoothing() -> None:
    problem = make(batch=3, classes=4, shapes=())
    problem.student_logits.data[:, 3] = -INF
    problem.class_weight = torch.tensor([1.0, 2.0, 1.0, 0.0])
    problem.labels = torch.tensor([0, 1, 2])
    parts = native.lit_loss(problem.inputs(), LossOptions(alpha=1.0, beta=1.0, label_smoothing=0.1))
    assert parts.ce.isfinite()


@pytest.mark.parametrize("where", ["student_logits", "teacher_logits", "student_ir", "teacher_ir"])
@pytest.mark.parametrize("kind", KINDS)
def test_nan_in_gives_nan_out(where: str, kind: str) -> None:
    problem = make(batch=3, classes=700, shapes=((40,),))
    tensor = {
        "student_logits": problem.student_logits,
        "teacher_logits": problem.teacher_logits,
        "student_ir": problem.student_irs[0],
        "teacher_ir": problem.teacher_irs[0],
    }[where]
    tensor.data[1, 30] = NAN
    (total, *_), grads = run(native.lit_loss, problem, LossOptions(ir=kind))
    assert total.isnan()
    ir_grad, logits_grad = grads
    assert ir_grad.isnan().nonzero().tolist() == ([[1, 30]] if where.endswith("ir") else [])
    # A row that holds a NaN is NaN as a whole, others are not.
    nan_rows = logits_grad.isnan().all(1).tolist()
    assert nan_rows == [False, where.endswith("logits"), False]


def test_empty_batch_gives_torchs_nan_and_empty_gradients() -> None:
    problem = make(batch=0)
    values, grads = run(native.lit_loss, problem, LossOptions())
    assert all(value.isnan() for value in values)
    assert [grad.shape for grad in grads] == [leaf.shape for leaf in problem.leaves()]


def test_all_labels_ignored_gives_torchs_nan_and_no_hard_gradient() -> None:
    problem = make(batch=3)
    problem.labels.fill_(-100)
    parts = native.lit_loss(problem.inputs(), LossOptions(alpha=1.0))
    assert parts.ce.isnan()
    assert parts.ir.isfinite().all()
    (grad,) = torch.autograd.grad(parts.total, problem.student_logits)
    assert not grad.any()


def test_ignored_rows_still_learn_from_the_teacher() -> None:
    problem = make(batch=4, shapes=())
    problem.labels = torch.tensor([1, -100, 2, -100])
    (_, _, kl), (grad,) = run(native.lit_loss, problem, LossOptions(beta=1.0))
    (_, _, exact_kl), (exact,) = run(eager.lit_loss, problem, LossOptions(beta=1.0))
    torch.testing.assert_close(kl, exact_kl)
    torch.testing.assert_close(grad, exact)
    assert grad[1].any()


@pytest.mark.parametrize("label", [10, 1 << 40, -1, -101])
def test_label_out_of_range_is_an_error_that_names_it(label: int) -> None:
    problem = make(batch=4)
    problem.labels[2] = label
    with pytest.raises(IndexError, match=rf"label {label} of row 2 is out of range; expected 0 to 9"):
        native.lit_loss(problem.inputs(), LossOptions())


def test_one_class_has_loss_zero() -> None:
    problem = make(batch=3, classes=1, shapes=())
    (total, ce, kl), (grad,) = run(native.lit_loss, problem, LossOptions(beta=1.0))
    assert total.item() == ce.item() == kl.item() == 0.0
    assert not grad.any()


def test_one_row_of_many_classes() -> None:
    options = LossOptions(beta=1.0, alpha=0.5)
    problem = make(batch=1, classes=100_003, shapes=())
    values, (grad,) = run(native.lit_loss, problem, options)
    exact_values, (exact,) = run(eager.lit_loss, problem.to(torch.float64), options)
    torch.testing.assert_close(torch.stack(values).double(), torch.stack(exact_values), rtol=1e-6, atol=0)
    torch.testing.assert_close(grad.double(), exact, rtol=1e-5, atol=1e-9)


# --- layouts


def strided_pairs() -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, student, teacher) of equal shapes [4, 6, 5, 3] and various strides."""

    def plain() -> Tensor:
        return torch.randn(4, 6, 5, 3)

    def last() -> Tensor:
        return plain().to(memory_format=torch.channels_last)

    yield "both channels_last", last(), last()
    yield "student channels_last", last(), plain()
    yield "teacher channels_last", plain(), last()
    yield "both transposed", plain().transpose(0, 3).contiguous().transpose(0, 3), plain()
    yield "student a slice", torch.randn(4, 12, 5, 3)[:, ::2], plain()
    yield "teacher a slice", last(), torch.randn(4, 6, 5, 6)[..., 1:4]
    yield "student expanded", torch.randn(4, 1, 5, 1).expand(4, 6, 5, 3), plain()
    yield "teacher expanded", plain(), torch.randn(6, 1, 1).expand(4, 6, 5, 3)
    yield "both expanded", torch.randn(1, 1, 5, 1).expand(4, 6, 5, 3), torch.randn(1).expand(4, 6, 5, 3)


@pytest.mark.parametrize("need_grad", [True, False])
@pytest.mark.parametrize(("student", "teacher"), [pytest.param(s, t, id=name) for name, s, t in strided_pairs()])
def test_any_strides_give_the_same_loss_and_a_dense_gradient(student: Tensor, teacher: Tensor, need_grad: bool) -> None:
    options = LossOptions(beta=0.0)
    leaf = student.detach().requires_grad_(need_grad)
    kept = student.clone(), teacher.clone()
    total = native.lit_loss(Inputs([leaf], [teacher]), options).total
    torch.testing.assert_close(total.detach(), F.mse_loss(student, teacher))
    if need_grad:
        (grad,) = torch.autograd.grad(total, leaf)
        torch.testing.assert_close(grad, 2 * (student - teacher) / student.numel())
        assert grad.untyped_storage().nbytes() == grad.numel() * grad.element_size()  # dense, and its own memory
    assert torch.equal(student, kept[0])
    assert torch.equal(teacher, kept[1])


def test_gradient_of_a_channels_last_ir_is_channels_last() -> None:
    student = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    total = native.lit_loss(Inputs([student], [torch.randn(2, 8, 4, 4)]), LossOptions(beta=0.0)).total
    (grad,) = torch.autograd.grad(total, student)
    assert grad.is_contiguous(memory_format=torch.channels_last)


def test_logits_of_any_strides() -> None:
    options = LossOptions(beta=1.0)
    problem = make(batch=6, classes=5, shapes=())
    values, (grad,) = run(native.lit_loss, problem, options)
    changed = replace(
        problem,
        student_logits=problem.student_logits.detach().t().contiguous().t().requires_grad_(),
        teacher_logits=torch.stack([problem.teacher_logits] * 2, -1)[..., 1],
        labels=torch.stack([problem.labels] * 3, -1)[:, 1],
    )
    other_values, (other_grad,) = run(native.lit_loss, changed, options)
    assert torch.equal(torch.stack(values), torch.stack(other_values))
    assert torch.equal(grad, other_grad)


@pytest.mark.parametrize(("student", "teacher"), [(torch.float16, torch.float32), (torch.bfloat16, torch.float16)])
def test_student_and_teacher_may_differ_in_dtype(student: torch.dtype, teacher: torch.dtype) -> None:
    problem = make().to(student, teacher)
    values, grads = run(native.lit_loss, problem, LossOptions())
    exact_values, exact_grads = run(torch_loss, problem.to(torch.float64), LossOptions())
    torch.testing.assert_close(torch.stack(values).double(), torch.stack(exact_values), rtol=1e-6, atol=1e-6)
    for grad, exact in zip(grads, exact_grads):
        assert grad.dtype == student
        torch.testing.assert_close(grad.double(), exact, rtol=torch.finfo(student).eps, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_labels_of_other_integer_dtypes(dtype: torch.dtype) -> None:
    problem = make(batch=5)
    (total, *_), _ = run(native.lit_loss, problem, LossOptions())
    (other, *_), _ = run(native.lit_loss, replace(problem, labels=problem.labels.to(dtype)), LossOptions())
    assert torch.equal(total, other)


# --- autograd


def test_result_does_not_depend_on_the_number_of_threads() -> None:
    problem = make(batch=64, classes=300, shapes=((16, 32, 32), (64, 9, 9)))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(native.lit_loss, problem, LossOptions(label_smoothing=0.1)))
    finally:
        torch.set_num_threads(before)
    for values, grads in results[1:]:
        assert all(map(torch.equal, values, results[0][0]))
        assert all(map(torch.equal, grads, results[0][1]))


def test_no_graph_and_no_gradient_buffers_without_need() -> None:
    problem = make()
    with torch.no_grad():
        assert not native.lit_loss(problem.inputs(), LossOptions()).total.requires_grad
    frozen = replace(
        problem,
        student_irs=[s.detach() for s in problem.student_irs],
        student_logits=problem.student_logits.detach(),
        teacher_logits=problem.teacher_logits.clone().requires_grad_(),
    )
    assert not native.lit_loss(frozen.inputs(), LossOptions()).total.requires_grad


def test_only_the_total_carries_a_gradient_and_never_to_the_teacher() -> None:
    problem = make()
    for tensor in (*problem.teacher_irs, problem.teacher_logits):
        tensor.requires_grad_()
    parts = native.lit_loss(problem.inputs(), LossOptions())
    assert [part.requires_grad for part in parts] == [True, False, False, False]
    parts.total.backward()
    assert all(tensor.grad is None for tensor in (*problem.teacher_irs, problem.teacher_logits))
    assert all(leaf.grad is not None for leaf in problem.leaves())


def test_inputs_that_need_no_gradient_get_none() -> None:
    problem = make()
    problem.student_irs[1] = problem.student_irs[1].detach()
    native.lit_loss(problem.inputs(), LossOptions()).total.backward()
    assert problem.student_irs[1].grad is None
    assert problem.student_irs[0].grad is not None


def test_a_graph_may_be_walked_twice() -> None:
    problem = make()
    _, grads = run(native.lit_loss, problem, LossOptions())
    total = native.lit_loss(problem.inputs(), LossOptions()).total
    total.backward(retain_graph=True)
    total.backward(retain_graph=True)
    (3 * total).backward()
    for leaf, grad in zip(problem.leaves(), grads):
        torch.testing.assert_close(leaf.grad, 5 * grad)


@pytest.mark.parametrize("total_of", [lambda parts: parts[0].clone(), fused._alias], ids=["copy", "alias"])
def test_total_may_be_changed_in_place_whatever_memory_it_has(monkeypatch, total_of) -> None:
    monkeypatch.setattr(fused, "_total", total_of)
    problem = make()
    (value, *_), grads = run(native.lit_loss, problem, LossOptions())
    in_python = fused.Ops(torch.ops.lit_fast.lit_loss.default, torch.ops.lit_fast.rescale_.default)
    total, ce, *_ = fused.lit_loss(in_python, problem.inputs(), LossOptions())
    before = ce.clone()
    total /= 4
    total.backward()
    torch.testing.assert_close(total.detach(), value / 4)
    torch.testing.assert_close(ce, before, rtol=0, atol=0)
    for leaf, grad in zip(problem.leaves(), grads):
        torch.testing.assert_close(leaf.grad, grad / 4)


def test_total_may_be_changed_in_place() -> None:
    problem = make()
    (value, *_), grads = run(native.lit_loss, problem, LossOptions())
    total = native.lit_loss(problem.inputs(), LossOptions()).total
    total /= 2
    torch.testing.assert_close(total.detach(), value / 2)
    total.backward()
    torch.testing.assert_close(problem.leaves()[0].grad, grads[0] / 2)


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_what_has_no_weight_is_not_needed_and_not_looked_at(alpha: float, beta: float) -> None:
    problem = make()
    bare = Problem()
    if beta < 1:
        bare = replace(bare, student_irs=problem.student_irs, teacher_irs=problem.teacher_irs)
    if beta > 0:
        bare = replace(bare, student_logits=problem.student_logits)
        bare = replace(bare, labels=problem.labels) if alpha else replace(bare, teacher_logits=problem.teacher_logits)
    options = LossOptions(alpha=alpha, beta=beta)
    parts = native.lit_loss(bare.inputs(), options)
    assert len(parts.ir) == (3 if beta < 1 else 0)
    assert (parts.ce == 0) == (beta == 0 or alpha == 0)
    assert (parts.kl == 0) == (beta == 0 or alpha == 1)

    spoilt = replace(
        problem,
        student_irs=problem.student_irs if beta < 1 else [torch.full((2,), NAN)],
        student_logits=problem.student_logits if beta else torch.full((8, 10), NAN),
        teacher_logits=problem.teacher_logits if beta and alpha < 1 else torch.full((8, 10), NAN),
        labels=problem.labels if beta and alpha else torch.full((8,), 99),
    )
    assert torch.equal(compute(spoilt.inputs(), options, "native").total, parts.total)


def test_double_backward_is_refused() -> None:
    problem = make()
    total = native.lit_loss(problem.inputs(), LossOptions()).total
    with pytest.raises(RuntimeError, match="lit_loss does not support double backward"):
        torch.autograd.grad(total, problem.leaves(), create_graph=True)


# --- loss scale


def test_grad_scale_keeps_float16_gradients_from_underflow() -> None:
    scale = torch.tensor(65536.0)
    problem = make(batch=64, shapes=((16, 32, 32),), dtype=torch.float16)
    options = LossOptions(beta=0.0)
    exact = problem.to(torch.float64)
    (exact_grad,) = torch.autograd.grad(native.lit_loss(exact.inputs(), options).total, exact.student_irs)

    total = native.lit_loss(replace(problem, grad_scale=scale).inputs(), options).total
    (grad,) = torch.autograd.grad(total * scale, problem.student_irs)
    torch.testing.assert_close(grad.double() / 65536, exact_grad, rtol=1e-3, atol=1e-12)
    assert (grad != 0).float().mean() > 0.99
    (unscaled,) = torch.autograd.grad(native.lit_loss(problem.inputs(), options).total, problem.student_irs)
    assert (unscaled != 0).float().mean() < 0.99  # what the scale is for


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grad_output", [1.0, 128.0, 3.0])
def test_any_grad_output_is_right_whatever_scale_was_expected(grad_output: float, dtype: torch.dtype) -> None:
    problem = make(dtype=dtype)
    _, grads = run(native.lit_loss, problem, LossOptions())
    total = native.lit_loss(replace(problem, grad_scale=torch.tensor(128.0)).inputs(), LossOptions()).total
    scaled = torch.autograd.grad(total, problem.leaves(), torch.tensor(grad_output, dtype=total.dtype))
    for grad, plain in zip(scaled, grads):
        torch.testing.assert_close(grad, grad_output * plain, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


def test_grad_scaler_and_autocast() -> None:
    torch.manual_seed(0)
    student, head = torch.nn.Linear(6, 5), torch.nn.Linear(5, 3)
    x, target, labels = torch.randn(7, 6), torch.randn(7, 5), torch.randint(0, 3, (7,))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def loss(grad_scale: Tensor | None) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ir = student(x)
            logits = head(ir)
            assert ir.dtype == torch.bfloat16
            return native.lit_loss(
                Inputs([ir], [target], logits, logits.detach() + 1, labels, None, grad_scale), LossOptions()
            ).total

    parameters = [*student.parameters(), *head.parameters()]
    plain = torch.autograd.grad(loss(None), parameters)
    total = loss(torch.tensor(1024.0))
    assert total.dtype == torch.float32
    scaled = torch.autograd.grad(scaler.scale(total), parameters)
    for grad, expected in zip(scaled, plain):
        torch.testing.assert_close(grad / 1024, expected, rtol=0.02, atol=1e-4)


# --- as an op


def op_arguments(problem: Problem, options: LossOptions, need_grad: bool) -> tuple:
    tensors = [t if not isinstance(t, Tensor) else t.detach() for t in problem.inputs()[2:7]]
    irs = [[t.detach() for t in problem.student_irs], [t.detach() for t in problem.teacher_irs]]
    return (*arguments(Inputs(*irs, *tensors), options), need_grad)


@pytest.mark.parametrize("need_grad", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_opcheck(beta: float, dtype: torch.dtype, need_grad: bool) -> None:
    problem = make(dtype=dtype)
    problem = replace(problem, class_weight=torch.rand(10), grad_scale=torch.tensor(8.0))
    if beta < 1:
        expanded = torch.randn(4, 1, 3, dtype=dtype).expand(4, 2, 3)
        irs = [torch.randn(2, 4, 3, 3, dtype=dtype).to(memory_format=torch.channels_last), expanded]
        problem = replace(problem, student_irs=irs, teacher_irs=[torch.randn_like(ir) for ir in irs])
    else:
        problem = replace(problem, student_irs=[], teacher_irs=[])
    if beta == 0:
        problem = replace(problem, student_logits=None, teacher_logits=None, labels=None, class_weight=None)
    arguments = op_arguments(problem, LossOptions(beta=beta), need_grad)
    torch.library.opcheck(torch.ops.lit_fast.lit_loss.default, arguments)


@pytest.mark.parametrize("need_grad", [True, False])
def test_opcheck_of_soft_labels_and_what_does_not_count(need_grad: bool) -> None:
    problem = make(batch=4, dtype=torch.float16)
    *tensors, _ = problem.inputs()[2:7]
    tensors[2] = torch.rand(4, 10)
    irs = [torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last), torch.randn(4, 7)]
    rows = torch.tensor([True, False, True, True])
    counts = torch.arange(1, 5, dtype=torch.float64)
    logits = [None if t is None else t.detach() for t in tensors]
    given = Inputs(irs, [torch.randn_like(ir) for ir in irs], *logits, None, rows, counts, [rows, rows.new_ones(())])
    torch.library.opcheck(torch.ops.lit_fast.lit_loss.default, (*arguments(given, LossOptions()), need_grad))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": torch.ones(4)}, "rows: expected bool, got"),
        ({"rows": torch.ones(3).bool()}, "rows: expected one for each row of the logits, got"),
        ({"ir_rows": [torch.ones(4).bool()]}, "ir_rows: expected one tensor for each of 2 sections or none, got 1"),
        ({"ir_rows": [torch.ones(4)] * 2}, "ir_rows: section 1: expected bool, got"),
        (
            {"ir_rows": [torch.ones(4).bool(), torch.ones(4, 3).bool()]},
            "ir_rows: section 2: expected the first dimensions of",
        ),
        ({"ir_rows": [torch.ones(4, 3).bool(), torch.ones(4).bool()]}, "section 1: .* expected contiguous memory"),
        ({"counts": torch.ones(4)}, "counts: expected float64, got"),
        ({"counts": torch.ones(5, dtype=torch.float64)}, "counts: expected .4., contiguous, got"),
        ({"counts": None}, "rows that do not count need counts, got None"),
        ({"labels": torch.rand(4, 9)}, "labels: expected the student's .4, 10., got .4, 9."),
    ],
)
def test_the_op_checks_what_counts(change: dict, message: str) -> None:
    irs = [torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last), torch.randn(4, 7)]
    given = Inputs(irs, irs, torch.zeros(4, 10), torch.zeros(4, 10), torch.arange(4))
    given = given._replace(rows=torch.ones(4).bool(), counts=torch.ones(4, dtype=torch.float64))
    with pytest.raises((TypeError, ValueError), match=f"lit_loss: {message}"):
        native.lit_loss(given._replace(**change), LossOptions())


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("scaled", [False, True])
def test_compiles_to_one_graph(backend: str, scaled: bool) -> None:
    problem = make()
    scale = torch.tensor(16.0) if scaled else None
    _, grads = run(native.lit_loss, problem, LossOptions())

    def loss(student_irs: list[Tensor], logits: Tensor, grad_scale: Tensor | None) -> LossParts:
        changed = replace(problem, student_irs=student_irs, student_logits=logits, grad_scale=grad_scale)
        return native.lit_loss(changed.inputs(), LossOptions())

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    parts = compiled([s * 1.0 for s in problem.student_irs], problem.student_logits, scale)
    expected = native.lit_loss(problem.inputs(), LossOptions())
    assert all(map(torch.equal, parts, expected))
    (3 * parts.total).backward()
    for leaf, grad in zip(problem.leaves(), grads):
        torch.testing.assert_close(leaf.grad, 3 * grad)


def test_errors_name_the_section_and_both_shapes() -> None:
    problem = make()
    problem.teacher_irs[1] = torch.randn(8, 64, 4, 4)
    with pytest.raises(ValueError, match=r"section 2: student gives \[8, 32, 4, 4\], teacher \[8, 64, 4, 4\]"):
        native.lit_loss(problem.inputs(), LossOptions())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"teacher_irs": []}, ValueError, "as many teacher IRs as student IRs, got 3 from the student and 0"),
        ({"student_irs": [], "teacher_irs": []}, ValueError, "beta = 0.75 needs IRs, got none"),
        ({"student_irs": [], "teacher_irs": [], "student_logits": None}, ValueError, "expected IRs or student_logits"),
        ({"student_logits": None}, ValueError, "needs student_logits, got None"),
        ({"teacher_logits": None}, ValueError, "needs teacher_logits, got None"),
        ({"labels": None}, ValueError, "needs labels, got None"),
        ({"student_logits": torch.zeros(8)}, ValueError, r"expected \[batch, classes\], got \[8\]"),
        ({"teacher_logits": torch.zeros(8, 9)}, ValueError, r"teacher_logits: expected the student's \[8, 10\]"),
        ({"labels": torch.zeros(7, dtype=torch.long)}, ValueError, r"labels: expected .* \[8\], got \[7\]"),
        ({"labels": torch.zeros(8)}, TypeError, "labels: expected class numbers"),
        ({"class_weight": torch.ones(9)}, ValueError, r"class_weight: expected one weight per class, \[10\]"),
        ({"grad_scale": torch.ones(2)}, ValueError, "grad_scale: expected one number"),
        ({"student_logits": torch.zeros(8, 10, dtype=torch.long)}, TypeError, "student_logits: expected float16"),
        ({"teacher_irs": [torch.zeros(8, 16, 8, 8).int()] * 3}, TypeError, "section 1, teacher IR: expected float16"),
    ],
)
def test_the_op_checks_its_arguments(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        native.lit_loss(replace(make(), **change).inputs(), LossOptions())
