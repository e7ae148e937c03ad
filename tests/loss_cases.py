"""The matrix of losses that every backend is tested on, its float64 reference, and what counts as accurate.

A backend is as accurate as the eager one, plus a stated tolerance: |ours - fp64| <= |eager - fp64| + tolerance, both
relative to the largest number of the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_fast.loss.backends import Inputs, LossOptions, LossParts, eager
from lit_fast.loss.backends.counts import with_counts

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
DTYPES = (F64, F32, F16, BF16)
IR_KINDS = ("l2", "l1", "smooth_l1")
LAYOUTS = ("contiguous", "channels_last", "mixed", "expanded", "offset", "sliced")
INF, NAN = float("inf"), float("nan")

LitLoss = Callable[[Inputs, LossOptions], LossParts]


@dataclass(frozen=True)
class Case:
    """One loss. `shapes` are those of the IRs; empty for beta = 1."""

    name: str
    dtype: torch.dtype = F32
    teacher_dtype: torch.dtype | None = None  # None: the student's
    shapes: tuple[tuple[int, ...], ...] = ((3, 5, 4, 4), (3, 7, 2, 3), (3, 11))
    layout: str = "contiguous"
    batch: int = 3
    classes: int = 10
    settings: dict[str, Any] = field(default_factory=dict)  # of LossOptions
    labels: str = "plain"  # or "some ignored", "all ignored", "soft"
    logits: str = "plain"  # or "masked", "huge", "near", "nan"
    class_weight: bool = False
    grad_scale: float | None = None
    rows: bool = False  # some rows of the logits do not count, and hold NaN
    ir_rows: int = -1  # some elements of the IRs do not count, by so many dimensions, and hold NaN
    counts: str = ""  # "" if there need not be any, or "given" ones

    @property
    def options(self) -> LossOptions:
        return LossOptions(**self.settings)

    def __str__(self) -> str:
        return self.name


@dataclass
class Problem:
    """The tensors of one loss, to be changed."""

    student_irs: list[Tensor]
    teacher_irs: list[Tensor]
    student_logits: Tensor | None
    teacher_logits: Tensor | None
    labels: Tensor | None
    class_weight: Tensor | None
    grad_scale: Tensor | None
    rows: Tensor | None = None
    counts: Tensor | None = None
    ir_rows: Sequence[Tensor] = ()

    def inputs(self) -> Inputs:
        return Inputs(**vars(self))

    def leaves(self) -> list[Tensor]:
        return [*self.student_irs, *([] if self.student_logits is None else [self.student_logits])]

    def tensors(self) -> list[Tensor]:
        flat = [*self.student_irs, *self.teacher_irs, *self.ir_rows, *self.inputs()[2:-1]]
        return [tensor for tensor in flat if tensor is not None]

    def double(self) -> Problem:
        """The same numbers in float64: what the reference is computed from."""

        def wide(tensor: Tensor | None) -> Tensor | None:
            if tensor is None or not tensor.is_floating_point():
                return tensor
            return tensor.detach().double().requires_grad_(tensor.requires_grad)

        irs = [[wide(ir) for ir in side] for side in (self.student_irs, self.teacher_irs)]
        others = (wide(tensor) for tensor in self.inputs()[2:-1])
        return Problem(*irs, *others, ir_rows=self.ir_rows)  # type: ignore[arg-type]


class Result(NamedTuple):
    parts: LossParts
    grads: list[Tensor]  # of Problem.leaves()


# --- the matrix


def matrix() -> list[Case]:
    """All cases; the tensors are small, so that slow devices (interpreters, emulators) can run them."""
    cases = [
        Case(f"{short(dtype)}-{kind}-{layout}", dtype, layout=layout, settings={"ir": kind})
        for dtype in DTYPES
        for kind in IR_KINDS
        for layout in LAYOUTS
    ]
    for dtype in DTYPES:
        cases += _special_cases(dtype)
    cases += [
        Case("half student, float teacher", F16, F32),
        Case("float student, half teacher", F32, F16),
        Case("bfloat student, float teacher", BF16, F32, layout="mixed"),
        Case("float student, bfloat teacher", F32, BF16, settings={"ir": "l1"}),
        Case("half student, bfloat teacher", F16, BF16),
        Case("float student, double teacher", F32, F64),
        Case("half underflow saved by the scale", F16, shapes=((3, 4000),), grad_scale=65536.0, settings={"beta": 0.0}),
    ]
    return cases


def _special_cases(dtype: torch.dtype) -> list[Case]:
    def case(name: str, **changes: Any) -> Case:
        return Case(f"{short(dtype)}-{name}", dtype, **changes)

    logits_only: dict[str, Any] = {"shapes": (), "settings": {"beta": 1.0}}
    return [
        case("IRs only", settings={"beta": 0.0, "section_weights": (1.0, 0.0, 2.5)}),
        case("logits only", **logits_only),
        case("labels only", settings={"alpha": 1.0}),
        case("soft targets only", settings={"alpha": 0.0}),
        case("tau 1 without its square", settings={"tau": 1.0, "tau_squared": False, "alpha": 0.3}),
        case("no section weight", settings={"section_weights": (0.0, 0.0, 0.0)}),
        case("several blocks", shapes=((3, 5000), (3, 1), (3, 33, 9, 9))),
        case("several blocks, channels_last", shapes=((3, 5, 40, 9),), layout="channels_last"),
        case("one element", shapes=((1,),), batch=1, classes=2),
        case("0-d IR", shapes=((),)),
        case("70 sections", shapes=tuple((3, 1 + i % 5) for i in range(70))),
        case("empty section", shapes=((3, 4), (0, 4), (3, 2))),
        case("empty batch", shapes=((0, 4),), batch=0),
        case("1 class", classes=1),
        case("1,000 classes", classes=1000, **logits_only),
        case("50,257 classes", classes=50257, batch=2, **logits_only),
        case("600 rows", batch=600, **logits_only),
        case("smoothing, class weights", settings={"label_smoothing": 0.1, "alpha": 0.5}, class_weight=True),
        case("class weights, some ignored", class_weight=True, labels="some ignored"),
        case("some ignored, smoothing", settings={"label_smoothing": 0.3}, labels="some ignored"),
        case("all ignored", labels="all ignored"),
        case("masked classes", logits="masked"),
        case("masked classes, smoothing 0 weight", logits="masked", class_weight=True),
        case("huge logits", logits="huge"),
        case("near logits", logits="near", settings={"alpha": 0.0}),
        case("NaN", logits="nan"),
        case("grad scale", grad_scale=1024.0),
        case("logits in columns of a larger tensor", layout="sliced", classes=17, **logits_only),
        *_counted_cases(case),
    ]


def _counted_cases(case: Callable[..., Case]) -> list[Case]:
    """Soft labels, what does not count, and what the sums are divided by."""
    smooth: dict[str, Any] = {"settings": {"label_smoothing": 0.2, "alpha": 0.5}}
    text: dict[str, Any] = {"shapes": ((3, 7, 16), (3, 7, 5), (3, 7)), "ir_rows": 2}
    return [
        case("soft labels", labels="soft"),
        case("soft labels, 300 classes", labels="soft", classes=300, class_weight=True, **smooth),
        case("soft labels, 1,000 classes", labels="soft", classes=1000, shapes=(), settings={"beta": 1.0}),
        case("soft labels, masked classes", labels="soft", logits="masked"),
        case("soft labels only, rows", labels="soft", settings={"alpha": 1.0, "beta": 1.0}, shapes=(), rows=True),
        case("soft labels, rows, weights", labels="soft", batch=37, rows=True, class_weight=True, **smooth),
        case("rows", batch=37, rows=True, labels="some ignored", class_weight=True, **smooth),
        case("rows, 300 classes", classes=300, batch=9, rows=True, shapes=(), settings={"beta": 1.0}),
        case("rows, 40 classes, one ignored", classes=40, batch=9, rows=True, labels="some ignored"),
        case("rows, 1,000 classes", classes=1000, batch=9, rows=True, shapes=(), settings={"beta": 1.0}),
        case("rows without labels", batch=9, rows=True, settings={"alpha": 0.0}),
        case("rows of IRs, batch", ir_rows=1, rows=True),
        case("rows of IRs, channels_last", ir_rows=1, layout="channels_last", shapes=((3, 5, 4, 4), (3, 8, 40, 9))),
        case("rows of IRs, text", batch=21, rows=True, **text),
        case("rows of IRs, text, scaled", grad_scale=256.0, batch=21, rows=True, **text | {"settings": {"ir": "l1"}}),
        case("rows of IRs, many", shapes=((3, 30, 64), (3, 700)), ir_rows=2, settings={"ir": "smooth_l1"}),
        case("rows of 70 IRs", shapes=tuple((3, 1 + i % 5) for i in range(70)), ir_rows=1, settings={"beta": 0.0}),
        case("all elements by rows", ir_rows=0),
        case("given counts", counts="given"),
        case("given counts, rows", counts="given", batch=9, rows=True, labels="some ignored", ir_rows=1),
        case("given counts, soft labels", counts="given", labels="soft"),
        case("given counts, nothing counts", counts="given", rows=True, batch=1, ir_rows=1, shapes=((1, 4),)),
        case("nothing counts", rows=True, batch=1, ir_rows=1, shapes=((1, 4),)),
    ]


def without_dtype(case: Case) -> str:
    """What a case tries; the same for the cases of several dtypes."""
    return case.name.removeprefix(f"{short(case.dtype)}-")


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- building a case's tensors


def build(case: Case, device: str = "cpu", seed: int = 0) -> Problem:
    """Fresh tensors of a case, the same numbers for the same seed on every device."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=F64)

    teacher_dtype = case.teacher_dtype or case.dtype
    student_layout, teacher_layout = {
        "mixed": ("contiguous", "channels_last"),
        "expanded": ("contiguous", "expanded"),
    }.get(case.layout, (case.layout, case.layout))
    student_irs, teacher_irs = [], []
    for shape in case.shapes:
        student = randn(*shape)
        teacher = student + 0.8 * randn(*shape)
        student_irs.append(_laid_out(student.to(case.dtype).to(device), student_layout).requires_grad_())
        teacher_irs.append(_laid_out(teacher.to(teacher_dtype).to(device), teacher_layout))

    student_logits = teacher_logits = labels = class_weight = None
    if case.options.beta > 0:
        z_s, z_t = _logits(case, randn)
        layout = case.layout if case.layout in ("offset", "sliced") else "contiguous"
        student_logits = _laid_out(z_s.to(case.dtype).to(device), layout).requires_grad_()
        teacher_logits = _laid_out(z_t.to(teacher_dtype).to(device), layout) if case.options.alpha < 1 else None
        labels = _labels(case, generator).to(device) if case.options.alpha > 0 else None
        if case.class_weight and labels is not None:
            class_weight = torch.rand(case.classes, generator=generator).to(device)
            class_weight[1::5] = 0.0
    grad_scale = None if case.grad_scale is None else torch.tensor(case.grad_scale, device=device)
    problem = Problem(student_irs, teacher_irs, student_logits, teacher_logits, labels, class_weight, grad_scale)
    if case.rows or case.ir_rows >= 0 or case.counts:
        _take_out(case, problem, generator)
    return problem


def _take_out(case: Case, problem: Problem, generator: torch.Generator) -> None:
    """Let some rows not count, with NaN where nobody may look, and add the counts."""

    def rows(*shape: int) -> Tensor:
        counted = torch.rand(shape, generator=generator) < 0.6
        counted.view(-1)[:1] = False
        counted.view(-1)[1:2] = True
        return counted

    if case.ir_rows >= 0:
        for irs in (problem.student_irs, problem.teacher_irs):
            irs[:] = [ir.detach() for ir in irs]
        for student, teacher in zip(problem.student_irs, problem.teacher_irs):
            counted = rows(*student.shape[: case.ir_rows]) if case.ir_rows > 0 else torch.tensor(True)
            problem.ir_rows = [*problem.ir_rows, counted.to(student.device)]
            if case.ir_rows > 0:
                student[problem.ir_rows[-1].logical_not()] = NAN
                teacher[problem.ir_rows[-1].logical_not()] = NAN
            student.requires_grad_()
    if case.rows and problem.student_logits is not None:
        counted = rows(case.batch).to(problem.student_logits.device)
        problem.rows = counted
        for z in (problem.student_logits.detach(), problem.teacher_logits, problem.labels):
            if z is not None and z.is_floating_point():
                z[counted.logical_not()] = NAN
    settings = LossOptions(**case.settings)
    own = with_counts(problem.inputs(), settings)
    problem.labels, problem.counts = own.labels, own.counts
    if case.counts == "given":
        count = 2 + len(problem.student_irs)
        problem.counts = torch.arange(3, 3 + count, dtype=F64, device=problem.leaves()[0].device)


def _logits(case: Case, randn: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    z_s = 4 * randn(case.batch, case.classes)
    z_t = z_s + 3 * randn(case.batch, case.classes)
    if case.logits == "near":
        z_t = z_s.clone()
        z_t[0] += 0.01  # of no effect: softmax knows differences alone
        z_t[1] += 0.02 * randn(case.classes)
    elif case.logits == "huge":
        z_s, z_t = 1000 * z_s, 1000 * z_t
    elif case.logits == "masked":
        z_s[:, 1], z_t[:, 1] = -INF, -INF
        z_t[:, 2] = -INF
        z_s[1, 5:] = z_t[1, 5:] = -INF
    elif case.logits == "nan":
        z_s[1, 3] = NAN
    return z_s, z_t


def _labels(case: Case, generator: torch.Generator) -> Tensor:
    if case.labels == "soft":
        soft = torch.rand(case.batch, case.classes, generator=generator, dtype=F64).to(case.dtype)
        if case.logits == "masked":
            soft[:, 1:3] = 0.0
            soft[1, 5:] = 0.0
        return soft / soft.sum(1, keepdim=True)
    labels = torch.randint(0, case.classes, (case.batch,), generator=generator)
    if case.logits == "masked":
        labels[:] = 0  # not a masked class
    if case.class_weight:
        labels[:2] = 0  # of weight > 0, so that the mean is over something
    if case.labels == "some ignored":
        labels[::2] = -100
    elif case.labels == "all ignored":
        labels[:] = -100
    return labels


def _laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same numbers with other strides; `expanded` repeats the first sample's."""
    if tensor.dim() == 0:
        return tensor.clone()
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "channels_last" and tensor.dim() == 3:
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "expanded" and tensor.shape[0] > 0:
        return tensor[:1].clone().expand(tensor.shape)
    if layout == "offset":  # one element behind the start of the memory: no 16-byte alignment
        memory = tensor.new_empty(tensor.numel() + 1)
        view = memory[1:].view(tensor.shape)
        return view.copy_(tensor)
    if layout == "sliced":  # every second column of a larger tensor
        memory = tensor.new_empty(*tensor.shape[:-1], 2 * tensor.shape[-1])
        return memory[..., ::2].copy_(tensor)
    return tensor.clone()


# --- running and judging


def run(lit_loss: LitLoss, problem: Problem, options: LossOptions) -> Result:
    """Loss and gradients; grad_output is the problem's grad_scale."""
    parts = lit_loss(problem.inputs(), options)
    scale = torch.ones_like(parts.total) if problem.grad_scale is None else problem.grad_scale.to(parts.total.dtype)
    return Result(parts, list(torch.autograd.grad(parts.total, problem.leaves(), scale)))


def reference(problem: Problem, options: LossOptions) -> Result:
    """Eager, in float64."""
    return run(eager.lit_loss, problem.double(), options)


# Relative to the largest number of a tensor. Half types: arithmetic is float32 and the rounding to the half type, which
# eager does as well, dominates; where the two float32 values differ in the last bit it may fall to the other side.
LOSS_TOLERANCE = {F64: 1e-13, F32: 5e-7, F16: 5e-7, BF16: 5e-7}
IR_TOLERANCE = {F64: 1e-14, F32: 2e-7, F16: 2e-6, BF16: 2e-6}
# Eager computes logits in float64, the fused backends in float32 with an exp of 2 units in the last place.
LOGITS_TOLERANCE = {F64: 1e-13, F32: 2e-6, F16: 1e-5, BF16: 1e-5}
# Where student and teacher nearly agree, loss and gradient are small differences of probabilities; of these the float64
# reference itself knows no more than its rounding, and float32 no more than a fraction of its own.
LOSS_FLOOR = 1e-14
PROBABILITY_ROUNDING = {F64: 4e-16, F32: 3e-8}


def check(lit_loss: LitLoss, case: Case, device: str = "cpu") -> None:
    """Assert that a backend is right on a case: values, gradients, dtypes, layouts; inputs untouched."""
    problem = build(case, device)
    before = [tensor.detach().clone() for tensor in problem.tensors()]
    ours = run(lit_loss, problem, case.options)
    for tensor, copy in zip(problem.tensors(), before):
        torch.testing.assert_close(tensor.detach(), copy, rtol=0, atol=0, equal_nan=True, msg="an input was changed")

    plain, exact = run(eager.lit_loss, problem, case.options), reference(problem, case.options)
    loss_dtype = F64 if F64 in (case.dtype, case.teacher_dtype) else F32
    for name, mine, eagers, right in zip(LossParts._fields, ours.parts, plain.parts, exact.parts):
        assert mine.dtype == loss_dtype, f"{name}: {mine.dtype}"
        # The soft loss alone is accurate however small it is (kernels/math.h); the float64 reference is not.
        floor = LOSS_FLOOR if name in ("kl", "ir") else max(LOSS_FLOOR, PROBABILITY_ROUNDING[loss_dtype])
        assert_accurate(name, mine, eagers, right, LOSS_TOLERANCE[loss_dtype], floor)
    for number, (leaf, mine, eagers, right) in enumerate(zip(problem.leaves(), ours.grads, plain.grads, exact.grads)):
        is_ir = number < len(problem.student_irs)
        name = f"gradient of section {number + 1}" if is_ir else "gradient of the logits"
        assert (mine.dtype, mine.shape) == (leaf.dtype, leaf.shape), name
        tolerance = (IR_TOLERANCE if is_ir else LOGITS_TOLERANCE)[case.dtype if loss_dtype == F32 else F64]
        floor = _tiniest(case.dtype)
        if case.dtype in (F16, BF16):
            tolerance = max(tolerance, IR_TOLERANCE[case.dtype])
        if not is_ir:
            roundings = 2 if case.options.label_smoothing else 1  # of the probability, and of the smoothed label
            floor += roundings * PROBABILITY_ROUNDING[loss_dtype] * _logits_gradient_scale(case)
        assert_accurate(name, mine, eagers, right, tolerance, floor)


def _logits_gradient_scale(case: Case) -> float:
    """What a difference of probabilities is multiplied by in the gradient of the logits (no more than that)."""
    options = case.options
    soft = options.tau if options.tau_squared else 1 / options.tau
    rows = max(case.batch, 1)
    row = 1.0 if case.class_weight else 1 / rows  # weights may leave one row nearly all of the cross-entropy's mean
    return options.beta * (options.alpha * row + (1 - options.alpha) * soft / rows) * (case.grad_scale or 1.0)


def _tiniest(dtype: torch.dtype) -> float:
    """Half a step between subnormal numbers: what rounding may lose absolutely."""
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps


def assert_accurate(name: str, ours: Tensor, eagers: Tensor, right: Tensor, tolerance: float, floor: float) -> None:
    """Assert |ours - right| <= |eager - right| + tolerance * max |right| + floor, and NaN and inf where `right` has."""
    ours, eagers, right = (tensor.detach().double().cpu() for tensor in (ours, eagers, right))
    finite = right.isfinite() & eagers.isfinite()
    torch.testing.assert_close(
        ours[~finite], eagers[~finite], rtol=0, atol=0, equal_nan=True, msg=f"{name}: NaN or infinite elsewhere"
    )
    if not finite.any():
        return
    scale = right[finite].abs().max().item()
    error, allowed = ((x[finite] - right[finite]).abs().max().item() for x in (ours, eagers))
    bound = allowed + tolerance * scale + floor
    assert error <= bound, f"{name}: error {error:.3g} against float64, eager {allowed:.3g}, bound {bound:.3g}"
