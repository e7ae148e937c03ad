"""Problems of ``linear_kd_loss``, and their answers by naive autograd in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_fast.loss.functional import linear_kd_loss

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
DTYPES = (F64, F32, F16, BF16)
# Of the loss, and of gradients relative to their largest number. In half types the logits themselves are rounded.
LOSS = {F64: 1e-12, F32: 2e-6, F16: 1e-3, BF16: 8e-3}
GRADIENT = {F64: 1e-12, F32: 5e-6, F16: 4e-3, BF16: 3e-2}


class Counts(NamedTuple):
    """A normalizer."""

    ce: Any
    kl: Any


@dataclass
class Problem:
    """The tensors of one loss, to be changed."""

    student_hidden: Tensor  # [N, H_s]
    student_weight: Tensor  # [V, H_s]
    student_bias: Tensor | None  # [V]
    teacher_hidden: Tensor  # [N, H_t]
    teacher_weight: Tensor  # [V, H_t]
    teacher_bias: Tensor | None  # [V]
    labels: Tensor  # [N]

    def leaves(self) -> list[Tensor]:
        tensors = (self.student_hidden, self.student_weight, self.student_bias)
        return [tensor for tensor in tensors if tensor is not None]

    def loss(self, **settings: Any) -> Any:
        student, teacher = (self.student_weight, self.student_bias), (self.teacher_weight, self.teacher_bias)
        return linear_kd_loss(self.student_hidden, student, self.teacher_hidden, teacher, self.labels, **settings)

    def result(self, **settings: Any) -> list[Tensor]:
        """The loss and the gradients of the leaves."""
        loss = self.loss(**settings)
        return [loss.detach(), *torch.autograd.grad(loss, self.leaves())]

    def to(self, device: str) -> Problem:
        """The same on another device."""
        tensors = {name: None if tensor is None else tensor.detach().to(device) for name, tensor in vars(self).items()}
        for name, tensor in tensors.items():
            if name.startswith("student") and tensor is not None:
                tensor.requires_grad_()
        return Problem(**tensors)  # type: ignore[arg-type]

    def rows(self, first: int, stop: int) -> Problem:
        """A part of the batch, with the same heads."""
        own = slice(first, stop)
        hidden = self.student_hidden.detach()[own].clone().requires_grad_()
        heads = (self.student_weight, self.student_bias, self.teacher_hidden[own], self.teacher_weight)
        return Problem(hidden, *heads, self.teacher_bias, self.labels[own])


def build(
    dtype: torch.dtype = F32,
    rows: int = 13,
    classes: int = 31,
    widths: tuple[int, int] = (5, 7),
    *,
    bias: bool = True,
    ignored: bool = True,
    teacher_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Problem:
    """Random tensors, the same for the same arguments; `ignored`: every third label from the second on is -100."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int, to: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=F64).to(to)

    student = randn(rows, widths[0]), randn(classes, widths[0]), randn(classes) if bias else None
    other = teacher_dtype or dtype
    teacher = randn(rows, widths[1], to=other), randn(classes, widths[1], to=other), randn(classes, to=other)
    labels = torch.randint(classes, (rows,), generator=generator)
    if ignored:
        labels[1::3] = -100
    leaves = [None if tensor is None else tensor.requires_grad_() for tensor in student]
    return Problem(*leaves, *teacher[:2], teacher[2] if bias else None, labels)  # type: ignore[arg-type]


def oracle(
    problem: Problem,
    *,
    alpha: float = 0.95,
    tau: float = 6.0,
    tau_squared: bool = True,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    class_weight: Tensor | None = None,
    rows: Tensor | None = None,
    normalizer: Counts | None = None,
    **_: Any,
) -> list[Tensor]:
    """The loss and the gradients of the leaves, in float64."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in problem.leaves()]
    z_s = F.linear(leaves[0], leaves[1], leaves[2] if len(leaves) > 2 else None)
    weights = [None if tensor is None else tensor.double() for tensor in (problem.teacher_weight, problem.teacher_bias)]
    z_t = F.linear(problem.teacher_hidden.double(), *weights)  # type: ignore[arg-type]
    labels = problem.labels
    if rows is not None:
        z_s, z_t, labels = z_s[rows], z_t[rows], labels[rows]
    weight = torch.ones(z_s.shape[1], dtype=F64) if class_weight is None else class_weight.double()
    given = labels != ignore_index
    own = Counts(weight[labels[given]].sum(), z_s.shape[0])
    counts = normalizer or own
    hard = F.cross_entropy(
        z_s, labels, weight, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="sum"
    )
    soft = F.kl_div(F.log_softmax(z_s / tau, 1), F.log_softmax(z_t / tau, 1), reduction="sum", log_target=True)
    loss = z_s.sum() * 0
    if alpha > 0:
        loss = loss + alpha * hard / counts.ce
    if alpha < 1:
        loss = loss + (1 - alpha) * (tau**2 if tau_squared else 1.0) * soft / counts.kl
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def assert_right(found: list[Tensor], right: list[Tensor], dtype: torch.dtype, leaves: list[Tensor]) -> None:
    """Loss and gradients within the tolerances of `dtype`, the latter in their leaves' dtypes."""
    torch.testing.assert_close(found[0].double(), right[0], rtol=LOSS[dtype], atol=LOSS[dtype])
    for number, (grad, exact, leaf) in enumerate(zip(found[1:], right[1:], leaves)):
        assert (grad.dtype, grad.shape) == (leaf.dtype, leaf.shape)
        error = (grad.double() - exact).abs().max() if exact.numel() else 0.0
        bound = GRADIENT[dtype] * (exact.abs().max() if exact.numel() else 0.0) + GRADIENT[F64]
        assert error <= bound, f"gradient {number}: error {error:.3g}, bound {bound:.3g}"
