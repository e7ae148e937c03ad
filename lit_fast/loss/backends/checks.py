"""Check the tensors of a loss before a backend sees them, and drop those that its options do not use.

Only shapes, dtypes and devices are looked at, never values: no device synchronisation, and
``torch.compile(fullgraph=True)`` traces through. ``check_label_values`` is for backends that run on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor

from lit_fast.loss.backends.options import Inputs, LossOptions, device_of

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTS = (torch.int64, torch.int32)


def check_inputs(inputs: Inputs, options: LossOptions) -> Inputs:
    """Return the inputs that `options` uses, on one device, class indices as int64, rows of IRs one by one or none.

    Raises:
        TypeError: something is not a tensor, or has a dtype that does not fit.
        ValueError: something is missing, or has a shape or device that does not fit.
    """
    used = _used(inputs, options)
    check_tensors(used, options.section_weights)
    return used


def check_tensors(inputs: Inputs, section_weights: Sequence[float] | None) -> None:
    """Check that what is given fits together, whatever the options: that a kernel reads nothing out of bounds.

    Raises:
        TypeError, ValueError: as ``check_inputs``.
    """
    _check_irs(inputs.student_irs, inputs.teacher_irs, section_weights)
    if inputs.student_logits is not None:
        _check_logits(inputs.student_logits, inputs.teacher_logits, inputs.labels, inputs.class_weight)
        if inputs.rows is not None:
            check_rows(inputs.rows, inputs.student_logits.shape[0])
    elif not inputs.student_irs:
        raise ValueError("expected IRs or student_logits, got neither")
    if inputs.grad_scale is not None:
        _check_grad_scale(inputs.grad_scale)
    if inputs.ir_rows:
        pairs = zip(inputs.student_irs, ir_rows_of(inputs.ir_rows, len(inputs.student_irs)))
        for number, (student, rows) in enumerate(pairs, 1):
            check_rows_of_ir(number, rows, student.shape)
    if inputs.counts is not None and inputs.counts.shape != (2 + len(inputs.student_irs),):
        raise ValueError(f"counts: expected {2 + len(inputs.student_irs)} numbers, got shape {_shape(inputs.counts)}")
    _check_devices(inputs)


# --- what the options use


def _used(inputs: Inputs, options: LossOptions) -> Inputs:
    student_irs, teacher_irs, z_s, z_t, labels, class_weight, grad_scale, rows, counts, ir_rows = inputs
    if options.beta < 1:
        student_irs = _needed_irs("student_irs", student_irs, options)
        teacher_irs = _needed_irs("teacher_irs", teacher_irs, options)
        ir_rows = _given_ir_rows(ir_rows, student_irs)
    else:
        student_irs = teacher_irs = ir_rows = ()
    if options.beta == 0:
        return Inputs(student_irs, teacher_irs, grad_scale=grad_scale, counts=counts, ir_rows=ir_rows)
    if z_s is None:
        mend = "beta=0 for the IR loss alone"
        raise _missing("student_logits", f"beta={options.beta} needs logits of shape (B, classes)", mend)
    if options.alpha == 1:
        z_t = None
    elif z_t is None:
        mend = "alpha=1 for the label loss alone"
        raise _missing("teacher_logits", f"alpha={options.alpha} needs the teacher's soft targets", mend)
    if options.alpha == 0:
        labels = class_weight = None
    elif labels is None:
        mend = "alpha=0 for the teacher's soft targets alone"
        raise _missing("labels", f"alpha={options.alpha} needs labels of shape (B,)", mend)
    elif isinstance(labels, Tensor) and labels.dtype == torch.int32:
        labels = labels.long()
    return Inputs(student_irs, teacher_irs, z_s, z_t, labels, class_weight, grad_scale, rows, counts, ir_rows)


def one_per_section(side: str, irs: Any) -> tuple[Any, ...]:
    """The items of any iterable that has an order which both models share.

    Raises:
        TypeError: it has none.
    """
    if isinstance(irs, Tensor):
        raise TypeError(f"{side}: expected a sequence with one tensor per section, got one tensor; write [tensor]")
    if isinstance(irs, Mapping):  # of two, the order may differ
        raise TypeError(
            f"{side}: expected a sequence with one tensor per section, got {type(irs).__name__}; write "
            "[irs[name] for name in names] with the same names for both models"
        )
    if irs is not None and (isinstance(irs, str | AbstractSet) or not isinstance(irs, Iterable)):
        raise TypeError(f"{side}: expected a sequence with one tensor per section, got {type(irs).__name__}")
    return () if irs is None else tuple(irs)


def _needed_irs(side: str, irs: Any, options: LossOptions) -> tuple[Tensor, ...]:
    needed = one_per_section(side, irs)
    if not needed:
        mend = f"beta={options.beta} needs the IRs of every section; pass them, or set beta=1 for the KD loss alone"
        raise ValueError(f"{side}: expected at least one tensor, got {'None' if irs is None else 'none'}; {mend}")
    return needed


def ir_rows_of(ir_rows: Any, sections: int) -> Sequence[Tensor | None]:
    """Which rows of each section's IR count: a tensor is that of all sections."""
    if ir_rows is None or isinstance(ir_rows, Tensor):
        return [ir_rows] * sections
    ir_rows = one_per_section("ir_rows", ir_rows)
    if len(ir_rows) != sections:
        raise ValueError(
            f"ir_rows: expected one tensor or None for each of the {sections} sections, or one tensor for all, got "
            f"{len(ir_rows)}"
        )
    return list(ir_rows)


def _given_ir_rows(ir_rows: Any, student_irs: Sequence[Tensor]) -> Sequence[Tensor]:
    """As `Inputs` has them: none, or one of each section, which may count as a whole."""
    if ir_rows is None:
        return ()
    if not isinstance(ir_rows, Tensor):
        ir_rows = one_per_section("ir_rows", ir_rows)
        if not ir_rows:
            return ()
    given = ir_rows_of(ir_rows, len(student_irs))
    if all(rows is None for rows in given):
        return ()
    whole = student_irs[0].new_ones((), dtype=torch.bool)
    return tuple(whole if rows is None else rows for rows in given)


def _missing(name: str, need: str, setting: str) -> ValueError:
    return ValueError(f"{name}: {need}, got None; pass them, or set {setting}")


# --- what fits together


def _check_irs(
    student_irs: Sequence[Tensor], teacher_irs: Sequence[Tensor], section_weights: Sequence[float] | None
) -> None:
    if len(student_irs) != len(teacher_irs):
        raise ValueError(
            f"student gives {len(student_irs)} IRs, teacher {len(teacher_irs)}; cut both models into the same sections"
        )
    if student_irs and section_weights is not None and len(section_weights) != len(student_irs):
        raise ValueError(
            f"section_weights: expected one weight for each of the {len(student_irs)} sections, "
            f"got {len(section_weights)}"
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


def check_rows(rows: Any, batch: int) -> None:
    """Check which rows of the logits count.

    Raises:
        TypeError, ValueError: as ``check_inputs``.
    """
    _bool("rows", rows)
    if rows.shape != (batch,):
        raise ValueError(
            f"rows: expected shape ({batch},), one for each row of the logits, got {_shape(rows)}; "
            "flatten them as the logits are"
        )


def check_rows_of_ir(number: int, rows: Any, shape: torch.Size) -> None:
    """Check which rows of section `number`'s IR count; None for all.

    Raises:
        TypeError, ValueError: as ``check_inputs``.
    """
    if rows is None:
        return
    _bool("ir_rows", rows)
    if rows.dim() > len(shape) or rows.shape != shape[: rows.dim()]:
        raise ValueError(
            f"ir_rows: section {number}: expected the first dimensions of an IR of shape {_sizes(shape)}, got "
            f"{_shape(rows)}; pass one tensor or None for each section where their shapes differ"
        )


def _bool(name: str, value: Any) -> None:
    _tensor(name, value)
    if value.dtype != torch.bool:
        raise TypeError(f"{name}: expected bool, True where rows count, got {_dtype(value)}; use {name}.bool()")


def _check_logits(student_logits: Any, teacher_logits: Any, labels: Any, class_weight: Any) -> None:
    _floating("student_logits", student_logits)
    if student_logits.dim() != 2 or student_logits.shape[1] == 0:
        raise ValueError(
            f"student_logits: expected shape (B, classes) with at least one class, got {_shape(student_logits)}; "
            + _mend_logits(student_logits)
        )
    if teacher_logits is not None:
        _floating("teacher_logits", teacher_logits)
        if teacher_logits.shape != student_logits.shape:
            raise ValueError(
                f"teacher_logits: expected the student's shape {_shape(student_logits)}, got {_shape(teacher_logits)}; "
                "teacher and student must see the same batch and know the same classes"
            )
    rows, classes = student_logits.shape
    if labels is not None:
        _check_labels(labels, rows, classes)
    if class_weight is not None:
        _floating("class_weight", class_weight)
        if class_weight.shape != (classes,):
            raise ValueError(
                f"class_weight: expected shape ({classes},), one weight for each class, got {_shape(class_weight)}"
            )


def _mend_logits(logits: Tensor) -> str:
    if logits.dim() <= 2:
        return "give each row its classes"
    return (
        "move all other dimensions into the batch: logits.flatten(0, -2) where classes are the last, "
        "logits.movedim(1, -1).flatten(0, -2) where they are the second; labels.flatten() for both"
    )


def _check_labels(labels: Any, rows: int, classes: int) -> None:
    _tensor("labels", labels)
    if labels.is_floating_point():
        _floating("labels", labels)
        if labels.dim() != 2:
            raise TypeError(
                f"labels: expected class indices (int64), got {_dtype(labels)} of shape {_shape(labels)}; use "
                f"labels.long(), or, for soft labels, probabilities of shape ({rows}, {classes})"
            )
        if labels.shape != (rows, classes):
            raise ValueError(
                f"labels: expected probabilities of the logits' shape ({rows}, {classes}), got {_shape(labels)}; soft "
                "labels need a row for each row of the logits, and a column for each class"
            )
        return
    if labels.dtype not in _INTS:
        raise TypeError(f"labels: expected class indices (int64 or int32), got {_dtype(labels)}; use labels.long()")
    if labels.shape != (rows,):
        mend = "use labels.argmax(1) of one-hot labels" if labels.shape == (rows, classes) else "one label per row"
        raise ValueError(f"labels: expected shape ({rows},) as the logits' batch, got {_shape(labels)}; {mend}")


def _check_grad_scale(grad_scale: Any) -> None:
    _floating("grad_scale", grad_scale)
    if grad_scale.dim() != 0:
        raise ValueError(f"grad_scale: expected a 0-d tensor, got shape {_shape(grad_scale)}; use scale.reshape(())")


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
    _on(device, "rows", inputs.rows)
    _on(device, "counts", inputs.counts)
    for number, rows in enumerate(inputs.ir_rows, 1):
        _on(device, f"ir_rows: section {number}", rows)


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
    return _sizes(tensor.shape, batch)


def _sizes(shape: Sequence[int], batch: bool = False) -> str:
    sizes = [str(size) for size in shape]
    if batch and len(sizes) > 1:
        sizes[0] = "B"
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


# --- values, on the CPU


def check_label_values(labels: Tensor, classes: int, ignore_index: int) -> None:
    """Raise IndexError at the first label that is no class; on the CPU reading two values costs nothing."""
    if labels.numel() == 0:
        return
    low, high = labels.aminmax()
    if int(low) >= 0 and int(high) < classes:
        return
    wrong = labels[((labels < 0) | (labels >= classes)) & (labels != ignore_index)]
    if wrong.numel() > 0:
        raise IndexError(
            f"labels: label {int(wrong[0])} is out of range for {classes} classes (logits of shape "
            f"{(labels.shape[0], classes)}); expected 0 to {classes - 1}, or ignore_index={ignore_index}"
        )
