"""The sums of the KD loss over rows of logits and their gradient, in closed form and plain PyTorch.

For a row with logits z_s and z_t, q = softmax(z_s / tau), p = softmax(z_t / tau), targets t of the cross-entropy
(t_c = weight_c * smoothing / classes, and at the label (1 - smoothing) * weight more)::

    CE = -sum_c t_c log softmax(z_s)_c                d CE / d z_s = softmax(z_s) * sum_c t_c - t
    KL = tau^2 sum_c p_c log(p_c / q_c)               d KL / d z_s = tau (q - p)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_fast.loss.backends.options import LossOptions


class Rows(NamedTuple):
    """Rows of logits of V classes, and what belongs to them."""

    student: Tensor  # [rows, V]
    teacher: Tensor | None = None  # [rows, V]; None: no KL
    labels: Tensor | None = None  # [rows], int64; None: no CE
    class_weight: Tensor | None = None  # [V]


def kd_sums(
    rows: Rows, options: LossOptions, ce_scale: float, kl_scale: float, need_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(sum of CE, sum of KL with its tau^2, gradient of ``ce_scale * CE + kl_scale * KL``) over all rows.

    Computed in float32, in float64 if any logits are. Without need_grad the gradient is empty.
    """
    student, teacher, labels, class_weight = rows
    wide = torch.float64 in (student.dtype, None if teacher is None else teacher.dtype)
    z = student.to(torch.float64 if wide else torch.float32)
    grad = torch.zeros_like(z, memory_format=torch.contiguous_format) if need_grad else None
    ce = kl = z.new_zeros(())
    if labels is not None:
        ce = _cross_entropy(z, labels, class_weight, options, ce_scale, grad)
    if teacher is not None:
        kl = _kl(z, teacher.to(z.dtype), options, kl_scale, grad)
    return ce, kl, z.new_empty(0) if grad is None else grad.to(student.dtype)


def _cross_entropy(
    z: Tensor, labels: Tensor, class_weight: Tensor | None, options: LossOptions, scale: float, grad: Tensor | None
) -> Tensor:
    """Sum over the rows [rows, classes]; adds ``scale`` times its gradient to `grad`."""
    given = (labels != options.ignore_index)[:, None]  # [rows, 1], like all that is of one number for each row
    label = torch.where(given, labels[:, None], 0)
    weight = z.new_ones(z.shape[1]) if class_weight is None else class_weight.to(z.dtype)
    every = options.label_smoothing / z.shape[1] * weight  # [classes]
    at_label = (1 - options.label_smoothing) * weight[label]
    log_q = torch.log_softmax(z, 1)
    log_likelihood = _weighted(at_label, log_q.gather(1, label))
    if options.label_smoothing > 0:
        log_likelihood = log_likelihood + _weighted(every, log_q).sum(1, keepdim=True)
    if grad is not None:
        slope = log_q.exp_().mul_(scale * (at_label + every.sum())).sub_(scale * every)
        grad.add_(slope.scatter_add_(1, label, -scale * at_label).masked_fill_(~given, 0.0))
    return -torch.where(given, log_likelihood, 0.0).sum()


def _weighted(target: Tensor, log: Tensor) -> Tensor:
    """target * log, and 0 where the target is: a masked class has log = -inf."""
    return torch.where(target == 0, 0.0, target * log)


def _kl(z_s: Tensor, z_t: Tensor, options: LossOptions, scale: float, grad: Tensor | None) -> Tensor:
    """Sum over the rows [rows, classes]; adds ``scale`` times its gradient to `grad`."""
    log_q = torch.log_softmax(z_s / options.tau, 1)
    log_p = torch.log_softmax(z_t / options.tau, 1)
    delta = log_p - log_q
    p, difference = log_p.exp_(), log_q.exp_()
    difference -= p  # q - p
    if grad is not None:
        grad.add_(difference, alpha=scale * (options.tau if options.tau_squared else 1 / options.tau))
    # The sum of q - p is 0: with it, what rounding leaves of a small KL is of second order, as KL is itself.
    near = p * (delta + torch.expm1(-delta))
    far = torch.where(p == 0, 0.0, p * delta) + difference
    total = torch.where(delta.abs() < 1, near, far).sum()
    return total * (options.tau**2 if options.tau_squared else 1.0)
