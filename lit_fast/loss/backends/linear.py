"""The KD loss (paper eq. 2) of the logits of two linear heads, around the op ``linear_kd``, which never has them whole.

The op takes rows in chunks (``chunks.in_chunks``) and returns the gradients with the loss, so that backward only
multiplies. The idea is that of Liger-Kernel's fused linear losses (https://github.com/linkedin/Liger-Kernel).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.library import Library
from torch.nn import functional as F

from lit_fast.loss.backends import eager, fused
from lit_fast.loss.backends.chunks import LinearInputs, gradient_dtype, in_chunks, label_weights
from lit_fast.loss.backends.options import Inputs, LossOptions, LossParts

FUSED = {"native": "lit_loss", "triton": "lit_loss_triton"}  # by backend: the op that takes a chunk's logits
_RESCALE = {"lit_loss": "rescale_", "lit_loss_triton": "rescale_triton_"}


def _autocast_dtype(device_type: str) -> torch.dtype | None:
    """What autocast, where it is on, computes products in."""
    if _has_autocast(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


@torch.compiler.assume_constant_result
def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


# --- the reference


def unfused(inputs: LinearInputs, options: LossOptions) -> LossParts:
    """The loss of whole logits, by autograd: what ``chunked`` is held to."""

    def counted(tensor: Tensor) -> Tensor:
        return tensor if inputs.rows is None else tensor[inputs.rows]

    z_s, z_t = F.linear(counted(inputs.student_hidden), inputs.student_weight, inputs.student_bias), None
    if inputs.teacher_hidden is not None and inputs.teacher_weight is not None:
        with torch.no_grad():
            z_t = F.linear(counted(inputs.teacher_hidden), inputs.teacher_weight, inputs.teacher_bias)
    hard = soft = z_s.new_zeros((), dtype=torch.float64 if torch.float64 in (z_s.dtype, _dtype(z_t)) else torch.float32)
    if inputs.labels is not None:
        labels, weight = counted(inputs.labels), inputs.class_weight
        mean = eager.lit_loss(Inputs((), (), z_s, None, labels, weight), replace(options, alpha=1.0)).total
        own = label_weights(labels, weight, options.ignore_index, hard.dtype).sum()
        hard = _counted_otherwise(mean, own, inputs.ce_count)
    if z_t is not None:
        mean = eager.lit_loss(Inputs((), (), z_s, z_t), replace(options, alpha=0.0)).total
        soft = _counted_otherwise(mean, mean.new_tensor(z_s.shape[0]), inputs.kl_count)
    # A term of weight 0 is not there: 0 * NaN would be.
    terms = [share * term for share, term in ((options.alpha, hard), (1 - options.alpha, soft)) if share > 0]
    return LossParts(sum(terms[1:], terms[0]), hard.detach(), soft.detach(), hard.new_zeros(0))


def _dtype(tensor: Tensor | None) -> torch.dtype | None:
    return None if tensor is None else tensor.dtype


def _counted_otherwise(mean: Tensor, own: Tensor, count: Tensor | None) -> Tensor:
    """The mean over a weight of `own` as a sum that is divided by `count`."""
    if count is None:
        return mean
    return torch.where(own == 0, 0.0, mean) * (own / count).to(mean.dtype)


# --- in chunks


def chunked(inputs: LinearInputs, options: LossOptions, chunk: int, kernel: str = "") -> LossParts:
    """Compute the loss of checked inputs in chunks of `chunk` rows.

    Args:
        kernel: one of FUSED's ops, for the logits of a chunk; empty for plain PyTorch.

    Raises:
        IndexError: a label on the CPU is neither a class nor ``ignore_index``.
        RuntimeError: in backward, if called with ``create_graph=True``; in a CUDA graph's capture.
    """
    leaves = inputs[:3]
    needed = [torch.is_grad_enabled() and leaf is not None and leaf.requires_grad for leaf in leaves]
    numbers = (*_numbers(options), chunk, _autocast_dtype(inputs.student_hidden.device.type), kernel)
    if any(needed):
        total, parts = _LinearKD.apply((*numbers, needed), *fused.each_once(inputs))
    else:
        with torch.no_grad():
            parts = torch.ops.lit_fast.linear_kd.default(*inputs, *numbers, needed)[0]
            total = parts[0]
    return LossParts(total, parts[1], parts[2], parts[3:])


def _numbers(options: LossOptions) -> tuple[Any, ...]:
    return options.alpha, options.tau, options.tau_squared, options.ignore_index, options.label_smoothing


class _LinearKD(torch.autograd.Function):
    """(total 0-d, parts [3] not differentiable) of the op, whose gradients forward keeps and backward hands out."""

    @staticmethod
    def forward(ctx: Any, numbers: tuple[Any, ...], *tensors: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        parts, *grads = torch.ops.lit_fast.linear_kd.default(*tensors, *numbers)
        ctx.rescale = _RESCALE.get(numbers[-2])
        ctx.dtypes = [tensor.dtype if tensor is not None else None for tensor in tensors[:3]]
        ctx.mark_non_differentiable(parts)
        if not torch.compiler.is_compiling():
            ctx.set_materialize_grads(False)
        ctx.save_for_backward(LinearInputs(*tensors).grad_scale, *grads)
        return parts[0].clone(), parts

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, _grad_parts: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        compiling = torch.compiler.is_compiling()
        if torch.is_grad_enabled() and not compiling:
            raise RuntimeError(fused.NO_DOUBLE_BACKWARD)
        grad_scale, *saved = ctx.saved_tensors
        if grad_total is None:
            grad_total = saved[0].new_zeros(())
        grads = [grad if want else None for grad, want in zip(saved, ctx.needs_input_grad[1:4])]
        if compiling or ctx.rescale is None or fused.keeps_graph():
            factor = grad_total if grad_scale is None else grad_total / grad_scale
            grads = [None if grad is None else fused.rescaled(grad, factor) for grad in grads]
        else:
            there = [grad for grad in grads if grad is not None]
            getattr(torch.ops.lit_fast, ctx.rescale).default(there, grad_total, grad_scale)
        leaves = [None if grad is None else grad.to(dtype) for grad, dtype in zip(grads, ctx.dtypes)]
        return None, *leaves, *(None for _ in LinearInputs._fields[3:])


# --- the op


def _linear_kd(*given: Any) -> tuple[Tensor, ...]:
    inputs, options, chunk, autocast, kernel, needed = _read(given)
    with torch.no_grad(), _without_autocast(inputs.student_hidden.device.type):
        return in_chunks(inputs, options, chunk, autocast, kernel, needed)


def _read(given: Sequence[Any]) -> tuple[LinearInputs, LossOptions, int, torch.dtype | None, str, Sequence[bool]]:
    """The op's arguments."""
    count = len(LinearInputs._fields)
    alpha, tau, tau_squared, ignore_index, label_smoothing, chunk, autocast, kernel, needed = given[count:]
    options = LossOptions(
        alpha=alpha,
        beta=1.0,
        tau=tau,
        tau_squared=tau_squared,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )
    return LinearInputs(*given[:count]), options, chunk, autocast, kernel, needed


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    available = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if available else nullcontext()


# --- registration


def _empty_results(*given: Any) -> tuple[Tensor, ...]:
    inputs, *_, needed = _read(given)
    hidden = inputs.student_hidden
    wide = torch.float64 in (hidden.dtype, _dtype(inputs.teacher_hidden))
    grads = (
        torch.empty(leaf.shape, dtype=gradient_dtype(leaf, inputs.grad_scale), device=leaf.device)
        if leaf is not None and need
        else hidden.new_empty(0)
        for leaf, need in zip(inputs[:3], needed)
    )
    return hidden.new_empty(3, dtype=torch.float64 if wide else torch.float32), *grads


_library = Library("lit_fast", "FRAGMENT")
_library.define(
    "linear_kd(Tensor student_hidden, Tensor student_weight, Tensor? student_bias, Tensor? teacher_hidden, "
    "Tensor? teacher_weight, Tensor? teacher_bias, Tensor? labels, Tensor? class_weight, Tensor? rows, "
    "Tensor? ce_count, Tensor? kl_count, Tensor? grad_scale, float alpha, float tau, bool tau_squared, "
    "int ignore_index, float label_smoothing, SymInt chunk, ScalarType? autocast, str kernel, bool[] needed) "
    "-> (Tensor parts, Tensor hidden_grad, Tensor weight_grad, Tensor bias_grad)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.impl("linear_kd", _linear_kd, "CompositeExplicitAutograd")
torch.library.register_fake("lit_fast::linear_kd", _empty_results, lib=_library)
