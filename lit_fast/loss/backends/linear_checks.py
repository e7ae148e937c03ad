"""Check hidden states and heads before they are multiplied, and drop what the options do not use. No value is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_fast.loss.backends.checks import (
    _check_grad_scale,
    _check_labels,
    _dtype,
    _floating,
    _missing,
    _on,
    _shape,
    _tensor,
)
from lit_fast.loss.backends.chunks import LinearInputs
from lit_fast.loss.backends.options import LossOptions


def check_linear_inputs(inputs: LinearInputs, options: LossOptions) -> LinearInputs:
    """Return the inputs that `options` uses, labels as int64.

    Raises:
        TypeError: something is not a tensor, or has a dtype that does not fit.
        ValueError: something is missing, or has a shape or device that does not fit.
    """
    used = _used(inputs, options)
    _check_network("student", used.student_hidden, used.student_weight, used.student_bias)
    rows, classes = used.student_hidden.shape[0], used.student_weight.shape[0]
    if used.teacher_hidden is not None and used.teacher_weight is not None:
        _check_network("teacher", used.teacher_hidden, used.teacher_weight, used.teacher_bias)
        _check_same_task(used.teacher_hidden.shape[0], used.teacher_weight.shape[0], rows, classes)
    if used.labels is not None:
        _check_hard(used.labels)
        _check_labels(used.labels, rows, classes)
    if used.class_weight is not None:
        _floating("class_weight", used.class_weight)
        if used.class_weight.shape != (classes,):
            got = _shape(used.class_weight)
            raise ValueError(f"class_weight: expected shape ({classes},), one weight for each class, got {got}")
    if used.rows is not None:
        _check_counted(used.rows, rows)
    if used.grad_scale is not None:
        _check_grad_scale(used.grad_scale)
    for name, tensor in zip(LinearInputs._fields[1:], used[1:]):
        _on(used.student_hidden.device, name, tensor)
    return used


def _used(inputs: LinearInputs, options: LossOptions) -> LinearInputs:
    if options.alpha == 1:
        inputs = inputs._replace(teacher_hidden=None, teacher_weight=None, teacher_bias=None)
    else:
        for name, value in (("teacher_hidden", inputs.teacher_hidden), ("teacher_head", inputs.teacher_weight)):
            if value is None:
                need = f"alpha={options.alpha} needs the teacher's soft targets"
                raise _missing(name, need, "alpha=1 for the label loss alone")
    if options.alpha == 0:
        return inputs._replace(labels=None, class_weight=None)
    labels = inputs.labels
    if labels is None:
        mend = "alpha=0 for the teacher's soft targets alone"
        raise _missing("labels", f"alpha={options.alpha} needs labels of shape (N,)", mend)
    if isinstance(labels, Tensor) and labels.dtype == torch.int32:
        return inputs._replace(labels=labels.long())
    return inputs


def _check_network(side: str, hidden: Any, weight: Any, bias: Any) -> None:
    _floating(f"{side}_hidden", hidden)
    if hidden.dim() != 2:
        raise ValueError(
            f"{side}_hidden: expected shape (N, width), got {_shape(hidden)}; flatten batch and positions into N, "
            "for example hidden.flatten(0, 1)"
        )
    _floating(f"{side}_head", weight)
    if weight.dim() != 2 or weight.shape[0] == 0 or weight.shape[1] != hidden.shape[1]:
        raise ValueError(
            f"{side}_head: expected a weight of shape (classes, {hidden.shape[1]}), the width of {side}_hidden, "
            f"got {_shape(weight)}; pass the hidden states that the head is given" + _transposed(weight, hidden)
        )
    if bias is not None:
        _floating(f"{side}_head: bias", bias)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"{side}_head: expected a bias of shape ({weight.shape[0]},), got {_shape(bias)}")
    for what, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != hidden.dtype and not _autocast(hidden.device.type):
            raise TypeError(
                f"{side}_head: expected a {what} of {_dtype(hidden)} as {side}_hidden, got {_dtype(tensor)}; "
                f"cast one of them, for example {side}_hidden.to(weight.dtype), or use autocast"
            )


def _transposed(weight: Tensor, hidden: Tensor) -> str:
    return ", or weight.t()" if weight.dim() == 2 and weight.shape[0] == hidden.shape[1] else ""


def _autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _check_same_task(teacher_rows: int, teacher_classes: int, rows: int, classes: int) -> None:
    if teacher_rows != rows:
        raise ValueError(
            f"teacher_hidden: expected {rows} rows as student_hidden, got {teacher_rows}; "
            "teacher and student must see the same batch"
        )
    if teacher_classes != classes:
        raise ValueError(
            f"teacher_head: expected {classes} classes as student_head, got {teacher_classes}; teacher and student "
            "must know the same vocabulary: cut off what pads one of them, for example head.weight[:size]"
        )


def _check_hard(labels: Any) -> None:
    _tensor("labels", labels)
    if labels.is_floating_point():
        raise TypeError(
            f"labels: expected class indices (int64), got {_dtype(labels)} of shape {_shape(labels)}; soft labels are "
            "as large as the logits: use kd_loss"
        )


def _check_counted(counted: Any, rows: int) -> None:
    _tensor("rows", counted)
    if counted.dtype != torch.bool:
        raise TypeError(f"rows: expected bool, which rows count, got {_dtype(counted)}; use mask.flatten().bool()")
    if counted.shape != (rows,):
        raise ValueError(f"rows: expected shape ({rows},), one for each row of student_hidden, got {_shape(counted)}")
