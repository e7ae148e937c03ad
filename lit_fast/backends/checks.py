"""Check the tensors of a loss before a backend sees them, and drop those that its options do not use.

Only shapes, dtypes and devices are looked at, never values: no device synchronisation, and
``torch.compile(fullgraph=True)`` traces through.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_fast.backends.options import LossOptions

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTS = (torch.int64, torch.int32)


class Inputs(NamedTuple):
    """Checked inputs of a backend; what the options do not use is empty or None."""

    student_irs: Sequence[Tensor]
    teacher_irs: Sequence[Tensor]
    student_logits: Tensor | None
    teacher_logits: Tensor | None
    labels: Tensor | None
    class_weight: Tensor | None
    grad_scale: Tensor | None


def check_irs(student_irs: Any, teacher_irs: Any, options: LossOptions) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Check the IRs of a loss with beta < 1: as many on both sides, equal shapes section by section."""
    mend = f"beta={options.beta} needs the IRs of every section; pass them, or set beta=1 for the KD loss alone"
    for side, irs in (("student_irs", student_irs), ("teacher_irs", teacher_irs)):
        if isinstance(irs, Tensor):
            raise TypeError(f"{side}: expected a sequence with one tensor per section, got one tensor; write [tensor]")
        if irs is None or len(irs) == 0:
            raise ValueError(f"{side}: expected at least one tensor, got {'None' if irs is None else 'none'}; {mend}")
    if len(student_irs) != len(teacher_irs):
        raise ValueError(
            f"student gives {len(student_irs)} IRs, teacher {len(teacher_irs)}; cut both models into the same sections"
        )
    weights = options.section_weights
    if weights is not None and len(weights) != len(student_irs):
        raise ValueError(
            f"section_weights: expected one weight for each of the {len(student_irs)} sections, got {len(weights)}"
        )
    for number, (student, teacher) in enumerate(zip(student_irs, teacher_irs), 1):
        if not (_is_floating(student) and _is_floating(teacher)):  # names are made up where they are needed: speed
            _floating(f"section {number}: student IR", student)
            _floating(f"section {number}: teacher IR", teacher)
        if student.shape != teacher.shape:
            batch = student.shape[:1] == teacher.shape[:1]
            raise ValueError(
                f"section {number}: student gives {_shape(student, batch)}, teacher {_shape(teacher, batch)}; "
                + _mend_shapes(student, teacher)
            )
    return student_irs, teacher_irs


def check_logits(student_logits: Any, teacher_logits: Any, options: LossOptions) -> tuple[Tensor, Tensor | None]:
    """Check the logits of a loss with beta > 0; the teacher's are needed where alpha < 1, else dropped."""
    if student_logits is None:
        raise ValueError(
            f"student_logits: beta={options.beta} needs logits of shape (B, classes), got None; "
            "pass them, or set beta=0 for the IR loss alone"
        )
    _floating("student_logits", student_logits)
    if student_logits.dim() != 2 or student_logits.shape[1] == 0:
        raise ValueError(
            f"student_logits: expected shape (B, classes) with at least one class, got {_shape(student_logits)}; "
            "flatten other dimensions into the batch, for example logits.flatten(0, 1)"
        )
    if options.alpha == 1:
        return student_logits, None
    if teacher_logits is None:
        raise ValueError(
            f"teacher_logits: alpha={options.alpha} needs the teacher's soft targets, got None; "
            "pass them, or set alpha=1 for the label loss alone"
        )
    _floating("teacher_logits", teacher_logits)
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f"teacher_logits: expected the student's shape {_shape(student_logits)}, got {_shape(teacher_logits)}; "
            "teacher and student must see the same batch and know the same classes"
        )
    return student_logits, teacher_logits


def check_labels(labels: Any, student_logits: Tensor, options: LossOptions) -> Tensor | None:
    """Check the labels of a loss with alpha > 0 and return them as int64; dropped where alpha is 0."""
    if options.alpha == 0:
        return None
    rows, classes = student_logits.shape
    if labels is None:
        raise ValueError(
            f"labels: alpha={options.alpha} needs labels of shape (B,), got None; "
            "pass them, or set alpha=0 for the teacher's soft targets alone"
        )
    _tensor("labels", labels)
    if labels.is_floating_point():
        raise TypeError(
            f"labels: expected class indices (int64), got {_dtype(labels)} of shape {_shape(labels)}; soft labels are "
            "not supported: pass class indices (labels.argmax(1) of probabilities) and, if wanted, label_smoothing=..."
        )
    if labels.dtype not in _INTS:
        raise TypeError(f"labels: expected class indices (int64 or int32), got {_dtype(labels)}; use labels.long()")
    if labels.shape != (rows,):
        mend = "use labels.argmax(1) of one-hot labels" if labels.shape == (rows, classes) else "one label per row"
        raise ValueError(f"labels: expected shape ({rows},) as the logits' batch, got {_shape(labels)}; {mend}")
    return labels.long()


def check_class_weight(class_weight: Any, student_logits: Tensor) -> Tensor | None:
    """Check the class weights of a cross-entropy, or None."""
    if class_weight is None:
        return None
    classes = student_logits.shape[1]
    _floating("class_weight", class_weight)
    if class_weight.shape != (classes,):
        raise ValueError(
            f"class_weight: expected shape ({classes},), one weight for each class, got {_shape(class_weight)}"
        )
    return class_weight


def check_grad_scale(grad_scale: Any) -> Tensor | None:
    """Check the loss scale, or None."""
    if grad_scale is None:
        return None
    _floating("grad_scale", grad_scale)
    if grad_scale.dim() != 0:
        raise ValueError(f"grad_scale: expected a 0-d tensor, got shape {_shape(grad_scale)}; use scale.reshape(())")
    return grad_scale


def check_inputs(
    student_irs: Sequence[Tensor] | None,
    teacher_irs: Sequence[Tensor] | None,
    student_logits: Tensor | None,
    teacher_logits: Tensor | None,
    labels: Tensor | None,
    class_weight: Tensor | None,
    grad_scale: Tensor | None,
    options: LossOptions,
) -> Inputs:
    """Return the inputs that `options` uses, on one device, labels as int64.

    Raises:
        TypeError: something is not a tensor, or has a dtype that does not fit.
        ValueError: something is missing, or has a shape or device that does not fit.
    """
    s_irs: Sequence[Tensor] = ()
    t_irs: Sequence[Tensor] = ()
    z_s = z_t = y = weight = None
    if options.beta < 1:
        s_irs, t_irs = check_irs(student_irs, teacher_irs, options)
    if options.beta > 0:
        z_s, z_t = check_logits(student_logits, teacher_logits, options)
        y = check_labels(labels, z_s, options)
        weight = None if y is None else check_class_weight(class_weight, z_s)
    inputs = Inputs(s_irs, t_irs, z_s, z_t, y, weight, check_grad_scale(grad_scale))
    _check_devices(inputs)
    return inputs


def device_of(inputs: Inputs) -> torch.device:
    """The device of checked inputs."""
    return inputs.student_irs[0].device if inputs.student_logits is None else inputs.student_logits.device


def _check_devices(inputs: Inputs) -> None:
    device = device_of(inputs)
    for number, (student, teacher) in enumerate(zip(inputs.student_irs, inputs.teacher_irs), 1):
        if not student.device == teacher.device == device:
            _on(device, f"section {number}: student IR", student)
            _on(device, f"section {number}: teacher IR", teacher)
    _on(device, "teacher_logits", inputs.teacher_logits)
    _on(device, "labels", inputs.labels)
    _on(device, "class_weight", inputs.class_weight)
    _on(device, "grad_scale", inputs.grad_scale)


def _on(device: torch.device, name: str, tensor: Tensor | None) -> None:
    if tensor is not None and tensor.device != device:
        raise ValueError(f"{name}: expected device {device} as the student's, got {tensor.device}; move it there")


def _tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in _FLOATS


def _floating(name: str, value: Any) -> None:
    _tensor(name, value)
    if value.dtype not in _FLOATS:
        raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {_dtype(value)}")


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _mend_shapes(student: Tensor, teacher: Tensor) -> str:
    if student.dim() != teacher.dim() or student.shape[2:] != teacher.shape[2:]:
        return "cut both models where their outputs have the same size"
    if student.shape[:1] != teacher.shape[:1]:
        return "give both models the same batch"
    return "choose students of the teacher's width or pass projector=..."


def _shape(tensor: Tensor, batch: bool = False) -> str:
    """The shape as (B, 64, 16, 16) where the first number is the batch's and says nothing, else in numbers."""
    sizes = [str(size) for size in tensor.shape]
    if batch and len(sizes) > 1:
        sizes[0] = "B"
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
