"""The differentiable LIT loss around any op that computes loss and gradients in one pass.

Such an op returns both, so there is no graph to keep: forward stores the finished gradients and backward hands them
out, rescaled only where grad_output is not the scale that they were computed with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_fast.loss.backends.ops import arguments
from lit_fast.loss.backends.options import Inputs, LossOptions, LossParts

_OTHERS = len(Inputs._fields) - 3  # of the tensors, those that are no lists
# Whether backward() keeps the graph, so that this node may run again. Without the question, it may.
keeps_graph: Callable[[], bool] = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
NO_DOUBLE_BACKWARD = (
    "lit_loss does not support double backward: its gradient is computed once and keeps no graph; "
    "call backward() without create_graph=True, and keep a gradient penalty in a loss of its own"
)


class Ops(NamedTuple):
    """What a backend computes with: its ``lit_loss`` and ``rescale_`` (see ``ops.define``).

    Attributes:
        lit_loss_total: has the arguments of ``lit_loss`` without the last; returns the differentiable total and the
            parts, by a node of its own, which saves the time of Python's. None: there is none.
    """

    lit_loss: Callable[..., tuple[Tensor, list[Tensor], Tensor]]
    rescale_: Callable[[list[Tensor], Tensor, Tensor | None], None]
    lit_loss_total: Callable[..., tuple[Tensor, Tensor]] | None = None


def lit_loss(ops: Ops, inputs: Inputs, options: LossOptions) -> LossParts:
    """Compute the LIT loss of checked inputs, as ``lit_fast.loss.backends.eager.lit_loss``.

    Raises:
        RuntimeError: in backward, if called with ``create_graph=True``.
    """
    if ops.lit_loss_total is not None and not torch.compiler.is_compiling():
        total, parts = ops.lit_loss_total(*arguments(inputs, options))
    elif _needs_gradient(inputs):
        student_irs, teacher_irs, *others, ir_rows = inputs
        tensors = each_once([*others, *student_irs, *teacher_irs, *ir_rows])
        total, parts = _LitLoss.apply(ops, options, len(student_irs), *tensors)
    else:
        with torch.no_grad():
            parts, _, _ = ops.lit_loss(*arguments(inputs, options), False)
            total = parts[0]
    return LossParts(total, parts[1], parts[2], parts[3:])


def each_once(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Views where a graph is compiled: dynamo takes no tensor twice, as one IR that is held against two teachers'."""
    if not torch.compiler.is_compiling():
        return list(tensors)
    return [None if tensor is None else tensor.view(tensor.shape) for tensor in tensors]


def _needs_gradient(inputs: Inputs) -> bool:
    students = (*inputs.student_irs, inputs.student_logits)
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in students)


class _LitLoss(torch.autograd.Function):
    """(total 0-d, parts [3 + k] not differentiable) of the op.

    The tensors are the _OTHERS of ``Inputs``, then the IRs of the student and of the teacher, `sections` each, and
    their rows: not in lists, inside which autograd does not look.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, ops: Ops, options: LossOptions, sections: int, *tensors: Any
    ) -> tuple[Tensor, Tensor]:
        others, irs = tensors[:_OTHERS], tensors[_OTHERS:]
        inputs = Inputs(*(irs[:sections], irs[sections : 2 * sections], *others, irs[2 * sections :]))
        parts, ir_grads, logits_grad = ops.lit_loss(*arguments(inputs, options), True)
        ctx.rescale_ = ops.rescale_
        ctx.mark_non_differentiable(parts)
        if not torch.compiler.is_compiling():
            ctx.set_materialize_grads(False)  # no zeros for the parts: on CUDA they would be a launch
        ctx.save_for_backward(inputs.grad_scale, logits_grad, *ir_grads)
        return _total(parts), parts

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, _grad_parts: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        compiling = torch.compiler.is_compiling()
        if torch.is_grad_enabled() and not compiling:  # a compiled graph refuses by itself
            raise RuntimeError(NO_DOUBLE_BACKWARD)
        grad_scale, logits_grad, *ir_grads = ctx.saved_tensors
        if grad_total is None:
            grad_total = logits_grad.new_zeros(())
        want_logits, want_irs = ctx.needs_input_grad[3], ctx.needs_input_grad[3 + _OTHERS :]
        pairs = zip([logits_grad, *ir_grads], [want_logits, *want_irs])
        grads = [grad if want else None for grad, want in pairs]
        if compiling or keeps_graph():  # what is saved may be needed once more, or is a graph's to plan
            factor = grad_total if grad_scale is None else grad_total / grad_scale
            grads = [None if grad is None else rescaled(grad, factor) for grad in grads]
        elif grad_total is not grad_scale:  # the very tensor: the gradients are right as they are
            ctx.rescale_([grad for grad in grads if grad is not None], grad_total, grad_scale)
        behind = len(ctx.needs_input_grad) - 3 - _OTHERS - len(ir_grads)
        return None, None, None, grads[0], *[None] * (_OTHERS - 1), *grads[1:], *[None] * behind


def _total(parts: Tensor) -> Tensor:
    """parts[0] as a tensor of its own, which may be changed in place: no view, whose base autograd would ask for."""
    if parts.is_cuda and not torch.compiler.is_compiling():
        return _alias(parts)
    return parts[0].clone()


def _alias(parts: Tensor) -> Tensor:
    """The first number of the same memory, without the launch of a copy."""
    return parts.new_empty(()).set_(parts.untyped_storage(), parts.storage_offset(), (), ())


def rescaled(grad: Tensor, factor: Tensor) -> Tensor:
    # A 0-d tensor would be rounded to the gradient's dtype first: 65536 is infinite in float16.
    return (grad.to(factor.dtype) * factor).to(grad.dtype)
