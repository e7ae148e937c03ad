"""LITLoss, KDLoss and IRLoss as modules in a training script."""

from __future__ import annotations

import copy
import doctest
import io
import re

import pytest
import torch
from everyday import exhaustive
from torch import nn

from lit_fast.errors import UnavailableError
from lit_fast.loss import modules as losses
from lit_fast.loss.backends import native
from lit_fast.loss.functional import ir_loss, kd_loss, lit_loss
from lit_fast.loss.modules import IRLoss, KDLoss, LITLoss

LABELS = torch.tensor([0, 4, 2, 2])


def batch(dtype: torch.dtype = torch.float32):
    """student IRs, teacher IRs, student logits, teacher logits, labels of 4 images, 2 sections and 5 classes."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    students = [normal(4, 3, 2, 2).requires_grad_(), normal(4, 6).requires_grad_()]
    return students, [normal(4, 3, 2, 2), normal(4, 6)], normal(4, 5).requires_grad_(), normal(4, 5), LABELS


# --- values


def test_modules_compute_what_the_functions_compute():
    given = batch()
    students, teachers, z_s, z_t, labels = given
    weight = torch.linspace(0.5, 2, 5)
    kd_settings = {
        "alpha": 0.3,
        "tau": 2.0,
        "tau_squared": False,
        "class_weight": weight,
        "ignore_index": 2,
        "label_smoothing": 0.1,
    }
    ir_settings = {"ir": "smooth_l1", "section_weights": (1.0, 0.5)}
    lit = LITLoss(beta=0.4, **kd_settings, **ir_settings)
    assert lit(*given) == lit_loss(*given, beta=0.4, **kd_settings, **ir_settings)
    assert KDLoss(**kd_settings)(z_s, z_t, labels) == kd_loss(z_s, z_t, labels, **kd_settings)
    assert IRLoss(**ir_settings)(students, teachers) == ir_loss(students, teachers, **ir_settings)


def test_defaults_are_those_of_the_functions():
    students, teachers, z_s, z_t, labels = batch()
    assert LITLoss()(*batch()) == lit_loss(*batch())
    assert KDLoss()(z_s, z_t, labels) == kd_loss(z_s, z_t, labels)
    assert IRLoss()(students, teachers) == ir_loss(students, teachers)


def test_drop_in_training_step_lowers_the_loss():
    torch.manual_seed(0)
    student, criterion = nn.Linear(6, 5), LITLoss(beta=0.5)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    images, teacher = torch.randn(4, 6), torch.randn(4, 5)
    history = []
    for _ in range(20):
        optimizer.zero_grad()
        logits = student(images)
        loss = criterion([logits], [teacher], logits, teacher, LABELS)
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.7 * history[0]


def test_docstring_examples_run():
    result = doctest.testmod(losses)
    assert result.attempted > 0
    assert result.failed == 0


# --- parts


def test_parts_are_those_of_the_last_call_and_detached():
    given, criterion = batch(), LITLoss()
    assert criterion.parts is None
    loss = criterion(*given)
    assert criterion.parts.total == loss
    assert [tuple(part.shape) for part in criterion.parts] == [(), (), (), (2,)]
    assert not any(part.requires_grad for part in criterion.parts)
    expected = lit_loss(*given, return_parts=True)
    for part, same in zip(criterion.parts, expected):
        torch.testing.assert_close(part, same.detach())
    criterion(given[1], *given[1:])
    assert criterion.parts.ir.tolist() == [0.0, 0.0]


def test_parts_do_not_follow_the_loss_when_it_is_changed_in_place():
    criterion = LITLoss()
    loss = criterion(*batch())
    value = loss.item()
    loss /= 4
    assert criterion.parts.total.item() == value
    loss.backward()


def test_parts_of_a_call_that_was_replayed_are_those_of_the_last_call():
    criterion = LITLoss()
    criterion(*batch())
    parts = lit_loss(*batch(), return_parts=True)
    criterion.keep(parts)
    assert criterion.parts is parts


def test_kd_loss_has_no_ir_parts_and_ir_loss_no_logit_parts():
    students, teachers, z_s, z_t, labels = batch()
    kd, ir = KDLoss(), IRLoss()
    kd(z_s, z_t, labels)
    ir(students, teachers)
    assert kd.parts.ir.shape == (0,)
    assert (ir.parts.ce.item(), ir.parts.kl.item()) == (0.0, 0.0)


# --- as a module


def test_repr_shows_the_settings():
    assert repr(LITLoss(alpha=0.9, section_weights=[1, 2], class_weight=torch.ones(5))) == (
        "LITLoss(alpha=0.9, beta=0.75, tau=6.0, ir='l2', tau_squared=True, section_weights=(1.0, 2.0), "
        "ignore_index=-100, label_smoothing=0.0, class_weight=[5], backend='auto')"
    )
    assert repr(KDLoss(tau=4)) == (
        "KDLoss(alpha=0.95, tau=4, tau_squared=True, ignore_index=-100, label_smoothing=0.0, backend='auto')"
    )
    assert repr(IRLoss("l1", backend="eager")) == "IRLoss(ir='l1', section_weights=None, backend='eager')"


def test_class_weight_is_a_buffer_of_its_own():
    weight = torch.ones(5)
    criterion = LITLoss(class_weight=weight)
    weight.zero_()
    assert criterion.class_weight.tolist() == [1.0] * 5
    assert list(criterion.state_dict()) == ["class_weight"]
    assert criterion.double().class_weight.dtype == torch.float64
    assert list(criterion.parameters()) == []
    assert LITLoss().state_dict() == {}


def test_module_is_copied_and_saved_after_a_call():
    criterion = LITLoss(tau=3.0, class_weight=torch.linspace(0.5, 1, 5))
    loss = criterion(*batch())
    file = io.BytesIO()
    torch.save(criterion, file)
    file.seek(0)
    for twin in (copy.deepcopy(criterion), torch.load(file, weights_only=False)):
        assert twin(*batch()) == loss


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: LITLoss(alpha=2), ValueError, "alpha: expected a number in [0, 1], got 2"),
        (lambda: LITLoss(beta=-1), ValueError, "beta: expected a number in [0, 1], got -1"),
        (
            lambda: LITLoss(section_weights=[1, float("inf")]),
            ValueError,
            "section_weights: section 2: expected a finite",
        ),
        (
            lambda: LITLoss(backend="cuda"),
            ValueError,
            "backend: expected one of 'auto', 'native', 'triton', 'eager', got 'cuda'",
        ),
        (lambda: KDLoss(tau=-1), ValueError, "tau: expected a finite temperature > 0, got -1"),
        (lambda: KDLoss(label_smoothing=1.1), ValueError, "label_smoothing: expected a number in [0, 1], got 1.1"),
        (lambda: IRLoss("huber"), ValueError, "ir: expected one of 'l2', 'l1', 'smooth_l1', got 'huber'"),
        (lambda: KDLoss(class_weight=[1.0]), TypeError, "class_weight: expected a floating tensor of shape (classes,)"),
        (lambda: KDLoss(class_weight=torch.ones(3).int()), TypeError, "got torch.int32"),
        (lambda: KDLoss(class_weight=torch.ones(3, 1)), ValueError, "expected shape (classes,), got (3, 1)"),
        (lambda: KDLoss(class_weight=torch.tensor([1.0, -1.0])), ValueError, "expected finite weights >= 0"),
    ],
)
def test_wrong_setting_is_named_when_the_module_is_built(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()


def test_native_is_checked_when_the_module_is_built(monkeypatch):
    from lit_fast.loss.backends import native

    monkeypatch.setattr(native, "available", lambda *device: (False, "no compiler"))
    with pytest.raises(RuntimeError, match="'native' is not available: no compiler"):
        LITLoss(backend="native")


# --- mixed precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_step_gives_float32_loss_and_parameter_gradients(dtype):
    torch.manual_seed(0)
    student, criterion = nn.Linear(6, 5), LITLoss()
    images, teacher = torch.randn(4, 6), torch.randn(4, 5).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        logits = student(images)
        loss = criterion([logits], [teacher], logits, teacher, LABELS)
    assert logits.dtype == dtype
    assert loss.dtype == torch.float32
    detached = logits.detach().double().requires_grad_()
    expected = lit_loss([detached], [teacher.double()], detached, teacher.double(), LABELS)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert student.weight.grad.dtype == torch.float32
    assert student.weight.grad.abs().max() > 0


@pytest.mark.parametrize("tell", [False, True], ids=["without grad_scale", "with grad_scale"])
def test_grad_scaler_saves_float16_gradients(tell):
    # Gradient 2 d / N = 2 * 0.0625 / 2^22 = 2^-25, under float16's smallest 2^-24; scaled by 2^12 it is exact.
    student = nn.Parameter(torch.full((2**22,), 0.0625))
    optimizer = torch.optim.SGD([student], lr=2.0**21)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    criterion = IRLoss()
    half = student.half()
    scale = torch.tensor(scaler.get_scale()) if tell else None
    loss = criterion([half], [torch.zeros_like(half)], grad_scale=scale)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    assert student.grad.unique().tolist() == [2.0**-25]
    scaler.step(optimizer)
    scaler.update()
    assert student.detach().unique().tolist() == [0.0]  # 0.0625 - 2^21 * 2^-25


def test_grad_scaler_skips_the_step_of_a_nan_loss():
    student = nn.Parameter(torch.tensor([1.0, float("nan")]))
    before, optimizer = student.detach().clone(), torch.optim.SGD([student], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(IRLoss("l1")([student], [torch.zeros(2)])).backward()
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(student.detach(), before, equal_nan=True)
    assert scaler.get_scale() == 2.0


# --- torch.compile


@pytest.fixture
def compiled_from_scratch():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


CRITERIA = {
    "l2": lambda backend: LITLoss(backend=backend),
    "l1, class weights, smoothing": lambda backend: LITLoss(
        ir="l1", section_weights=(1, 2), class_weight=torch.linspace(0.5, 2, 5), label_smoothing=0.1, backend=backend
    ),
    "smooth_l1, no KL": lambda backend: LITLoss(ir="smooth_l1", alpha=1.0, tau_squared=False, backend=backend),
    "KD alone": lambda backend: LITLoss(beta=1.0, ignore_index=2, backend=backend),
    "IR alone": lambda backend: LITLoss(beta=0.0, backend=backend),
}


@pytest.mark.usefixtures("compiled_from_scratch")
@pytest.mark.parametrize("backend", ["eager", "auto"])
@pytest.mark.parametrize("name", CRITERIA)
def test_whole_graph_compiles_with_gradients_and_parts(name, backend):
    criterion, given = CRITERIA[name](backend), batch()
    leaves = [*(given[0] if name != "KD alone" else []), *([given[2]] if name != "IR alone" else [])]
    expected = criterion(*given)
    expected_parts, expected_grads = criterion.parts, torch.autograd.grad(expected, leaves)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(*arguments):
        loss = criterion(*arguments)
        return loss, criterion.parts.ce * 2

    loss, twice_ce = step(*given)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(twice_ce, expected_parts.ce * 2)
    for ours, theirs in zip(torch.autograd.grad(loss, leaves), expected_grads):
        torch.testing.assert_close(ours, theirs)
    for part, same in zip(criterion.parts, expected_parts):
        torch.testing.assert_close(part, same)
    assert not criterion.parts.total.requires_grad


@pytest.mark.usefixtures("compiled_from_scratch")
def test_functional_form_compiles_and_parts_change_from_call_to_call():
    criterion = LITLoss(backend="eager")
    compiled, compiled_function = (torch.compile(f, backend="aot_eager", fullgraph=True) for f in (criterion, lit_loss))
    students, teachers, z_s, z_t, labels = batch()
    for step in range(3):
        moved = [teacher + step for teacher in teachers]
        loss = compiled(students, moved, z_s, z_t, labels)
        torch.testing.assert_close(loss, lit_loss(students, moved, z_s, z_t, labels))
        torch.testing.assert_close(criterion.parts.total, loss.detach())
        torch.testing.assert_close(compiled_function(students, moved, z_s, z_t, labels, backend="eager"), loss)


@exhaustive
@pytest.mark.usefixtures("compiled_from_scratch")
def test_inductor_compiles_the_eager_backend():
    criterion, given = LITLoss(ir="smooth_l1", alpha=0.5, backend="eager"), batch()
    leaves = [*given[0], given[2]]
    expected = criterion(*given)
    loss = torch.compile(criterion, fullgraph=True)(*given)
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves)):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("compiled_from_scratch")
def test_compiled_double_backward_is_refused():
    criterion, given = LITLoss(backend="eager"), batch()
    loss = torch.compile(criterion, backend="aot_eager", fullgraph=True)(*given)
    (grad,) = torch.autograd.grad(loss, given[2], create_graph=True)
    # In torch's words, which are not the same in every release.
    with pytest.raises(RuntimeError, match=r"does not currently support double backward|does not require grad"):
        grad.sum().backward()


@pytest.mark.usefixtures("compiled_from_scratch")
@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_one_tensor_in_several_places_compiles(backend):
    (student, *_), (teacher, *_), z_s, _, labels = batch()
    criterion = LITLoss(backend=backend)
    given = ([student, student], [teacher, teacher], z_s, z_s, labels)
    expected = criterion(*given)
    loss = torch.compile(criterion, backend="aot_eager", fullgraph=True)(*given)
    torch.testing.assert_close(loss, expected)
    for ours, right in zip(torch.autograd.grad(loss, [student, z_s]), torch.autograd.grad(expected, [student, z_s])):
        torch.testing.assert_close(ours, right)


# --- torch.func


@pytest.mark.parametrize("ir", ["l2", "l1", "smooth_l1"])
def test_transforms_of_torch_func_give_what_autograd_gives(ir):
    students, teachers, z_s, z_t, labels = batch(torch.float64)
    criterion = LITLoss(ir=ir, label_smoothing=0.1)

    def loss_of(student, logits):
        return criterion([student, *students[1:]], teachers, logits, z_t, labels)

    given = students[0].detach(), z_s.detach()
    right = torch.autograd.grad(loss_of(students[0], z_s), [students[0], z_s])
    for ours, theirs in zip(torch.func.grad(loss_of, argnums=(0, 1))(*given), right):
        torch.testing.assert_close(ours, theirs)
    _, slope = torch.func.jvp(loss_of, given, tuple(map(torch.ones_like, given)))
    torch.testing.assert_close(slope, sum(gradient.sum() for gradient in right))


def test_vmap_gives_the_loss_of_each_row():
    _, _, z_s, z_t, labels = batch()
    rows = [tensor.detach().unsqueeze(1) for tensor in (z_s, z_t, labels)]
    torch.testing.assert_close(torch.func.vmap(KDLoss())(*rows), torch.stack([KDLoss()(*row) for row in zip(*rows)]))


def test_second_order_under_torch_func_is_that_of_the_slope():
    student, teacher = torch.linspace(-2, 2, 9, dtype=torch.float64), torch.zeros(9, dtype=torch.float64)
    second = torch.func.hessian(lambda z: IRLoss("smooth_l1")([z], [teacher]))(student)
    torch.testing.assert_close(second, torch.diag((student.abs() <= 1).double() / 9))


@pytest.mark.usefixtures("compiled_from_scratch")
def test_a_compiled_transform_has_the_gradient():
    student, teacher = torch.randn(2, 4, 3)
    gradient = torch.func.grad(lambda z: IRLoss()([z], [teacher]))
    compiled = torch.compile(lambda z: gradient(z), backend="aot_eager")
    torch.testing.assert_close(compiled(student), (student - teacher) / 6)


@pytest.mark.skipif(not native.available()[0], reason=f"native: {native.available()[1]}")
def test_a_fused_backend_is_refused_under_torch_func():
    with pytest.raises(UnavailableError, match=r"'native' is not available under torch.func.*backend='auto'"):
        torch.func.grad(lambda z: IRLoss(backend="native")([z], [torch.zeros(3)]))(torch.ones(3))


# --- IRs in other containers


@pytest.mark.parametrize(
    "made", [tuple, iter, lambda irs: dict(enumerate(irs)).values(), lambda irs: (ir for ir in irs)]
)
def test_irs_come_in_anything_that_has_an_order(made):
    students, teachers, *_ = batch()
    expected = IRLoss()(students, teachers)
    assert torch.equal(IRLoss()(made(students), made(teachers)), expected)
    assert IRLoss().count(made(students)) == IRLoss().count(students)


@pytest.mark.parametrize("made", [lambda irs: dict(enumerate(irs)), set, lambda irs: "irs", lambda irs: 3])
def test_irs_without_an_order_are_refused_by_name(made):
    students, teachers, *_ = batch()
    with pytest.raises(TypeError, match="student_irs: expected a sequence with one tensor per section, got"):
        IRLoss()(made(students), made(teachers))
    with pytest.raises(TypeError, match="student_irs: expected a sequence with one tensor per section, got"):
        IRLoss().count(made(students))
