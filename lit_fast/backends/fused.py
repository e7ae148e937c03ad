"""The differentiable LIT loss around any op that computes loss and gradients in one pass.

Such an op returns both, so there is no graph to keep: forward stores the finished gradients and backward hands them
out, rescaled only where grad_output is not the scale that they were computed with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_fast.backends.options import IR_KINDS, LossOptions, LossParts

# Whether backward() keeps the graph, so that this node may run again. Without the question, it may.
_keeps_graph: Callable[[], bool] = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


class Ops(NamedTuple):
    """What a backend computes with.

    Attributes:
        lit_loss: has the signature of ``lit_fast::lit_loss`` (csrc/ops.cpp): returns the parts [3 + k], one gradient
            for each student IR and the gradient of the student's logits.
        rescale_: multiplies a list of gradients in place by the quotient of two 0-d tensors (the second may be None:
            1), and leaves them alone if it is 1.
        lit_loss_total: has the arguments of ``lit_loss`` without the last; returns the differentiable total and the
            parts, by a node of its own, which saves the time of Python's. None: there is none.
    """

    lit_loss: Callable[..., tuple[Tensor, list[Tensor], Tensor]]
    rescale_: Callable[[list[Tensor], Tensor, Tensor | None], None]
    lit_loss_total: Callable[..., tuple[Tensor, Tensor]] | None = None


def lit_loss(
    ops: Ops,
    student_irs: Sequence[Tensor],
    teacher_irs: Sequence[Tensor],
    student_logits: Tensor | None,
    teacher_logits: Tensor | None,
    labels: Tensor | None,
    class_weight: Tensor | None,
    grad_scale: Tensor | None,
    options: LossOptions,
) -> LossParts:
    """Compute the LIT loss; arguments and result as ``lit_fast.backends.eager.lit_loss``.

    Args:
        grad_scale: 0-d, the scale that grad_output is expected to be (a GradScaler's), or None for 1. Gradients are
            computed times this scale, so that float16 ones do not underflow; any other grad_output is right as well,
            at the price of one multiplication more and of rounding before it.

    Raises:
        RuntimeError: in backward, if called with ``create_graph=True``.
    """
    use_kd, use_irs = options.beta > 0, options.beta < 1
    use_ce, use_kl = use_kd and options.alpha > 0, use_kd and options.alpha < 1
    students = tuple(student_irs) if use_irs else ()
    teachers = tuple(teacher_irs) if use_irs else ()
    logits = student_logits if use_kd else None
    others = (
        teacher_logits if use_kl else None,
        labels if use_ce else None,
        class_weight if use_ce else None,
        grad_scale,
    )
    if ops.lit_loss_total is not None and not torch.compiler.is_compiling():
        total, parts = ops.lit_loss_total(*_arguments(students, teachers, logits, others, options))
    elif torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*students, logits)):
        total, parts = _LitLoss.apply(ops, options, len(students), logits, *others, *students, *teachers)
    else:
        with torch.no_grad():
            parts, _, _ = ops.lit_loss(*_arguments(students, teachers, logits, others, options), False)
            total = parts[0]
    return LossParts(total, parts[1], parts[2], parts[3:])


def fake(
    student_irs: list[Tensor],
    teacher_irs: list[Tensor],
    student_logits: Tensor | None,
    teacher_logits: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Shapes, dtypes and layouts of what ``Ops.lit_loss`` returns: to be registered as the op's fake."""
    need_grad = rest[-1]
    logits = [z for z in (student_logits, teacher_logits) if z is not None]
    inputs = [*student_irs, *teacher_irs, *logits]
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in inputs) else torch.float32
    parts = inputs[0].new_empty(3 + len(student_irs), dtype=dtype)
    if not need_grad:
        return parts, [], parts.new_empty(0)
    logits_grad = (
        parts.new_empty(0)
        if student_logits is None
        else torch.empty_like(student_logits, memory_format=torch.contiguous_format)
    )
    return parts, [torch.empty_like(s) for s in student_irs], logits_grad


def _arguments(
    students: tuple[Tensor, ...],
    teachers: tuple[Tensor, ...],
    logits: Tensor | None,
    others: tuple[Tensor | None, ...],
    options: LossOptions,
) -> tuple[Any, ...]:
    """Those of ``Ops.lit_loss`` but for the last."""
    return (
        students,
        teachers,
        logits,
        *others,
        (options.section_weights or (1.0,) * len(students)) if students else (),
        IR_KINDS.index(options.ir),
        options.alpha,
        options.beta,
        options.tau,
        options.tau_squared,
        options.ignore_index,
        options.label_smoothing,
    )


class _LitLoss(torch.autograd.Function):
    """(total 0-d, parts [3 + k] not differentiable) of the op.

    The tensors are teacher logits, labels, class weight and grad scale, then the IRs of the student and of the teacher,
    `sections` each: not in lists, inside which autograd does not look.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, ops: Ops, options: LossOptions, sections: int, logits: Tensor | None, *tensors: Any
    ) -> tuple[Tensor, Tensor]:
        others, students, teachers = tensors[:4], tensors[4 : 4 + sections], tensors[4 + sections :]
        parts, ir_grads, logits_grad = ops.lit_loss(*_arguments(students, teachers, logits, others, options), True)
        ctx.rescale_ = ops.rescale_
        ctx.mark_non_differentiable(parts)
        if not torch.compiler.is_compiling():
            ctx.set_materialize_grads(False)  # no zeros for the parts: on CUDA they would be a launch
        ctx.save_for_backward(others[3], logits_grad, *ir_grads)
        return _total(parts), parts

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, _grad_parts: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        compiling = torch.compiler.is_compiling()
        if torch.is_grad_enabled() and not compiling:  # a compiled graph refuses by itself
            raise RuntimeError(
                "lit_loss does not support double backward: its gradient is computed once and keeps no graph; "
                "call backward() without create_graph=True, and keep a gradient penalty in a loss of its own"
            )
        grad_scale, logits_grad, *ir_grads = ctx.saved_tensors
        if grad_total is None:
            grad_total = logits_grad.new_zeros(())
        _, _, _, want_logits, _, _, _, _, *want_irs = ctx.needs_input_grad
        pairs = zip([logits_grad, *ir_grads], [want_logits, *want_irs])
        grads = [grad if want else None for grad, want in pairs]
        if compiling or _keeps_graph():  # what is saved may be needed once more, or is a graph's to plan
            factor = grad_total if grad_scale is None else grad_total / grad_scale
            grads = [None if grad is None else _rescaled(grad, factor) for grad in grads]
        else:
            ctx.rescale_([grad for grad in grads if grad is not None], grad_total, grad_scale)
        return None, None, None, grads[0], None, None, None, None, *grads[1:], *(None for _ in ir_grads)


def _total(parts: Tensor) -> Tensor:
    """parts[0] as a tensor of its own, which may be changed in place: no view, whose base autograd would ask for."""
    if parts.is_cuda and not torch.compiler.is_compiling():
        return _alias(parts)
    return parts[0].clone()


def _alias(parts: Tensor) -> Tensor:
    """The first number of the same memory, without the launch of a copy."""
    return parts.new_empty(()).set_(parts.untyped_storage(), parts.storage_offset(), (), ())


def _rescaled(grad: Tensor, factor: Tensor) -> Tensor:
    # A 0-d tensor would be rounded to the gradient's dtype first: 65536 is infinite in float16.
    return (grad.to(factor.dtype) * factor).to(grad.dtype)
