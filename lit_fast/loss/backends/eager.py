"""The LIT loss in plain PyTorch operations with autograd: the oracle of every other backend.

Maths (paper section 3; d = student IR - teacher IR, p = softmax(z_t / tau), q = softmax(z_s / tau))::

    L    = beta * L_KD + (1 - beta) * sum_i w_i * mean(l(d_i))       eq. 1 and 3
    L_KD = alpha * CE(z_s, y) + (1 - alpha) * tau^2 * KL(p || q)     eq. 2
    l    = d^2 (l2) | |d| (l1) | smooth l1 with threshold 1

IRs are computed in float32 (float64 when any input is float64), whatever their dtype: a difference of 300 squared
overflows float16. Logits, which are few, are computed in float64: where student and teacher nearly agree, the terms of
the KL cancel to second order, and in float32 a KL of 4e-7 would be off by a tenth. The result is float32 all the
same. Autograd casts each gradient back to its input's dtype last, after grad_output was
multiplied in: a loss scale therefore always acts before the rounding, and ``grad_scale`` has nothing to add here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from lit_fast.loss.backends.checks import check_label_values
from lit_fast.loss.backends.options import Inputs, LossOptions, LossParts, device_of, dtype_of

_HAS_FLOAT64 = ("cpu", "cuda")  # MPS and some XPU devices have none


def lit_loss(inputs: Inputs, options: LossOptions) -> LossParts:
    """Compute the LIT loss of inputs that ``checks.check_inputs`` gave; their ``grad_scale`` plays no role here.

    Raises:
        IndexError: a label on the CPU is neither a class nor ``ignore_index`` (on CUDA: torch's device assert).
        RuntimeError: in backward, if called with ``create_graph=True``.
    """
    dtype, device = dtype_of(inputs), device_of(inputs)

    # Nothing here is on autocast's list of low-precision operations; switching it off keeps that true for ever.
    with torch.autocast(device.type, enabled=False) if _has_autocast(device.type) else nullcontext():
        zero = torch.zeros((), dtype=dtype, device=device)
        total = ce = kl = zero
        if inputs.student_logits is not None:
            wide = torch.float64 if device.type in _HAS_FLOAT64 else dtype
            z_s = inputs.student_logits.to(wide)
            if inputs.labels is not None:
                ce = _cross_entropy(z_s, inputs.labels, inputs.class_weight, options).to(dtype)
                total = total + options.beta * options.alpha * ce
            if inputs.teacher_logits is not None:
                kl = _kl(z_s, inputs.teacher_logits.detach().to(wide), options.tau)
                kl = (options.tau**2 * kl if options.tau_squared else kl).to(dtype)
                total = total + options.beta * (1 - options.alpha) * kl
        ir = zero.new_zeros(0)
        if inputs.student_irs:
            element_loss = _ELEMENT_LOSS[options.ir]
            pairs = zip(inputs.student_irs, inputs.teacher_irs)
            means = [element_loss(s.to(dtype) - t.detach().to(dtype)).mean() for s, t in pairs]
            weights = options.section_weights or (1.0,) * len(means)
            total = total + (1 - options.beta) * sum(w * mean for w, mean in zip(weights, means))
            ir = torch.stack(means)
    if not torch.compiler.is_compiling():  # compiled graphs refuse double backward themselves
        total = _FirstOrderOnly.apply(total)
    return LossParts(total, ce.detach(), kl.detach(), ir.detach())


@torch.compiler.assume_constant_result
def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


# --- eq. 3: element losses of d = student IR - teacher IR


def _l2(d: Tensor) -> Tensor:
    return d * d


def _l1(d: Tensor) -> Tensor:
    # torch's sign (and so abs's gradient) maps NaN to 0, which would hide a diverged section from its gradient.
    slope = torch.where(d.isnan(), d, d.sign()).detach()  # 0 at d = 0
    return slope * d


def _smooth_l1(d: Tensor) -> Tensor:
    # The slope is clamp(d, -1, 1); slope * (d - slope / 2) is d^2 / 2 inside the threshold and |d| - 1/2 outside.
    slope = d.detach().clamp(-1, 1)
    return slope * (d - 0.5 * slope)


_ELEMENT_LOSS: dict[str, Callable[[Tensor], Tensor]] = {"l2": _l2, "l1": _l1, "smooth_l1": _smooth_l1}


# --- eq. 2, hard part


def _cross_entropy(z: Tensor, labels: Tensor, weight: Tensor | None, options: LossOptions) -> Tensor:
    """Cross-entropy of logits z [B, C] with labels [B], averaged as torch does; NaN if no row counts."""
    ignore, smoothing, classes = options.ignore_index, options.label_smoothing, z.shape[1]
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        check_label_values(labels, classes, ignore)
    ignored = labels == ignore
    target = torch.where(ignored, 0, labels)
    log_q = torch.log_softmax(z, dim=1)
    weight = z.new_ones(classes) if weight is None else weight.detach().to(z.dtype)
    row_weight = torch.where(ignored, 0.0, weight[target])
    nll = -log_q.gather(1, target[:, None]).squeeze(1)
    # where, not a product: a masked class has -log q = inf, and a weight of 0 must silence it in the gradient too.
    loss = (1 - smoothing) * torch.where(row_weight == 0, 0.0, row_weight * nll)
    if smoothing > 0:
        smooth = -torch.where(weight == 0, 0.0, weight * log_q).sum(1)
        loss = loss + smoothing / classes * torch.where(ignored, 0.0, smooth)
    return loss.sum() / row_weight.sum()


# --- eq. 2, soft part


def _kl(z_s: Tensor, z_t: Tensor, tau: float) -> Tensor:
    """KL(softmax(z_t / tau) || softmax(z_s / tau)), mean over the rows of [B, C]; tau^2 is not in it."""
    log_q = torch.log_softmax(z_s / tau, dim=1)
    log_p = torch.log_softmax(z_t / tau, dim=1)
    p = log_p.exp()
    # A class masked in the teacher has p = 0 and log p = -inf: it adds 0, whatever the student says of it.
    return torch.where(p == 0, 0.0, p * (log_p - log_q)).sum(1).mean()


class _FirstOrderOnly(torch.autograd.Function):
    """Identity that refuses ``create_graph=True``, as the fused backends, which keep no graph, must."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, total: Tensor) -> Tensor:  # type: ignore[override]
        return total.clone()  # a view could not be changed in place, as in `loss /= steps`

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:  # type: ignore[override]
        if torch.is_grad_enabled():
            raise RuntimeError(
                "lit_loss does not support double backward: its gradient is computed once and keeps no graph; "
                "call backward() without create_graph=True, and keep a gradient penalty in a loss of its own"
            )
        return grad
