"""The LIT loss by Triton kernels (``lit_fast.triton``): the ops ``lit_fast::lit_loss_triton`` and ``rescale_triton_``.

They run on CUDA GPUs; with ``TRITON_INTERPRET=1`` set before Triton is imported, Triton's interpreter runs them on the
CPU, slowly, for tests. Triton is imported when the backend is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_fast.loss.backends import fused, ops
from lit_fast.loss.backends.checks import check_label_values, check_tensors
from lit_fast.loss.backends.options import Inputs, device_of, dtype_of, has_soft_labels
from lit_fast.triton.support import available, on_device

if TYPE_CHECKING:
    from lit_fast.triton.launch import Section
    from lit_fast.triton.loss import Rows

__all__ = ["available", "lit_loss"]

# --- the ops


def _lit_loss(*arguments: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    from lit_fast.triton.loss import Settings, loss_launches

    inputs, (section_weights, *numbers, need_grad) = ops.inputs_of(arguments)
    settings = Settings(tuple(section_weights), *numbers)
    check_tensors(inputs, settings.section_weights)
    if inputs.counts is None and (inputs.rows is not None or inputs.ir_rows):
        raise ValueError("rows that do not count need counts, got None")
    hard_labels = None if has_soft_labels(inputs) else inputs.labels
    if inputs.student_logits is not None and hard_labels is not None and hard_labels.device.type == "cpu":
        check_label_values(hard_labels, inputs.student_logits.shape[1], settings.ignore_index)
    irs = zip(inputs.student_irs, inputs.teacher_irs)
    ir_rows = iter(inputs.ir_rows)
    sections = [_section(student, teacher, need_grad, next(ir_rows, None)) for student, teacher in irs]
    rows = _rows(inputs, need_grad)
    parts = torch.empty(3 + len(sections), dtype=dtype_of(inputs), device=device_of(inputs))
    with on_device(parts.device):
        for launch in loss_launches(sections, rows, parts, inputs.grad_scale, settings, inputs.counts):
            launch.run()
    grads = [section.grad for section in sections if section.grad is not None]
    logits_grad = parts.new_empty(0) if rows is None or rows.grad is None else rows.grad
    return parts, grads, logits_grad


def _rescale_(grads: Sequence[Tensor], factor: Tensor, scale: Tensor | None = None) -> None:
    from lit_fast.triton.rescale import rescale_launches

    with on_device(factor.device):
        _check_dense(grads)
        for launch in rescale_launches(grads, factor, scale):
            launch.run()


def _check_dense(tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
        if tensor.numel() > 0 and extent != tensor.numel():
            raise ValueError(f"rescale_: expected dense tensors, got strides {tensor.stride()} of {list(tensor.shape)}")


# --- the inputs, made dense


def _section(student: Tensor, teacher: Tensor, need_grad: bool, rows: Tensor | None = None) -> Section:
    from lit_fast.triton.launch import Section

    # What student, teacher and gradient share is the layout of this tensor: the student's own if that is dense.
    model = torch.empty_like(student) if need_grad or not student.is_contiguous() else student
    return Section(
        _laid_out_as(model, student), _laid_out_as(model, teacher), model if need_grad else None, _bytes_of(rows)
    )


def _bytes_of(rows: Tensor | None) -> Tensor | None:
    return None if rows is None else rows.contiguous().view(torch.uint8)


def _laid_out_as(model: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` itself if its elements lie in memory in the order of those of `model`, else a copy in which they do."""
    if model.stride() == tensor.stride():
        return tensor
    strides = zip(model.shape, model.stride(), tensor.stride())
    if all(size == 1 or ours == theirs for size, ours, theirs in strides):
        return tensor
    return torch.empty_like(model, dtype=tensor.dtype).copy_(tensor)


def _rows(inputs: Inputs, need_grad: bool) -> Rows | None:
    from lit_fast.triton.loss import Rows

    student = inputs.student_logits
    if student is None:
        return None
    hard, soft = (None, inputs.labels) if has_soft_labels(inputs) else (inputs.labels, None)
    given = (inputs.teacher_logits, hard, inputs.class_weight, soft)
    teacher, hard, class_weight, soft = (None if tensor is None else tensor.contiguous() for tensor in given)
    grad = torch.empty_like(student, memory_format=torch.contiguous_format) if need_grad else None
    return Rows(student.contiguous(), teacher, hard, class_weight, grad, soft, _bytes_of(inputs.rows))


# --- registration

_library = ops.define("_triton")
for _key in ("CPU", "CUDA"):
    _library.impl("lit_loss_triton", _lit_loss, _key)
    _library.impl("rescale_triton_", _rescale_, _key)

lit_loss = functools.partial(
    fused.lit_loss, fused.Ops(torch.ops.lit_fast.lit_loss_triton.default, torch.ops.lit_fast.rescale_triton_.default)
)
