"""The eager backend against PyTorch's own losses, hand-computed values and the edge cases of real training."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_fast.loss.backends import Inputs, LossOptions, LossParts
from lit_fast.loss.functional import compute

INF = math.inf
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
TORCH_IR = {"l2": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}


def run(
    student_irs=None,
    teacher_irs=None,
    z_s=None,
    z_t=None,
    labels=None,
    *,
    class_weight=None,
    grad_scale=None,
    **settings,
) -> LossParts:
    inputs = Inputs(student_irs, teacher_irs, z_s, z_t, labels, class_weight, grad_scale)
    return compute(inputs, LossOptions(**settings), "eager")


def kl(z_s: Tensor, z_t: Tensor, tau: float = 1.0, **settings) -> Tensor:
    return run(None, None, z_s, z_t, beta=1.0, alpha=0.0, tau=tau, **settings).total


def ce(z_s: Tensor, labels: Tensor, **settings) -> Tensor:
    return run(None, None, z_s, None, labels, beta=1.0, alpha=1.0, **settings).total


def ir(student: Tensor, teacher: Tensor, kind: str = "l2") -> Tensor:
    return run([student], [teacher], beta=0.0, ir=kind).total


def torch_kl(z_s: Tensor, z_t: Tensor, tau: float = 1.0) -> Tensor:
    return F.kl_div(F.log_softmax(z_s / tau, 1), F.softmax(z_t / tau, 1), reduction="batchmean")


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs, retain_graph=True)


def assert_same(ours: Tensor, theirs: Tensor, *inputs: Tensor) -> None:
    """Equal values and equal gradients, to float64's rounding."""
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14, equal_nan=True)
    for our_grad, their_grad in zip(gradients(ours, *inputs), gradients(theirs, *inputs)):
        torch.testing.assert_close(our_grad, their_grad, rtol=1e-12, atol=1e-14, equal_nan=True)


# --- against torch, float64


@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (2, 7), (6,), ()], ids=str)
@pytest.mark.parametrize("kind", TORCH_IR)
def test_ir_loss_is_torchs(kind, shape):
    student, teacher = normal(*shape, scale=2).requires_grad_(), normal(*shape, seed=1, scale=2)
    assert_same(ir(student, teacher, kind), TORCH_IR[kind](student, teacher), student)


@pytest.mark.parametrize("tau", [0.5, 1.0, 6.0])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_kl_is_torchs(classes, tau):
    z_s, z_t = normal(5, classes, scale=4).requires_grad_(), normal(5, classes, seed=1, scale=4)
    assert_same(kl(z_s, z_t, tau), tau**2 * torch_kl(z_s, z_t, tau), z_s)
    assert_same(kl(z_s, z_t, tau, tau_squared=False), torch_kl(z_s, z_t, tau), z_s)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("ignore", [-100, 3, -1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_torchs(weighted, ignore, smoothing):
    z = normal(6, 5, scale=3).requires_grad_()
    labels = torch.tensor([0, 3, 4, ignore, 2, 3])
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0], dtype=torch.float64) if weighted else None
    settings = {"ignore_index": ignore, "label_smoothing": smoothing}
    assert_same(ce(z, labels, class_weight=weight, **settings), F.cross_entropy(z, labels, weight, **settings), z)


@pytest.mark.parametrize(("alpha", "beta"), [(0.95, 0.75), (0.0, 0.5), (1.0, 0.5), (0.3, 0.0), (0.3, 1.0)])
def test_total_is_the_paper_s_weighted_sum(alpha, beta):
    students = [normal(4, 3, 2, 2, seed=i).requires_grad_() for i in range(2)]
    teachers = [normal(4, 3, 2, 2, seed=9 + i) for i in range(2)]
    z_s, z_t, labels = normal(4, 5).requires_grad_(), normal(4, 5, seed=1), torch.tensor([0, 4, 2, 2])
    parts = run(students, teachers, z_s, z_t, labels, alpha=alpha, beta=beta, tau=3.0, section_weights=(0.5, 2.0))

    hard, soft = F.cross_entropy(z_s, labels), 9 * torch_kl(z_s, z_t, 3.0)
    irs = [F.mse_loss(s, t) for s, t in zip(students, teachers)]
    expected = beta * (alpha * hard + (1 - alpha) * soft) + (1 - beta) * (0.5 * irs[0] + 2.0 * irs[1])
    used = ([z_s] if beta > 0 else []) + (students if beta < 1 else [])
    assert_same(parts.total, expected, *used)

    zero = torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(parts.ce, hard.detach() if alpha * beta > 0 else zero)
    torch.testing.assert_close(parts.kl, soft.detach() if (1 - alpha) * beta > 0 else zero)
    torch.testing.assert_close(parts.ir, torch.stack(irs).detach() if beta < 1 else zero.new_zeros(0))


def test_gradcheck_passes():
    students = [normal(2, 3, seed=1).requires_grad_(), normal(4, seed=2).requires_grad_()]
    teachers, z_s, z_t = [normal(2, 3, seed=3), normal(4, seed=4)], normal(3, 4).requires_grad_(), normal(3, 4, seed=5)
    labels, weight = torch.tensor([1, -100, 3]), torch.tensor([1.0, 2.0, 0.5, 1.5], dtype=torch.float64)
    for kind in TORCH_IR:

        def loss(*inputs: Tensor, kind: str = kind) -> Tensor:
            return run(
                inputs[:2],
                teachers,
                inputs[2],
                z_t,
                labels,
                class_weight=weight,
                ir=kind,
                alpha=0.4,
                label_smoothing=0.1,
            ).total

        assert torch.autograd.gradcheck(loss, (*students, z_s))


# --- by hand


@pytest.mark.parametrize(
    ("kind", "value", "gradient"),
    [
        # d = -3, 0, 0.5, 2; mean over 4 elements, gradient / 4
        ("l2", (9 + 0 + 0.25 + 4) / 4, [-6 / 4, 0, 1 / 4, 4 / 4]),
        ("l1", (3 + 0 + 0.5 + 2) / 4, [-1 / 4, 0, 1 / 4, 1 / 4]),
        ("smooth_l1", (2.5 + 0 + 0.125 + 1.5) / 4, [-1 / 4, 0, 0.5 / 4, 1 / 4]),
    ],
)
def test_ir_loss_by_hand(kind, value, gradient):
    student = torch.tensor([1.0, 2.0, 3.5, 6.0], requires_grad=True)
    loss = ir(student, torch.tensor([4.0, 2.0, 3.0, 4.0]), kind)
    assert loss.item() == value
    assert gradients(loss, student)[0].tolist() == gradient


def test_kl_by_hand():
    # p = softmax(log 3, 0) = (3/4, 1/4), q = (1/2, 1/2); KL = 3/4 log(3/2) + 1/4 log(1/2); gradient q - p
    z_s = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    loss = kl(z_s, torch.tensor([[math.log(3), 0.0]], dtype=torch.float64))
    assert loss.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-14)
    torch.testing.assert_close(gradients(loss, z_s)[0], torch.tensor([[-0.25, 0.25]], dtype=torch.float64))


def test_kl_by_hand_with_temperature():
    # tau 2: z_t / tau = (log 3, 0) as above; tau^2 KL = 4 KL; gradient tau (q - p) = (-1/2, 1/2)
    z_s = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    loss = kl(z_s, torch.tensor([[2 * math.log(3), 0.0]], dtype=torch.float64), tau=2.0)
    assert loss.item() == pytest.approx(4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)), rel=1e-14)
    torch.testing.assert_close(gradients(loss, z_s)[0], torch.tensor([[-0.5, 0.5]], dtype=torch.float64))


def test_cross_entropy_by_hand():
    # Row 1: q = (1/4, 3/4), label 0, weight 1: log 4. Row 2: q = (1/2, 1/2), label 1, weight 3: log 2. Row 3 ignored.
    z = torch.tensor([[0.0, math.log(3)], [5.0, 5.0], [9.0, 0.0]], dtype=torch.float64)
    loss = ce(z, torch.tensor([0, 1, -100]), class_weight=torch.tensor([1.0, 3.0]))
    assert loss.item() == pytest.approx((1 * math.log(4) + 3 * math.log(2)) / (1 + 3), rel=1e-14)


def test_smoothed_cross_entropy_by_hand():
    # q = (1/4, 3/4), label 1, smoothing 0.2: targets (0.1, 0.9), -0.1 log(1/4) - 0.9 log(3/4)
    z = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64)
    loss = ce(z, torch.tensor([1]), label_smoothing=0.2)
    assert loss.item() == pytest.approx(0.1 * math.log(4) + 0.9 * math.log(4 / 3), rel=1e-14)


def test_total_by_hand():
    # CE = log 2, KL = 0, IRs: d = 2 and d = 3 everywhere; 0.75 (0.95 log 2 + 0.05 * 0) + 0.25 (1 * 4 + 0.5 * 9)
    z, zeros = torch.zeros(3, 2), torch.zeros(3, 4, 2, 2)
    parts = run([zeros, zeros], [zeros + 2, zeros - 3], z, z, torch.tensor([0, 1, 0]), section_weights=(1, 0.5))
    assert parts.total.item() == pytest.approx(0.75 * 0.95 * math.log(2) + 0.25 * (4 + 4.5), rel=1e-6)
    assert parts.ir.tolist() == [4.0, 9.0]


@pytest.mark.parametrize("tau_squared", [True, False])
@pytest.mark.parametrize("tau", [1.0, 6.0, 20.0])
def test_soft_gradient_is_tau_times_the_difference_of_probabilities(tau, tau_squared):
    z_s, z_t = normal(8, 10).requires_grad_(), normal(8, 10, seed=1)
    labels = torch.zeros(8, dtype=torch.int64)
    settings = {"alpha": 0.3, "beta": 1.0, "tau": tau, "tau_squared": tau_squared}
    total = run(None, None, z_s, z_t, labels, **settings).total
    (soft,) = gradients(total - 0.3 * F.cross_entropy(z_s, labels), z_s)
    expected = (1 - 0.3) * tau * (F.softmax(z_s / tau, 1) - F.softmax(z_t / tau, 1)) / 8
    torch.testing.assert_close(soft, expected if tau_squared else expected / tau**2, rtol=1e-9, atol=1e-12)


# --- precision: no worse than torch at the dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", TORCH_IR)
def test_ir_loss_is_at_least_as_exact_as_torch(kind, dtype):
    student = normal(16, 8, 7, 7, dtype=dtype, scale=3).requires_grad_()
    teacher = normal(16, 8, 7, 7, dtype=dtype, seed=1, scale=3)
    exact_in = student.detach().double().requires_grad_()
    exact = TORCH_IR[kind](exact_in, teacher.double())
    ours, theirs = ir(student, teacher, kind), TORCH_IR[kind](student, teacher)
    assert_no_worse(ours, theirs, exact, student, exact_in)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [10, 1000])
def test_kd_loss_is_at_least_as_exact_as_torch(classes, dtype):
    z_s, z_t = (normal(32, classes, dtype=dtype, seed=i, scale=5) for i in range(2))
    labels = torch.arange(32) % classes
    z_s.requires_grad_()
    exact_in = z_s.detach().double().requires_grad_()
    assert_no_worse(
        kl(z_s, z_t, 4.0), 16 * torch_kl(z_s, z_t, 4.0), 16 * torch_kl(exact_in, z_t.double(), 4.0), z_s, exact_in
    )
    assert_no_worse(ce(z_s, labels), F.cross_entropy(z_s, labels), F.cross_entropy(exact_in, labels), z_s, exact_in)


def assert_no_worse(ours: Tensor, theirs: Tensor, exact: Tensor, leaf: Tensor, exact_leaf: Tensor) -> None:
    """Value and gradient are as near to the exact ones as torch's at the same dtype, or as rounding them would be."""
    assert ours.dtype == torch.float32
    rounding = torch.finfo(torch.float32).eps * abs(exact.item())
    assert abs(ours.item() - exact.item()) <= max(abs(theirs.item() - exact.item()), rounding)

    (our_grad,), (exact_grad,) = gradients(ours, leaf), gradients(exact, exact_leaf)
    try:
        (their_grad,) = gradients(theirs, leaf)
    except RuntimeError as error:
        if "not implemented for 'Half'" not in str(error):  # float16 smooth_l1 on the CPU, in old releases
            raise
        their_grad = exact_grad
    assert our_grad.dtype == leaf.dtype
    our_error, their_error = ((grad.double() - exact_grad).abs() for grad in (our_grad, their_grad))
    limits = torch.finfo(leaf.dtype)
    rounding_error = limits.eps / 2 * exact_grad.abs() + limits.smallest_normal * limits.eps / 2
    assert (our_error <= torch.maximum(their_error, rounding_error) * (1 + 1e-4)).all()


def test_float16_difference_of_300_does_not_overflow():
    student = torch.full((4,), 300.0, dtype=torch.float16, requires_grad=True)
    loss = ir(student, torch.zeros(4, dtype=torch.float16))
    assert loss.item() == 300.0**2
    assert gradients(loss, student)[0].tolist() == [150.0] * 4


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("tau", [1.0, 6.0])
def test_kl_of_near_equal_rows_is_exact_in_float32(tau, offset):
    z_t = normal(1, 10, dtype=torch.float32) + offset
    z_s = (z_t + normal(1, 10, dtype=torch.float32, seed=1, scale=1e-3 * tau)).requires_grad_()
    exact_in = z_s.detach().double().requires_grad_()
    exact = torch_kl(exact_in, z_t.double(), tau)
    loss = kl(z_s, z_t, tau, tau_squared=False)
    assert 5e-8 < exact.item() < 2e-6  # the hard region: 4e-7
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    torch.testing.assert_close(gradients(loss, z_s)[0].double(), gradients(exact, exact_in)[0], rtol=1e-5, atol=0)


def test_kl_of_equal_rows_and_its_gradient_are_zero():
    z = normal(4, 10, dtype=torch.float32)
    z_s = z.clone().requires_grad_()
    loss = kl(z_s, z, 6.0)
    assert loss.item() == 0.0
    assert gradients(loss, z_s)[0].abs().max() < 1e-15


def test_huge_logits_stay_finite():
    z_s = torch.tensor([[1e30, -1e30, 0.0]], requires_grad=True)
    loss = run(None, None, z_s, torch.tensor([[-1e4, 1e4, 0.0]]), torch.tensor([0]), beta=1.0, alpha=0.5, tau=1.0).total
    assert math.isfinite(loss.item())
    assert gradients(loss, z_s)[0].isfinite().all()


# --- masked classes, NaN


def test_class_masked_in_both_counts_as_absent():
    z_s, z_t = normal(3, 4).requires_grad_(), normal(3, 4, seed=1)
    hole = torch.full((3, 1), -INF, dtype=torch.float64)
    masked_s = torch.cat([z_s.detach()[:, :2], hole, z_s.detach()[:, 2:]], 1).requires_grad_()
    masked_t = torch.cat([z_t[:, :2], hole, z_t[:, 2:]], 1)
    labels, masked_labels = torch.tensor([0, 2, 1]), torch.tensor([0, 3, 1])
    loss = run(None, None, z_s, z_t, labels, beta=1.0, alpha=0.5).total
    masked = run(None, None, masked_s, masked_t, masked_labels, beta=1.0, alpha=0.5).total
    torch.testing.assert_close(masked, loss)
    (grad,), (masked_grad,) = gradients(loss, z_s), gradients(masked, masked_s)
    torch.testing.assert_close(masked_grad[:, [0, 1, 3, 4]], grad)
    assert masked_grad[:, 2].tolist() == [0.0, 0.0, 0.0]


def test_class_masked_in_the_teacher_alone_pulls_the_student_off_it():
    # p = (1/2, 1/2, 0), q = (1/3, 1/3, 1/3): KL = log(3/2), gradient q - p
    z_s = torch.zeros(1, 3, requires_grad=True)
    loss = kl(z_s, torch.tensor([[0.0, 0.0, -INF]]))
    assert loss.item() == pytest.approx(math.log(1.5), rel=1e-6)
    torch.testing.assert_close(gradients(loss, z_s)[0], torch.tensor([[-1 / 6, -1 / 6, 1 / 3]]))


def test_class_masked_in_the_student_alone_is_an_infinite_loss_as_in_torch():
    z_s = torch.tensor([[0.0, -INF, 1.0]], dtype=torch.float64, requires_grad=True)
    z_t = normal(1, 3)
    assert kl(z_s, z_t).item() == INF
    assert_same(kl(z_s, z_t), torch_kl(z_s, z_t), z_s)


def test_masked_class_of_weight_zero_is_silent():
    z = torch.tensor([[0.0, -INF, 1.0], [2.0, 1.0, 0.0]], requires_grad=True)
    weight = torch.tensor([1.0, 0.0, 1.0])
    loss = ce(z, torch.tensor([1, 0]), class_weight=weight, label_smoothing=0.1)
    assert math.isfinite(loss.item())
    assert gradients(loss, z)[0].isfinite().all()


@pytest.mark.parametrize("kind", TORCH_IR)
def test_nan_in_an_ir_reaches_loss_and_gradient(kind):
    student = torch.tensor([1.0, math.nan, 3.0], requires_grad=True)
    loss = ir(student, torch.zeros(3), kind)
    assert math.isnan(loss.item())
    assert gradients(loss, student)[0].isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("kind", ["l1", "smooth_l1"])
def test_infinite_difference_keeps_a_finite_gradient_as_in_torch(kind):
    student = torch.tensor([INF, -INF, 0.5], dtype=torch.float64, requires_grad=True)
    teacher = torch.zeros(3, dtype=torch.float64)
    assert_same(ir(student, teacher, kind), TORCH_IR[kind](student, teacher), student)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_nan_in_logits_reaches_loss_and_gradient_of_its_row(side):
    z_s, z_t = torch.zeros(2, 3), torch.zeros(2, 3)
    (z_s if side == "student" else z_t)[1, 2] = math.nan
    z_s.requires_grad_()
    loss = kl(z_s, z_t)
    assert math.isnan(loss.item())
    assert gradients(loss, z_s)[0].isnan().any(1).tolist() == [False, True]


def test_row_of_masked_classes_alone_is_nan_as_in_torch():
    z_s, z_t = torch.zeros(1, 3), torch.full((1, 3), -INF)
    assert math.isnan(torch_kl(z_s, z_t).item())
    assert math.isnan(kl(z_s, z_t).item())


# --- degenerate sizes


def test_empty_batch_is_nan_with_an_empty_gradient():
    z_s, z_t = torch.zeros(0, 5, requires_grad=True), torch.zeros(0, 5)
    student, labels = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    for loss, leaf in ((kl(z_s, z_t), z_s), (ce(z_s, labels), z_s), (ir(student, torch.zeros(0, 3)), student)):
        assert math.isnan(loss.item())
        assert gradients(loss, leaf)[0].shape == leaf.shape


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_all_labels_ignored_is_nan_with_a_zero_gradient_as_in_torch(smoothing):
    z, labels = normal(3, 4).requires_grad_(), torch.full((3,), -100)
    theirs = F.cross_entropy(z, labels, label_smoothing=smoothing)
    assert math.isnan(theirs.item())
    assert_same(ce(z, labels, label_smoothing=smoothing), theirs, z)
    assert gradients(ce(z, labels, label_smoothing=smoothing), z)[0].tolist() == [[0.0] * 4] * 3


def test_ignored_rows_still_learn_from_the_teacher():
    z_s, z_t = normal(3, 4).requires_grad_(), normal(3, 4, seed=1)
    parts = run(None, None, z_s, z_t, torch.tensor([0, -100, 1]), beta=1.0, alpha=0.5, tau=1.0)
    torch.testing.assert_close(parts.kl, torch_kl(z_s, z_t).detach())
    assert gradients(parts.total, z_s)[0][1].abs().max() > 0


def test_one_class_gives_zero():
    z_s = torch.tensor([[3.0], [4.0]], requires_grad=True)
    parts = run(None, None, z_s, torch.tensor([[1.0], [9.0]]), torch.tensor([0, 0]), beta=1.0, alpha=0.5)
    assert (parts.total.item(), parts.ce.item(), parts.kl.item()) == (0.0, 0.0, 0.0)
    assert gradients(parts.total, z_s)[0].tolist() == [[0.0], [0.0]]


def test_one_row_is_torchs():
    z_s, z_t, labels = normal(1, 7).requires_grad_(), normal(1, 7, seed=1), torch.tensor([3])
    expected = 0.5 * F.cross_entropy(z_s, labels) + 0.5 * torch_kl(z_s, z_t)
    assert_same(run(None, None, z_s, z_t, labels, beta=1.0, alpha=0.5, tau=1.0).total, expected, z_s)


@pytest.mark.parametrize("label", [10, 99, -1, -99])
def test_label_out_of_range_is_named(label):
    with pytest.raises(IndexError, match=rf"label {label} is out of range for 10 classes.*expected 0 to 9.*-100"):
        ce(torch.zeros(3, 10), torch.tensor([0, label, 9]))


def test_ignore_index_may_be_out_of_range_or_in_it():
    z = normal(3, 10)
    expected = F.cross_entropy(z[:2], torch.tensor([0, 9]))
    for ignore in (255, -1, 5):
        torch.testing.assert_close(ce(z, torch.tensor([0, 9, ignore]), ignore_index=ignore), expected)


# --- autograd


def test_double_backward_is_refused():
    student = normal(3).requires_grad_()
    with pytest.raises(RuntimeError, match="lit_loss does not support double backward"):
        torch.autograd.grad(ir(student, normal(3, seed=1)), student, create_graph=True)


def test_no_gradient_flows_to_the_teacher():
    student, teacher = normal(3).requires_grad_(), normal(3, seed=1).requires_grad_()
    z_s, z_t = normal(2, 4).requires_grad_(), normal(2, 4, seed=1).requires_grad_()
    weight = torch.ones(4, requires_grad=True)
    run([student], [teacher], z_s, z_t, torch.tensor([0, 1]), class_weight=weight).total.backward()
    assert student.grad is not None
    assert z_s.grad is not None
    assert (teacher.grad, z_t.grad, weight.grad) == (None, None, None)


def test_parts_are_detached_and_the_total_may_be_changed_in_place():
    student = normal(3).requires_grad_()
    parts = run([student], [normal(3, seed=1)], normal(2, 4), normal(2, 4, seed=1), torch.tensor([0, 1]))
    assert [part.requires_grad for part in parts] == [True, False, False, False]
    (whole,) = gradients(parts.total, student)
    loss = parts.total
    loss /= 4
    torch.testing.assert_close(gradients(loss, student)[0], whole / 4)


def test_backward_twice_with_retain_graph_gives_the_same_gradient():
    student, teacher = normal(3).requires_grad_(), normal(3, seed=1)
    loss = ir(student, teacher)
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(student.grad, 2 * 2 * (student.detach() - teacher) / 3)


def test_grad_scale_changes_nothing_but_keeps_float16_gradients_from_underflow():
    # 2 d / N = 2 * 0.01 / 2^20 is under float16's smallest number; times 2^16 it is 1.25e-3.
    student = torch.full((2**20,), 0.01, dtype=torch.float16, requires_grad=True)
    teacher, scale = torch.zeros(2**20, dtype=torch.float16), torch.tensor(2.0**16)
    loss = run([student], [teacher], beta=0.0, grad_scale=scale).total
    torch.testing.assert_close(loss, ir(student, teacher), rtol=0, atol=0)
    assert gradients(loss, student)[0].unique().tolist() == [0.0]
    scaled = gradients(loss * scale, student)[0].unique()
    assert scaled.tolist() == pytest.approx([2 * student[0].item() / 2**20 * 2**16], rel=1e-3)


def test_inputs_are_never_overwritten():
    tensors = [normal(2, 3, seed=i) for i in range(4)]
    copies = [tensor.clone() for tensor in tensors]
    tensors[0].requires_grad_()
    tensors[2].requires_grad_()
    for kind in TORCH_IR:
        run(tensors[:1], tensors[1:2], tensors[2], tensors[3], torch.tensor([0, 1]), ir=kind).total.backward()
    for tensor, copy in zip(tensors, copies):
        assert torch.equal(tensor, copy)


# --- dtypes, layouts, contexts


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_result_is_float32_and_float64_for_float64(dtype):
    tensors = [normal(2, 3, dtype=dtype, seed=i) for i in range(4)]
    tensors[0].requires_grad_()
    tensors[2].requires_grad_()
    parts = run(tensors[:1], tensors[1:2], tensors[2], tensors[3], torch.tensor([0, 1]))
    assert {part.dtype for part in parts} == {torch.float64 if dtype == torch.float64 else torch.float32}
    assert [grad.dtype for grad in gradients(parts.total, tensors[0], tensors[2])] == [dtype, dtype]


@pytest.mark.parametrize("wide", range(4), ids=["student IR", "teacher IR", "student logits", "teacher logits"])
def test_one_float64_input_makes_the_result_float64(wide):
    tensors = [normal(2, 3, seed=i, dtype=torch.float64 if i == wide else torch.float32) for i in range(4)]
    parts = run(tensors[:1], tensors[1:2], tensors[2], tensors[3], torch.tensor([0, 1]))
    assert {part.dtype for part in parts} == {torch.float64}


def test_unused_float64_does_not_promote():
    assert kl(torch.zeros(2, 3), torch.zeros(2, 3)).dtype == torch.float32
    parts = run([normal(3)], [normal(3)], torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 1]), beta=1.0)
    assert parts.total.dtype == torch.float32


class Dtypes(TorchDispatchMode):
    """Collects the dtype of every tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.seen.update(leaf.dtype for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


def test_devices_without_float64_are_never_asked_for_it():
    # The meta device stands for them. It has no values either: to read one would raise.
    z_s, z_t = (torch.zeros(2, 3, device="meta") for _ in range(2))
    student, labels = torch.zeros(2, 4, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")
    z_s.requires_grad_()
    with Dtypes() as dtypes:
        parts = run([student], [student], z_s, z_t, labels, label_smoothing=0.1)
        parts.total.backward()
    assert torch.float32 in dtypes.seen
    assert torch.float64 not in dtypes.seen
    assert [part.shape for part in parts] == [(), (), (), (1,)]


def test_channels_last_against_contiguous_is_compared_by_index():
    student, teacher = normal(2, 3, 4, 5).requires_grad_(), normal(2, 3, 4, 5, seed=1)
    mixed = student.detach().to(memory_format=torch.channels_last).requires_grad_()
    loss, mixed_loss = ir(student, teacher), ir(mixed, teacher)
    torch.testing.assert_close(mixed_loss, loss)
    torch.testing.assert_close(gradients(mixed_loss, mixed)[0], gradients(loss, student)[0])


@st.composite
def _ir_pairs(draw):
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    order = draw(st.permutations(range(len(shape))))
    step = draw(st.integers(1, 3))
    dtype = draw(st.sampled_from([*DTYPES, torch.float64]))

    def strided(seed: int) -> Tensor:
        storage = [shape[axis] for axis in order]
        storage[-1] *= step
        tensor = normal(*storage, dtype=dtype, seed=seed, scale=2)[..., ::step]
        return tensor.permute([order.index(axis) for axis in range(len(shape))])

    student, teacher = strided(0), normal(*shape, dtype=dtype, seed=1, scale=2)
    if draw(st.booleans()):
        teacher = teacher[:1].expand_as(teacher)
    return student, teacher, draw(st.sampled_from(list(TORCH_IR)))


@settings(max_examples=60, deadline=None)
@given(_ir_pairs())
def test_ir_loss_holds_for_any_shape_stride_and_dtype(case):
    student, teacher, kind = case
    student = student.detach().requires_grad_()
    exact_in = student.detach().double().requires_grad_()
    loss, exact = ir(student, teacher, kind), TORCH_IR[kind](exact_in, teacher.double())
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    (grad,), (exact_grad,) = gradients(loss, student), gradients(exact, exact_in)
    torch.testing.assert_close(grad, exact_grad.to(student.dtype), rtol=2 * torch.finfo(student.dtype).eps, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 6),
    classes=st.integers(1, 40),
    dtypes=st.tuples(*[st.sampled_from([*DTYPES, torch.float64])] * 2),
    tau=st.floats(0.5, 20),
    alpha=st.floats(0, 1),
    transposed=st.booleans(),
    ignored=st.booleans(),
)
def test_kd_loss_holds_for_any_shape_stride_and_dtype(rows, classes, dtypes, tau, alpha, transposed, ignored):
    z_s, z_t = (normal(classes, rows, dtype=dtype, seed=i, scale=3).t() for i, dtype in enumerate(dtypes))
    z_s = (z_s if transposed else z_s.contiguous()).detach().requires_grad_()
    labels = torch.arange(rows) % classes
    if ignored and rows > 1:
        labels[0] = -100
    exact_in = z_s.detach().double().requires_grad_()
    exact = alpha * F.cross_entropy(exact_in, labels) + (1 - alpha) * tau**2 * torch_kl(exact_in, z_t.double(), tau)
    loss = run(None, None, z_s, z_t, labels, beta=1.0, alpha=alpha, tau=tau).total
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6, abs=1e-7)
    (grad,), (exact_grad,) = gradients(loss, z_s), gradients(exact, exact_in)
    torch.testing.assert_close(grad, exact_grad.to(z_s.dtype), rtol=2 * torch.finfo(z_s.dtype).eps, atol=3e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", TORCH_IR)
def test_autocast_changes_nothing(kind, dtype):
    student, z_s = (normal(4, 6, dtype=torch.float32, seed=i).requires_grad_() for i in range(2))
    teacher, z_t, labels = normal(4, 6, seed=2).to(dtype), normal(4, 6, seed=3).to(dtype), torch.arange(4)
    plain = run([student], [teacher], z_s, z_t, labels, ir=kind).total
    with torch.autocast("cpu", dtype=dtype):
        cast = run([student], [teacher], z_s, z_t, labels, ir=kind).total
    torch.testing.assert_close(cast, plain, rtol=0, atol=0)
    for ours, theirs in zip(gradients(cast, student, z_s), gradients(plain, student, z_s)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
