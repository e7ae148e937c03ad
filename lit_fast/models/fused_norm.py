"""BatchNorm, residual and ReLU of a network in training as Triton kernels: an experiment, off until it is switched on.

A BatchNorm with its ReLU and addition reads and writes its tensors seven times in PyTorch, three times here; see
`lit_fast.triton.batch_norm`. Our networks call `norm_act`, which is plain PyTorch unless switched on.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules import module as torch_module

from lit_fast.errors import UnavailableError

if TYPE_CHECKING:
    from lit_fast.triton.batch_norm import Running

__all__ = ["check", "enabled", "is_enabled", "is_plain", "norm_act"]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

_on = False  # for the whole process


@contextmanager
def enabled(on: bool = True) -> Iterator[None]:
    """Within the context `norm_act` uses the kernels wherever it can; backward follows by itself, also outside.

    The switch is the process's: threads share it.
    """
    global _on
    before, _on = _on, on
    try:
        yield
    finally:
        _on = before


def is_enabled() -> bool:
    """Whether the kernels are switched on."""
    return _on


def check(device: torch.device) -> None:
    """Raise UnavailableError if the kernels cannot run on this device, with the reason."""
    usable, reason = _available(device.type, device.index)
    if not usable:
        raise UnavailableError(f"fused_norm is not available: {reason}; use fused_norm=False")


def norm_act(norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None = None, *, relu: bool = True) -> Tensor:
    """``relu(norm(x) + residual)``; x is left alone.

    Where the kernels are switched on, they are used for a plain ``nn.BatchNorm2d`` in train mode, without hooks, on
    tensors in ``channels_last`` of one floating dtype that Triton's device holds. Everything else is PyTorch's.

    Args:
        norm: the normalisation, in whatever mode; its running statistics are updated as it would itself.
        x: [N, C, H, W].
        residual: [N, C, H, W], added before the ReLU; None: nothing.
        relu: whether there is one.

    Returns:
        [N, C, H, W] in x's dtype. With the kernels it is rounded once, at the end.
    """
    if _on and _applies(norm, x, residual):
        return _fused(norm, x, residual, relu)
    # In place on what the normalisation made: its backward reads its input, so its output may be overwritten.
    out = norm(x)
    if residual is not None:
        out += residual
    return F.relu(out, inplace=True) if relu else out


# --- where the kernels apply


def _applies(norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None) -> bool:
    if torch.compiler.is_compiling() or type(norm) is not nn.BatchNorm2d or not is_plain(norm) or not norm.training:
        return False
    if type(x) not in (Tensor, nn.Parameter) or x.dim() != 4 or x.dtype not in DTYPES:
        return False
    rows = x.numel() // max(x.shape[1], 1)
    if rows < 2 or x.shape[1] != norm.num_features or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    if residual is not None and (residual.shape, residual.dtype, residual.device) != (x.shape, x.dtype, x.device):
        return False
    held = (norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.num_batches_tracked)
    if any(tensor is not None and (tensor.device != x.device or not tensor.is_contiguous()) for tensor in held):
        return False
    return _available(x.device.type, x.device.index)[0]


def is_plain(module: nn.Module) -> bool:
    """Whether calling this module is its class's forward and nothing else."""
    if "forward" in vars(module) or any(getattr(module, name) for name in _HOOKS):
        return False
    return not any(getattr(torch_module, "_global" + name, None) for name in _HOOKS)


@functools.lru_cache(maxsize=32)
def _available(device_type: str, index: int | None) -> tuple[bool, str]:
    from lit_fast.triton import support

    return support.available(device_type, index)


# --- the kernels as a function that autograd knows


def _fused(norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    return _NormAct.apply(x, residual, norm.weight, norm.bias, _running(norm), norm.eps, relu)


def _running(norm: nn.BatchNorm2d) -> Running:
    from lit_fast.triton.batch_norm import Running

    if not norm.track_running_stats:
        return Running()
    tracked = norm.num_batches_tracked
    momentum = 0.0 if norm.momentum is None and tracked is None else norm.momentum  # as in torch
    return Running(norm.running_mean, norm.running_var, tracked, momentum)


def _rows(x: Tensor) -> Tensor:
    """[N, C, H, W] in channels_last as [N * H * W, C]: the same memory."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        running: Running,
        eps: float,
        relu: bool,
    ) -> Tensor:
        from lit_fast.triton.batch_norm import Forward, forward_launches
        from lit_fast.triton.support import on_device

        y = torch.empty_like(x, memory_format=torch.channels_last)
        computed = torch.float64 if x.dtype == torch.float64 else torch.float32
        moments = torch.empty(2, x.shape[1], dtype=computed, device=x.device)
        rows = None if residual is None else _rows(residual)
        with on_device(x.device):
            for launch in forward_launches(
                Forward(_rows(x), rows, weight, bias, _rows(y), moments, running, eps, relu)
            ):
                launch.run()
        ctx.relu, ctx.with_residual = relu, residual is not None
        ctx.save_for_backward(x, y if relu and residual is not None else None, weight, bias, moments)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        from lit_fast.triton.batch_norm import Backward, backward_launches
        from lit_fast.triton.support import on_device

        x, y, weight, bias, moments = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        masked = None if y is None else torch.empty_like(x, memory_format=torch.channels_last)
        grad_weight, grad_bias = (torch.empty_like(moments[0]) for _ in range(2))
        tensors = (_rows(dy), _rows(x), None if y is None else _rows(y), weight, bias, moments)
        written = (_rows(dx), None if masked is None else _rows(masked), grad_weight, grad_bias)
        with on_device(x.device):
            for launch in backward_launches(Backward(*tensors, *written, ctx.relu)):
                launch.run()
        residual_grad = None
        if ctx.with_residual and ctx.needs_input_grad[1]:
            residual_grad = dy if masked is None else masked
        return (
            dx,
            residual_grad,
            None if weight is None else grad_weight.to(weight.dtype),
            None if bias is None else grad_bias.to(bias.dtype),
            *[None] * 3,
        )
