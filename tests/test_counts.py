"""Soft labels, rows and elements that do not count, and what sums are divided by: against torch's own functions.

Triton's and CUDA's kernels are held to the same cases by tests/loss_cases.py.
"""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from everyday import but_first, exhaustive
from torch import Tensor

import lit_fast as lf
from lit_fast.loss.backends import counts, native

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
NAN = float("nan")
no_native = pytest.mark.skipif(not native.available()[0], reason="no compiled extension")
BACKENDS = ["eager", pytest.param("native", marks=no_native)]
SIZES = ((6, 5, 8), (6, 3, 4, 4), (6, 5))  # [B, T, H], [B, C, H, W], [B, T]
ROWS = torch.tensor([True, False, True, True, False, True])
TOKENS = torch.arange(30).reshape(6, 5) % 7 < 4
CLASS_WEIGHT = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.5])


def soft_labels(rows: int = 6, classes: int = 5) -> Tensor:
    return torch.rand(rows, classes, dtype=F64).softmax(1)


def batch(dtype: torch.dtype = F64, rows: int = 6, classes: int = 5) -> dict[str, Any]:
    """What a LITLoss takes; the student's are leaves."""

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=F64).to(dtype).requires_grad_()

    return {
        "student_irs": [leaf(rows, *shape[1:]) for shape in SIZES],
        "teacher_irs": [torch.randn(rows, *shape[1:], dtype=F64).to(dtype) for shape in SIZES],
        "student_logits": leaf(rows, classes),
        "teacher_logits": torch.randn(rows, classes, dtype=F64).to(dtype),
        "labels": torch.arange(rows) % classes,
    }


def leaves(given: dict[str, Any]) -> list[Tensor]:
    return [*given["student_irs"], given["student_logits"]]


def grads_of(loss: Tensor, given: dict[str, Any], scale: float = 1.0) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves(given), loss.new_tensor(scale)))


def naive(given: dict[str, Any], rows: Tensor, masks: list[Tensor | None], **settings: Any) -> Tensor:
    """The LIT loss with alpha 0.5, beta 0.6 and tau 3 of the rows and elements that count alone, by torch."""
    z_s, z_t, labels = given["student_logits"][rows], given["teacher_logits"][rows], given["labels"][rows]
    settings["weight"] = settings.pop("class_weight", None)
    if settings["weight"] is not None:
        settings["weight"] = settings["weight"].to(z_s.dtype)
    ce = F.cross_entropy(z_s, labels, **settings)
    log_q, log_p = F.log_softmax(z_s / 3, 1), F.log_softmax(z_t / 3, 1)
    kl = 9 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    pairs = zip(given["student_irs"], given["teacher_irs"], masks)
    irs = [F.mse_loss(s, t) if mask is None else F.mse_loss(s[mask], t[mask]) for s, t, mask in pairs]
    return 0.6 * (0.5 * ce + 0.5 * kl) + 0.4 * sum(irs)


SETTINGS = {"alpha": 0.5, "beta": 0.6, "tau": 3.0}


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


# --- soft labels


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("class_weight", [None, CLASS_WEIGHT])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_of_soft_labels_is_torchs(backend, class_weight, smoothing):
    given = batch() | {"labels": soft_labels()}
    shared: dict[str, Any] = {"class_weight": class_weight, "label_smoothing": smoothing}
    loss = lf.lit_loss(**given, **SETTINGS, **shared, backend=backend)
    everything = torch.ones(6, dtype=torch.bool)
    expected = naive(given, everything, [None] * 3, **shared)
    assert_close(loss, expected)
    for ours, theirs in zip(grads_of(loss, given), grads_of(expected, given)):
        assert_close(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", but_first([F16, BF16, F32]), ids=str)
def test_soft_labels_of_any_dtype(backend, dtype):
    given = batch(dtype)
    exact = given["student_logits"].detach().double().requires_grad_()
    labels = soft_labels().to(dtype)
    loss = lf.kd_loss(given["student_logits"], labels=labels, alpha=1.0, backend=backend)
    right = F.cross_entropy(exact, labels.double())
    torch.testing.assert_close(loss, right.float())
    (ours,), (theirs,) = (
        torch.autograd.grad(value, z) for value, z in ((loss, given["student_logits"]), (right, exact))
    )
    torch.testing.assert_close(ours, theirs.to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_hot_labels_are_as_class_indices_and_get_no_gradient(backend):
    given = batch(F32)
    hot = F.one_hot(given["labels"], 5).float().requires_grad_()
    soft = lf.lit_loss(**given | {"labels": hot}, backend=backend)
    torch.testing.assert_close(soft, lf.lit_loss(**given, backend=backend))
    soft.backward()
    assert hot.grad is None


# --- what does not count


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("labels", "shared"),
    [
        ("hard", {}),
        ("hard", {"ignore_index": 3, "class_weight": CLASS_WEIGHT, "label_smoothing": 0.2}),
        ("soft", {}),
        ("soft", {"class_weight": CLASS_WEIGHT, "label_smoothing": 0.2}),
    ],
)
@pytest.mark.parametrize("garbage", [NAN, float("inf"), 3.0])
def test_rows_that_do_not_count_are_as_if_they_were_not_there(backend, labels, shared, garbage):
    given = batch()
    if labels == "soft":
        given["labels"] = soft_labels()
        given["labels"][~ROWS] = garbage
    else:
        given["labels"][~ROWS] = 77  # no class
    masks = [TOKENS, ROWS, None]
    with torch.no_grad():
        for tensor in (given["student_logits"], given["teacher_logits"]):
            tensor[~ROWS] = garbage
        for pair in zip(given["student_irs"], given["teacher_irs"], masks):
            for ir in pair[:2]:
                if pair[2] is not None:
                    ir[~pair[2]] = garbage
    loss = lf.lit_loss(**given, **SETTINGS, **shared, rows=ROWS, ir_rows=masks, backend=backend)
    expected = naive(given, ROWS, masks, **shared)
    assert_close(loss, expected)
    grads = grads_of(loss, given)
    for ours, theirs in zip(grads, grads_of(expected, given)):
        assert_close(ours, theirs)
    assert not grads[-1][~ROWS].any()
    assert not grads[0][~TOKENS].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_tensor_of_rows_is_that_of_all_irs(backend):
    given = batch()
    of_each = lf.ir_loss(given["student_irs"], given["teacher_irs"], ir_rows=[ROWS] * 3, backend=backend)
    assert lf.ir_loss(given["student_irs"], given["teacher_irs"], ir_rows=ROWS, backend=backend) == of_each
    whole = lf.ir_loss(given["student_irs"], given["teacher_irs"], ir_rows=[None] * 3, backend=backend)
    assert whole == lf.ir_loss(given["student_irs"], given["teacher_irs"], backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_irs_in_any_layout(backend):
    student = torch.randn(6, 8, 5, 4, dtype=F64)
    teacher = torch.randn_like(student)
    expected = F.l1_loss(student[ROWS], teacher[ROWS])
    spread = torch.zeros(6, 8, 5, 8, dtype=F64)[..., ::2].copy_(student)
    for one in (student.contiguous(memory_format=torch.channels_last), student.mT.contiguous().mT, spread):
        leaf = one.requires_grad_()
        loss = lf.ir_loss([leaf], [teacher], ir="l1", ir_rows=ROWS, backend=backend)
        assert_close(loss, expected)
        (grad,) = torch.autograd.grad(loss, leaf)
        assert_close(grad, torch.where(ROWS[:, None, None, None], (student - teacher).sign(), 0.0) / (4 * 160))


@pytest.mark.parametrize("backend", BACKENDS)
def test_float16_under_a_loss_scale_with_rows_that_do_not_count(backend):
    given = batch(F16)
    scale = torch.tensor(4096.0)
    shared = {**SETTINGS, "rows": ROWS, "ir_rows": [TOKENS, ROWS, None], "backend": backend}
    loss = lf.lit_loss(**given, **shared, grad_scale=scale)
    wide = {name: [t.detach().double() for t in v] if isinstance(v, list) else v for name, v in given.items()}
    wide |= {name: given[name].detach().double() for name in ("student_logits", "teacher_logits")}
    for leaf in leaves(wide):
        leaf.requires_grad_()
    expected = naive(wide, ROWS, [TOKENS, ROWS, None])
    for ours, theirs in zip(grads_of(loss, given, 4096.0), grads_of(expected, wide, 4096.0)):
        torch.testing.assert_close(ours, theirs.half(), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_nothing_counts_the_loss_is_nan_and_gradients_are_0(backend):
    given = batch(F32)
    nothing = torch.zeros(6, dtype=torch.bool)
    loss = lf.lit_loss(**given, rows=nothing, ir_rows=nothing, backend=backend)
    assert loss.isnan()
    for grad in grads_of(loss, given):
        assert not grad.any()
    part = lf.LITLoss(backend=backend)
    loss = part(**given, rows=nothing, ir_rows=nothing, normalizer=lf.LossCounts(6, 6, (48, 48, 6)))
    assert loss == 0


# --- what sums are divided by


PIECES = [slice(0, 1), slice(1, 4), slice(4, 6)]


def piece_of(given: dict[str, Any], piece: slice) -> dict[str, Any]:
    return {name: [t[piece] for t in v] if isinstance(v, list) else v[piece] for name, v in given.items()}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F32, 1e-6), (F64, 1e-12)])
def test_micro_batches_of_unequal_padding_add_up_to_the_whole(backend, labels, dtype, tolerance):
    given = batch(dtype)
    given["labels"] = soft_labels() if labels == "soft" else torch.tensor([0, -100, 2, 3, 4, 1])
    masks = [TOKENS, ROWS, None]
    criterion = lf.LITLoss(**SETTINGS, class_weight=CLASS_WEIGHT, label_smoothing=0.1, backend=backend)
    whole = criterion(**given, rows=ROWS, ir_rows=masks)
    parts = criterion.parts
    pieces = []
    for piece in PIECES:
        cut = [None if mask is None else mask[piece] for mask in masks]
        pieces.append((piece_of(given, piece), {"rows": ROWS[piece], "ir_rows": cut}))
    total = sum(criterion.count(data["student_irs"], data["labels"], **what) for data, what in pieces)
    losses, ces = [], []
    for data, what in pieces:
        losses.append(criterion(**data, **what, normalizer=total))
        ces.append(criterion.parts.ce)
    torch.testing.assert_close(sum(losses), whole, rtol=tolerance, atol=0)
    torch.testing.assert_close(sum(ces), parts.ce, rtol=tolerance, atol=0)
    for ours, theirs in zip(grads_of(sum(losses), given), grads_of(whole, given)):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * theirs.abs().max().item())


@pytest.mark.parametrize("backend", BACKENDS)
def test_sums_are_the_means_times_their_counts(backend):
    given = batch()
    means, sums = lf.LITLoss(**SETTINGS, backend=backend), lf.LITLoss(**SETTINGS, backend=backend, reduction="sum")
    for what in ({}, {"rows": ROWS, "ir_rows": ROWS}):
        means(**given, **what)
        loss = sums(**given, **what)
        counted = means.count(given["student_irs"], given["labels"], **what).tensor()
        ours, theirs = (torch.cat([p.ce[None], p.kl[None], p.ir]) for p in (sums.parts, means.parts))
        assert_close(ours, theirs * counted)
        ce, kl, *irs = ours
        assert_close(loss, 0.6 * (0.5 * ce + 0.5 * kl) + 0.4 * sum(irs))
    assert lf.IRLoss(reduction="sum")([torch.ones(2, 3)], [torch.zeros(2, 3)]) == 6
    kd = lf.KDLoss(reduction="sum", alpha=1.0)(torch.zeros(3, 4), labels=torch.tensor([0, 1, -100]))
    torch.testing.assert_close(kd, 2 * torch.tensor(4.0).log())
    assert repr(sums) == repr(means).replace("label_smoothing=0.0", "label_smoothing=0.0, reduction='sum'")


def test_counts_of_tensors_shapes_and_numbers_are_the_same():
    given = batch()
    criterion = lf.LITLoss(class_weight=CLASS_WEIGHT, ignore_index=4)
    of_tensors = criterion.count(given["student_irs"], given["labels"], rows=ROWS, ir_rows=[TOKENS, ROWS, None])
    of_shapes = criterion.count(SIZES, given["labels"], rows=ROWS, ir_rows=[TOKENS, ROWS, None])
    expected = torch.tensor([0 + 1.0 + 2.0 + 1.0, 4, int(TOKENS.sum()) * 8, 4 * 48, 30], dtype=F64)
    expected[0] = sum(CLASS_WEIGHT[label] for label, row in zip([0, 1, 2, 3, 4, 0], ROWS) if row and label != 4)
    for counted in (of_tensors, of_shapes):
        torch.testing.assert_close(counted.tensor(), expected)
    twice = sum([of_tensors, lf.LossCounts(1, 2, torch.arange(3))])
    torch.testing.assert_close(twice.tensor(), expected + torch.tensor([1, 2, 0, 1, 2]))
    both = lf.LossCounts(1, 2, torch.ones(3)) + lf.LossCounts(1, 2, torch.ones(3))
    assert both.tensor().tolist() == [2, 4, 2, 2, 2]


def test_losses_of_logits_or_irs_alone_count_what_they_have():
    labels = torch.tensor([0, 1, -100])
    assert lf.KDLoss().count(labels).tensor().tolist() == [2, 3]
    assert lf.KDLoss(alpha=0.0).count(rows=torch.tensor([True, False])).tensor().tolist() == [0, 1]
    assert lf.KDLoss().count(soft_labels()).tensor().tolist() == [6, 6]
    assert lf.IRLoss().count([(4, 3), (2,)]).tensor().tolist() == [0, 0, 12, 2]
    whole = lf.LossCounts(4, 6, (1, 1, 1))  # those of IRs are not looked at where there are none
    assert lf.KDLoss()(torch.zeros(3, 2), torch.zeros(3, 2), labels=labels % 2, normalizer=whole) > 0


def test_docstring_examples_run():
    result = doctest.testmod(counts)
    assert result.attempted > 0
    assert result.failed == 0


# --- compiled, and in several processes


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_to_one_graph(backend):
    given = batch(F32)
    criterion = lf.LITLoss(**SETTINGS, class_weight=CLASS_WEIGHT, backend=backend)

    def loss(labels: Tensor, rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        inputs = given | {"labels": labels}
        what = {"rows": rows, "ir_rows": [tokens, rows, None]}
        counted = criterion.count(inputs["student_irs"], labels, **what)
        return criterion(**inputs, **what), criterion(**inputs, **what, normalizer=counted + counted)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for labels in (given["labels"], soft_labels().float()):
        ours, theirs = compiled(labels, ROWS, TOKENS), loss(labels, ROWS, TOKENS)
        torch.testing.assert_close(ours, theirs)
        for grad, other in zip(grads_of(ours[0] + 3 * ours[1], given), grads_of(theirs[0] + 3 * theirs[1], given)):
            torch.testing.assert_close(grad, other)


WORKER = """
    import os
    import sys
    import torch
    import torch.distributed as dist
    import lit_fast as lf

    rank, file = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 4, 3, generator=generator, dtype=torch.float64)
    logits = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64)
    labels, rows = torch.arange(5) % 6, torch.tensor([True, True, False, True, False])
    leaf = student.clone().requires_grad_()
    criterion = lf.LITLoss(alpha=0.5)
    whole = criterion([leaf], [teacher], *logits, labels, rows=rows, ir_rows=rows)
    (expected,) = torch.autograd.grad(whole, leaf)

    mine = slice(0, 4) if rank == 0 else slice(4, 5)  # the second process has nothing that counts
    what = {"rows": rows[mine], "ir_rows": rows[mine]}
    counts = criterion.count([leaf[mine]], labels[mine], **what).all_reduce()
    loss = criterion([leaf[mine]], [teacher[mine]], *logits[:, mine], labels[mine], **what, normalizer=counts)
    (grad,) = torch.autograd.grad(loss, leaf)
    total = loss.detach()
    dist.all_reduce(total)
    dist.all_reduce(grad)
    torch.testing.assert_close(total, whole.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-15)
    dist.barrier()
    os._exit(0)  # as in wrapped_worker.py
"""


@exhaustive
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_of_unequal_padding_add_up_to_one(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(WORKER)]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "meeting")],
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors


def test_counts_of_all_processes_are_added(monkeypatch):
    """As if another process had the same."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: values.mul_(2))
    found = lf.LossCounts(6, 8.0, torch.tensor([512.0, 256.0])).all_reduce()
    assert found.tensor().tolist() == [12.0, 16.0, 1024.0, 512.0]


# --- errors


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"rows": torch.ones(6)},
            TypeError,
            "rows: expected bool, True where rows count, got float32; use rows.bool()",
        ),
        ({"rows": [True] * 6}, TypeError, "rows: expected a tensor, got list"),
        ({"rows": ROWS[:5]}, ValueError, "rows: expected shape (6,), one for each row of the logits, got (5,)"),
        ({"ir_rows": ROWS.int()}, TypeError, "ir_rows: expected bool, True where rows count, got int32"),
        ({"ir_rows": [ROWS]}, ValueError, "ir_rows: expected one tensor or None for each of the 3 sections, or one"),
        (
            {"ir_rows": TOKENS},
            ValueError,
            "ir_rows: section 2: expected the first dimensions of an IR of shape (6, 3, 4, 4), got (6, 5); pass one",
        ),
        ({"normalizer": 3.0}, TypeError, "normalizer: expected lit_fast.LossCounts, got float; write for example"),
        (
            {"normalizer": lf.LossCounts(-1, 6, (1, 1, 1))},
            ValueError,
            "normalizer: ce: expected a finite number >= 0 of what counts, got -1",
        ),
        ({"normalizer": lf.LossCounts(1, "6", (1, 1, 1))}, TypeError, "normalizer: kl: expected a number or a 0-d"),
        (
            {"normalizer": lf.LossCounts(1, 6, (1, NAN, 1))},
            ValueError,
            "normalizer: ir: section 2: expected a finite number >= 0 of what counts, got nan",
        ),
        (
            {"normalizer": lf.LossCounts(1, 6, (1, 1))},
            ValueError,
            "normalizer: ir: expected 3 numbers of elements, one for each section, got 2",
        ),
        (
            {"normalizer": lf.LossCounts(1, ROWS, (1, 1, 1))},
            ValueError,
            "normalizer: kl: expected one number, got a tensor of shape (6,)",
        ),
        (
            {"normalizer": lf.LossCounts(1, 6, (1, 1, 1)), "reduction": "sum"},
            ValueError,
            "normalizer: reduction='sum' divides by nothing; leave reduction at 'mean', or normalizer out",
        ),
        ({"reduction": "none"}, ValueError, "reduction: expected 'mean' or 'sum', got 'none'"),
        ({"labels": torch.tensor([0, 1, 2, 5, 0, 0]), "rows": ROWS}, IndexError, "label 5"),
        (
            {"labels": torch.tensor([0, 1, 2, 5, 0, 0]), "rows": ROWS, "class_weight": CLASS_WEIGHT},
            IndexError,
            "label 5",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_the_mend(changes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        lf.lit_loss(**batch(F32) | changes)


def test_counts_that_cannot_be_made_are_named():
    with pytest.raises(ValueError, match="labels: expected labels or rows to count, got neither; pass rows"):
        lf.KDLoss(alpha=0.0).count()
    with pytest.raises(ValueError, match=r"student_irs: beta=0.75 needs the IRs of every section, or their shapes"):
        lf.LITLoss().count(None, torch.arange(3))
    with pytest.raises(ValueError, match="rows: expected shape"):
        lf.KDLoss().count(torch.arange(3), rows=ROWS)
    with pytest.raises(ValueError, match="expected counts of as many sections, got 1 and 0"):
        lf.LossCounts(1, 1, (1,)) + lf.LossCounts(1, 1)
