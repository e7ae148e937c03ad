"""lit_loss, kd_loss and ir_loss: what they return, what they reject and how, and which backend they pick."""

from __future__ import annotations

import doctest
import re
import sys
import types
import warnings

import pytest
import torch
import torch.nn.functional as F

from lit_fast.errors import UnavailableError
from lit_fast.extension import EXTENSION
from lit_fast.loss import backends, functional
from lit_fast.loss.backends import Inputs, LossOptions, LossParts, eager, native
from lit_fast.loss.backends.checks import check_inputs
from lit_fast.loss.functional import ir_loss, kd_loss, lit_loss

CPU = torch.device("cpu")


def inputs(**changes):
    """Arguments of a small lit_loss that is right, but for `changes`."""
    generator = torch.Generator().manual_seed(0)
    arguments = {
        "student_irs": [torch.randn(shape, generator=generator) for shape in ((4, 3, 2, 2), (4, 5))],
        "teacher_irs": [torch.randn(shape, generator=generator) for shape in ((4, 3, 2, 2), (4, 5))],
        "student_logits": torch.randn(4, 10, generator=generator),
        "teacher_logits": torch.randn(4, 10, generator=generator),
        "labels": torch.tensor([0, 9, 3, 3]),
    }
    return arguments | changes


# --- results


def test_kd_loss_is_lit_loss_with_beta_1():
    given = inputs()
    z_s, z_t, labels = given["student_logits"], given["teacher_logits"], given["labels"]
    weight = torch.linspace(0.5, 2, 10)
    options = {"alpha": 0.4, "tau": 3.0, "class_weight": weight, "ignore_index": 3, "label_smoothing": 0.1}
    expected = 0.4 * F.cross_entropy(z_s, labels, weight, ignore_index=3, label_smoothing=0.1) + 0.6 * F.kl_div(
        F.log_softmax(z_s / 3, 1), F.softmax(z_t / 3, 1), reduction="batchmean"
    )
    plain = kd_loss(z_s, z_t, labels, tau_squared=False, **options)
    torch.testing.assert_close(plain, expected)
    torch.testing.assert_close(plain, lit_loss(None, None, z_s, z_t, labels, beta=1, tau_squared=False, **options))
    assert kd_loss(z_s, z_t, labels, **options) > plain


def test_ir_loss_is_lit_loss_with_beta_0():
    students, teachers = inputs()["student_irs"], inputs()["teacher_irs"]
    expected = 2 * F.l1_loss(students[0], teachers[0]) + 0.5 * F.l1_loss(students[1], teachers[1])
    torch.testing.assert_close(ir_loss(students, teachers, ir="l1", section_weights=[2, 0.5]), expected)
    torch.testing.assert_close(lit_loss(students, teachers, beta=0, ir="l1", section_weights=[2, 0.5]), expected)


def test_defaults_are_the_papers():
    given = inputs()
    z_s, z_t = given["student_logits"], given["teacher_logits"]
    soft = 36 * F.kl_div(F.log_softmax(z_s / 6, 1), F.softmax(z_t / 6, 1), reduction="batchmean")
    kd = 0.95 * F.cross_entropy(z_s, given["labels"]) + 0.05 * soft
    irs = sum(F.mse_loss(s, t) for s, t in zip(given["student_irs"], given["teacher_irs"]))
    torch.testing.assert_close(lit_loss(**given), 0.75 * kd + 0.25 * irs)
    torch.testing.assert_close(kd_loss(z_s, z_t, given["labels"]), kd)
    torch.testing.assert_close(ir_loss(given["student_irs"], given["teacher_irs"]), irs)


def test_return_parts_gives_the_differentiable_total_and_its_parts():
    given = inputs()
    given["student_logits"].requires_grad_()
    parts = lit_loss(**given, return_parts=True)
    assert isinstance(parts, LossParts)
    torch.testing.assert_close(parts.total, lit_loss(**given))
    expected = 0.75 * (0.95 * parts.ce + 0.05 * parts.kl) + 0.25 * parts.ir.sum()
    torch.testing.assert_close(parts.total.detach(), expected)
    assert [part.requires_grad for part in parts] == [True, False, False, False]


@pytest.mark.parametrize(
    ("settings", "unused"),
    [
        ({"beta": 0.0}, ("student_logits", "teacher_logits", "labels")),
        ({"beta": 1.0}, ("student_irs", "teacher_irs")),
        ({"alpha": 1.0}, ("teacher_logits",)),
        ({"alpha": 0.0}, ("labels",)),
    ],
)
def test_what_the_weights_silence_is_not_needed_and_not_looked_at(settings, unused):
    expected = lit_loss(**inputs(), **settings)
    assert lit_loss(**inputs(**dict.fromkeys(unused)), **settings) == expected
    assert lit_loss(**inputs(**dict.fromkeys(unused, "nonsense")), **settings) == expected


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_labels_may_be_int32(backend):
    expected = lit_loss(**inputs(), backend=backend)
    assert lit_loss(**inputs(labels=inputs()["labels"].int()), backend=backend) == expected


def test_backends_get_int64_labels_and_nothing_that_is_not_used():
    given = check_inputs(Inputs(**inputs(labels=inputs()["labels"].int())), LossOptions())
    assert given.labels.dtype == torch.int64
    everything = Inputs(**inputs(class_weight=torch.ones(10)))
    assert check_inputs(everything, LossOptions(beta=0.0))[2:] == Inputs()[2:]
    assert check_inputs(everything, LossOptions(beta=1.0))[:2] == ((), ())
    assert check_inputs(everything, LossOptions(alpha=1.0)).teacher_logits is None
    assert check_inputs(everything, LossOptions(alpha=0.0))[4:6] == (None, None)


def test_irs_may_be_any_sequence():
    given = inputs()
    assert lit_loss(**inputs(student_irs=tuple(given["student_irs"]))) == lit_loss(**given)


@pytest.mark.parametrize("module", [functional], ids=lambda module: module.__name__)
def test_docstring_examples_run(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


# --- rejected settings


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"alpha": 1.5}, ValueError, "alpha: expected a number in [0, 1], got 1.5"),
        ({"alpha": float("nan")}, ValueError, "alpha: expected a number in [0, 1], got nan"),
        ({"beta": -0.1}, ValueError, "beta: expected a number in [0, 1], got -0.1"),
        ({"beta": "0.5"}, TypeError, "beta: expected a number, got '0.5' (str)"),
        ({"alpha": True}, TypeError, "alpha: expected a number, got True (bool)"),
        ({"tau": 0}, ValueError, "tau: expected a finite temperature > 0, got 0"),
        ({"tau": float("inf")}, ValueError, "tau: expected a finite temperature > 0, got inf"),
        ({"tau": None}, TypeError, "tau: expected a number, got None (NoneType)"),
        ({"ir": "mse"}, ValueError, "ir: expected one of 'l2', 'l1', 'smooth_l1', got 'mse'"),
        ({"tau_squared": 1}, TypeError, "tau_squared: expected True or False, got 1"),
        ({"ignore_index": 1.0}, TypeError, "ignore_index: expected an int, got 1.0"),
        ({"label_smoothing": 2}, ValueError, "label_smoothing: expected a number in [0, 1], got 2"),
        ({"section_weights": 2.0}, TypeError, "section_weights: expected a sequence with one number per section"),
        ({"section_weights": (1, -1)}, ValueError, "section_weights: section 2: expected a finite weight >= 0, got -1"),
        ({"section_weights": (1, "a")}, TypeError, "section_weights: section 2: expected a number, got 'a' (str)"),
        ({"section_weights": (1, 2, 3)}, ValueError, "expected one weight for each of the 2 sections, got 3"),
        ({"backend": "cuda"}, ValueError, "backend: expected one of 'auto', 'native', 'triton', 'eager', got 'cuda'"),
    ],
)
def test_wrong_setting_is_named(settings, error, message):
    with pytest.raises(error, match=re.escape(message)):
        lit_loss(**inputs(), **settings)


def test_options_are_frozen_and_keep_section_weights_as_floats():
    options = LossOptions(section_weights=[1, 2])
    assert options.section_weights == (1.0, 2.0)
    assert all(isinstance(weight, float) for weight in options.section_weights)
    with pytest.raises(AttributeError):
        options.alpha = 0.5


# --- rejected tensors


def irs(*shapes):
    return [torch.zeros(shape) for shape in shapes]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        # missing, by what alpha and beta ask for
        ({"student_irs": None}, ValueError, "student_irs: expected at least one tensor, got None; beta=0.75 needs"),
        ({"teacher_irs": []}, ValueError, "or set beta=1 for the KD loss alone"),
        (
            {"student_logits": None},
            ValueError,
            "student_logits: beta=0.75 needs logits of shape (B, classes), got None",
        ),
        ({"student_logits": None}, ValueError, "set beta=0 for the IR loss alone"),
        ({"teacher_logits": None}, ValueError, "teacher_logits: alpha=0.95 needs the teacher's soft targets, got None"),
        ({"teacher_logits": None}, ValueError, "set alpha=1 for the label loss alone"),
        ({"labels": None}, ValueError, "labels: alpha=0.95 needs labels of shape (B,), got None"),
        ({"labels": None}, ValueError, "set alpha=0 for the teacher's soft targets alone"),
        # IRs
        ({"student_irs": torch.zeros(4, 3)}, TypeError, "student_irs: expected a sequence with one tensor per section"),
        ({"student_irs": irs((4, 3, 2, 2))}, ValueError, "student gives 1 IRs, teacher 2; cut both models"),
        ({"student_irs": [1, 2]}, TypeError, "section 1: student IR: expected a tensor, got int"),
        (
            {"student_irs": irs((4, 3, 2, 2), (4, 64, 16, 16)), "teacher_irs": irs((4, 3, 2, 2), (4, 128, 16, 16))},
            ValueError,
            "section 2: student gives (B, 64, 16, 16), teacher (B, 128, 16, 16); "
            "choose students of the teacher's width or pass projector=...",
        ),
        (
            {"student_irs": irs((4, 8, 2, 2)), "teacher_irs": irs((4, 8, 4, 4))},
            ValueError,
            "section 1: student gives (B, 8, 2, 2), teacher (B, 8, 4, 4); cut both models where their outputs have",
        ),
        (
            {"student_irs": irs((4, 8)), "teacher_irs": irs((4, 8, 1))},
            ValueError,
            "section 1: student gives (B, 8), teacher (B, 8, 1); cut both models where their outputs have",
        ),
        (
            {"student_irs": irs((4, 8)), "teacher_irs": irs((5, 8))},
            ValueError,
            "section 1: student gives (4, 8), teacher (5, 8); give both models the same batch",
        ),
        (
            {"teacher_irs": [torch.zeros(4, 3, 2, 2), torch.zeros(4, 5).int()]},
            TypeError,
            "section 2: teacher IR: expected float16, bfloat16, float32 or float64, got int32",
        ),
        # logits
        ({"student_logits": torch.zeros(10)}, ValueError, "student_logits: expected shape (B, classes)"),
        ({"student_logits": torch.zeros(4, 7, 10)}, ValueError, "got (4, 7, 10); move all other dimensions"),
        ({"student_logits": torch.zeros(4, 0)}, ValueError, "at least one class, got (4, 0)"),
        (
            {"student_logits": torch.zeros(4, 10).long()},
            TypeError,
            "student_logits: expected float16, bfloat16, float32",
        ),
        (
            {"teacher_logits": torch.zeros(4, 100)},
            ValueError,
            "teacher_logits: expected the student's shape (4, 10), got (4, 100); teacher and student must see",
        ),
        # labels
        ({"labels": [0, 1, 2, 3]}, TypeError, "labels: expected a tensor, got list"),
        (
            {"labels": torch.rand(4)},
            TypeError,
            "labels: expected class indices (int64), got float32 of shape (4,); use labels.long(), or, for soft labels",
        ),
        (
            {"labels": torch.rand(4, 5)},
            ValueError,
            "labels: expected probabilities of the logits' shape (4, 10), got (4, 5); soft labels need a row",
        ),
        ({"labels": torch.zeros(4).bool()}, TypeError, "labels: expected class indices (int64 or int32), got bool"),
        ({"labels": torch.zeros(3).long()}, ValueError, "labels: expected shape (4,) as the logits' batch, got (3,)"),
        ({"labels": torch.zeros(4, 10).long()}, ValueError, "got (4, 10); use labels.argmax(1) of one-hot labels"),
        ({"labels": torch.tensor([0, 10, 3, 3])}, IndexError, "label 10"),
        # class weights, loss scale
        ({"class_weight": torch.ones(9)}, ValueError, "class_weight: expected shape (10,), one weight for each class"),
        (
            {"class_weight": torch.ones(10).int()},
            TypeError,
            "class_weight: expected float16, bfloat16, float32 or float64",
        ),
        ({"grad_scale": torch.ones(2)}, ValueError, "grad_scale: expected a 0-d tensor, got shape (2,)"),
        ({"grad_scale": 2.0}, TypeError, "grad_scale: expected a tensor, got float"),
        # devices
        (
            {"teacher_irs": [torch.zeros(4, 3, 2, 2), torch.zeros(4, 5, device="meta")]},
            ValueError,
            "section 2: teacher IR: expected device cpu as the student's, got meta",
        ),
        (
            {"labels": torch.zeros(4, dtype=torch.int64, device="meta")},
            ValueError,
            "labels: expected device cpu as the student's, got meta",
        ),
    ],
)
def test_wrong_tensor_is_named_with_the_mend(changes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        lit_loss(**inputs(**changes))


def test_checks_read_no_values():
    # A tensor on the meta device has none to read: a check that did would raise here, and synchronise on a GPU.
    given = inputs()
    meta = {
        name: [t.to("meta") for t in value] if isinstance(value, list) else value.to("meta")
        for name, value in given.items()
    }
    assert lit_loss(**meta, class_weight=torch.ones(10, device="meta")).shape == ()


# --- backends


@pytest.fixture
def fresh_choice():
    """Forget which backend was chosen, before and after."""
    backends._pick.cache_clear()
    yield
    backends._pick.cache_clear()


@pytest.mark.skipif(not EXTENSION.loaded, reason="no compiled extension")
@pytest.mark.usefixtures("fresh_choice")
def test_auto_prefers_native_on_the_cpu(monkeypatch):
    monkeypatch.setattr(native, "available", lambda *device: (True, "built"))
    assert backends.select(CPU) == ("native", "built", native.lit_loss)
    assert backends.select(CPU, "eager") == ("eager", "requested", eager.lit_loss)


@pytest.mark.usefixtures("fresh_choice")
def test_auto_without_native_warns_once_and_computes(monkeypatch):
    monkeypatch.setattr(native, "available", lambda *device: (False, "no compiler"))
    with pytest.warns(UserWarning, match="no fused loss \\(native is not available: no compiler\\)"):
        loss = lit_loss(**inputs())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lit_loss(**inputs()) == loss
    assert backends.select(CPU) == ("eager", "native is not available: no compiler", eager.lit_loss)


@pytest.mark.usefixtures("fresh_choice")
def test_compiled_graph_without_native_warns_too(monkeypatch):
    monkeypatch.setattr(native, "available", lambda *device: (False, "no compiler"))
    torch._dynamo.reset()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        loss = torch.compile(lit_loss, backend="eager", fullgraph=True)(**inputs())
    torch._dynamo.reset()
    torch.testing.assert_close(loss, lit_loss(**inputs(), backend="eager"))
    assert [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)] == [
        "lit_fast: no fused loss (native is not available: no compiler); using plain PyTorch, slower but equal"
    ]


@pytest.mark.usefixtures("fresh_choice")
def test_requested_native_without_native_is_an_error(monkeypatch):
    monkeypatch.setattr(native, "available", lambda *device: (False, "no compiler"))
    with pytest.raises(UnavailableError, match="'native' is not available: no compiler; build the extension"):
        lit_loss(**inputs(), backend="native")


@pytest.mark.usefixtures("fresh_choice")
def test_devices_without_fused_code_get_eager():
    meta = torch.device("meta")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.select(meta) == ("eager", "no fused backend has code for meta", eager.lit_loss)
    if native.available()[0]:
        with pytest.raises(RuntimeError, match="not available: the compiled extension has no code for meta; use"):
            backends.select(meta, "native")


@pytest.mark.parametrize(
    ("capability", "codes", "runs"),
    [
        ((8, 0), ("sm_80",), True),
        ((8, 6), ("sm_80",), True),
        ((8, 0), ("sm_86",), False),
        ((9, 0), ("sm_80", "sm_86"), False),
        ((9, 0), ("sm_80", "compute_80"), True),
        ((7, 0), ("sm_75", "compute_75"), False),
        ((10, 0), ("sm_90", "compute_90"), True),
        ((12, 0), ("sm_120",), True),
        ((9, 0), ("sm_90a",), True),
        ((10, 0), ("compute_90a",), False),
        ((6, 0), (), False),
    ],
)
def test_a_gpu_needs_code_that_it_can_run(capability, codes, runs):
    assert native.runs_on(capability, codes) is runs


@pytest.mark.parametrize(
    ("native_fits", "triton_fits", "expected"),
    [(True, True, "native"), (False, True, "triton"), (False, False, "eager")],
)
@pytest.mark.usefixtures("fresh_choice")
def test_auto_on_cuda_prefers_native_then_triton_then_eager(monkeypatch, native_fits, triton_fits, expected):
    for name, fits in (("native", native_fits), ("triton", triton_fits)):
        module = types.SimpleNamespace(available=lambda *device, fits=fits, name=name: (fits, f"said by {name}"))
        monkeypatch.setitem(sys.modules, f"lit_fast.loss.backends.{name}", module)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        name, reason = backends._pick("cuda", 0, "auto")
    assert name == expected
    if expected == "eager":
        assert reason == "native is not available: said by native; triton is not available: said by triton"
        assert [str(warning.message) for warning in caught] == [
            f"lit_fast: no fused loss ({reason}); using plain PyTorch, slower but equal"
        ]
    else:
        assert (reason, caught) == (f"said by {expected}", [])


@pytest.mark.skipif(not native.available()[0], reason=f"native: {native.available()[1]}")
def test_backends_agree():
    given = inputs()
    for tensor in (*given["student_irs"], given["student_logits"]):
        tensor.requires_grad_()
    for settings in ({}, {"ir": "l1", "alpha": 0.2, "section_weights": (1, 3), "label_smoothing": 0.1}):
        results = []
        for backend in ("eager", "native"):
            parts = lit_loss(**given, **settings, backend=backend, return_parts=True)
            leaves = [*given["student_irs"], given["student_logits"]]
            results.append([*parts, *torch.autograd.grad(parts.total, leaves)])
        for reference, other in zip(*results):
            torch.testing.assert_close(other.detach(), reference.detach())
