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

What does not count is replaced by 0 before anything is computed from it, so that no NaN of padding reaches the loss,
nor, multiplied by a gradient of 0, the student.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from lit_fast.loss.backends.checks import check_label_values
from lit_fast.loss.backends.options import Inputs, LossOptions, LossParts, device_of, dtype_of, widest


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
            wide = widest(device)
            z_s = _counted(inputs.student_logits.to(wide), inputs.rows)
            if inputs.labels is not None:
                ce = _cross_entropy(z_s, inputs, options).to(dtype)
                total = total + options.beta * options.alpha * ce
            if inputs.teacher_logits is not None:
                z_t = _counted(inputs.teacher_logits.detach().to(wide), inputs.rows)
                kl = _over(_kl(z_s, z_t, options.tau), inputs.counts, 1)
                kl = (options.tau**2 * kl if options.tau_squared else kl).to(dtype)
                total = total + options.beta * (1 - options.alpha) * kl
        ir = zero.new_zeros(0)
        if inputs.student_irs:
            means = [_ir_loss(inputs, options, section, dtype) for section in range(len(inputs.student_irs))]
            weights = options.section_weights or (1.0,) * len(means)
            total = total + (1 - options.beta) * sum(w * mean for w, mean in zip(weights, means))
            ir = torch.stack(means)
    # Compiled graphs refuse double backward themselves; torch.func.grad keeps a graph always, and it may be asked for.
    if not torch.compiler.is_compiling() and not transformed():
        total = _FirstOrderOnly.apply(total)
    return LossParts(total, ce.detach(), kl.detach(), ir.detach())


def transformed() -> bool:
    """Whether a transform of ``torch.func`` is at work (``grad``, ``vmap``, ``jvp``); graphs are compiled for one."""
    return torch._C._are_functorch_transforms_active()


@torch.compiler.assume_constant_result
def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


# --- what counts


def _counted(tensor: Tensor, rows: Tensor | None) -> Tensor:
    """The tensor with 0 wherever its rows, which are those of its first dimensions, do not count."""
    if rows is None:
        return tensor
    return torch.where(rows.reshape(rows.shape + (1,) * (tensor.dim() - rows.dim())), tensor, 0.0)


def _over(losses: Tensor, counts: Tensor | None, term: int) -> Tensor:
    """The mean of losses, or their sum divided by what is said to count."""
    return losses.mean() if counts is None else losses.sum() / counts[term].to(losses.dtype)


# --- eq. 3: element losses of d = student IR - teacher IR


def _ir_loss(inputs: Inputs, options: LossOptions, section: int, dtype: torch.dtype) -> Tensor:
    rows = inputs.ir_rows[section] if inputs.ir_rows else None
    student = _counted(inputs.student_irs[section].to(dtype), rows)
    teacher = _counted(inputs.teacher_irs[section].detach().to(dtype), rows)
    return _over(_ELEMENT_LOSS[options.ir](student - teacher), inputs.counts, 2 + section)


def _l2(d: Tensor) -> Tensor:
    return d * d


def _l1(d: Tensor) -> Tensor:
    # torch's sign (and so abs's gradient) maps NaN to 0, which would hide a diverged section from its gradient.
    slope = torch.where(d.isnan(), d, d.sign()).detach()  # 0 at d = 0
    return slope * d


def _smooth_l1(d: Tensor) -> Tensor:
    # The slope is clamp(d, -1, 1); slope * (d - slope / 2) is d^2 / 2 inside the threshold and |d| - 1/2 outside.
    slope = (d if transformed() else d.detach()).clamp(-1, 1)  # a slope with a gradient: for second order
    return slope * (d - 0.5 * slope)


_ELEMENT_LOSS: dict[str, Callable[[Tensor], Tensor]] = {"l2": _l2, "l1": _l1, "smooth_l1": _smooth_l1}


# --- eq. 2, hard part


def _cross_entropy(z: Tensor, inputs: Inputs, options: LossOptions) -> Tensor:
    """Cross-entropy of logits z [B, C] with labels [B] or [B, C], averaged as torch does; NaN if no row counts."""
    assert inputs.labels is not None
    weight = z.new_ones(z.shape[1]) if inputs.class_weight is None else inputs.class_weight.detach().to(z.dtype)
    if inputs.labels.is_floating_point():
        losses = _soft_cross_entropy(z, inputs.labels.detach().to(z.dtype), weight, options.label_smoothing)
        return _over(_counted(losses, inputs.rows), inputs.counts, 0)
    losses, row_weight = _hard_cross_entropy(z, inputs.labels, weight, options)
    return losses.sum() / (row_weight.sum() if inputs.counts is None else inputs.counts[0].to(z.dtype))


def _hard_cross_entropy(z: Tensor, labels: Tensor, weight: Tensor, options: LossOptions) -> tuple[Tensor, Tensor]:
    """Cross-entropies of rows, times their labels' weights, and these weights."""
    ignore, smoothing, classes = options.ignore_index, options.label_smoothing, z.shape[1]
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and not transformed():
        check_label_values(labels, classes, ignore)
    ignored = labels == ignore
    target = torch.where(ignored, 0, labels)
    log_q = torch.log_softmax(z, dim=1)
    row_weight = torch.where(ignored, 0.0, weight[target])
    nll = -log_q.gather(1, target[:, None]).squeeze(1)
    # where, not a product: a masked class has -log q = inf, and a weight of 0 must silence it in the gradient too.
    loss = (1 - smoothing) * torch.where(row_weight == 0, 0.0, row_weight * nll)
    if smoothing > 0:
        smooth = -torch.where(weight == 0, 0.0, weight * log_q).sum(1)
        loss = loss + smoothing / classes * torch.where(ignored, 0.0, smooth)
    return loss, row_weight


def _soft_cross_entropy(z: Tensor, labels: Tensor, weight: Tensor, smoothing: float) -> Tensor:
    """Cross-entropies of rows with probabilities [B, C]; a class with a target of 0 is silent even where masked."""
    target = weight * ((1 - smoothing) * labels + smoothing / z.shape[1])
    return -torch.where(target == 0, 0.0, target * torch.log_softmax(z, dim=1)).sum(1)


# --- eq. 2, soft part


def _kl(z_s: Tensor, z_t: Tensor, tau: float) -> Tensor:
    """KL(softmax(z_t / tau) || softmax(z_s / tau)) of the rows of [B, C]; tau^2 is not in it."""
    log_q = torch.log_softmax(z_s / tau, dim=1)
    log_p = torch.log_softmax(z_t / tau, dim=1)
    p = log_p.exp()
    # A class masked in the teacher has p = 0 and log p = -inf: it adds 0, whatever the student says of it.
    return torch.where(p == 0, 0.0, p * (log_p - log_q)).sum(1)


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
