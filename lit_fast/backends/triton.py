"""The LIT loss by Triton kernels (``lit_fast.kernels``): the ops ``lit_fast::lit_loss_triton`` and ``rescale_triton_``.

They run on CUDA GPUs; with ``TRITON_INTERPRET=1`` set before Triton is imported, Triton's interpreter runs them on the
CPU, slowly, for tests. Triton is imported when the backend is asked for.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_fast.backends import fused
from lit_fast.backends.eager import check_labels

if TYPE_CHECKING:
    from lit_fast.kernels.launch import Rows, Section

_VERSION = (3, 4)  # of Triton: the first whose compiler takes the kernels
_CAPABILITY = (7, 0)  # of the GPUs that Triton supports


def available(device_type: str | None = None, device_index: int | None = None) -> tuple[bool, str]:
    """Whether the kernels can be used for tensors on such a device (None: on any at all), and why or why not."""
    if importlib.util.find_spec("triton") is None:
        return False, "Triton is not installed"
    try:
        import triton
    except ImportError as error:
        return False, f"Triton does not load: {error}"
    if tuple(map(int, triton.__version__.split(".")[:2])) < _VERSION:
        return False, f"the kernels need Triton {_VERSION[0]}.{_VERSION[1]}, this is Triton {triton.__version__}"
    from lit_fast.kernels.maths import INTERPRETED

    if INTERPRETED:
        return True, "Triton's interpreter runs the kernels on the CPU"
    if device_type is None:
        return True, f"Triton {triton.__version__} is installed"
    if device_type != "cuda":
        return False, f"Triton's kernels run on CUDA GPUs, not on {device_type}; TRITON_INTERPRET=1 interprets them"
    if torch.version.hip is not None:
        return False, "Triton's kernels are tested on NVIDIA's GPUs alone"
    capability = torch.cuda.get_device_capability(device_index)
    if capability < _CAPABILITY:
        return False, f"Triton needs a GPU of capability 7.0, this one has {capability[0]}.{capability[1]}"
    return True, f"Triton compiles for capability {capability[0]}.{capability[1]}"


# --- the ops


def _lit_loss(
    student_irs: Sequence[Tensor],
    teacher_irs: Sequence[Tensor],
    student_logits: Tensor | None,
    teacher_logits: Tensor | None,
    labels: Tensor | None,
    class_weight: Tensor | None,
    grad_scale: Tensor | None,
    section_weights: Sequence[float],
    ir_kind: int,
    alpha: float,
    beta: float,
    tau: float,
    tau_squared: bool,
    ignore_index: int,
    label_smoothing: float,
    need_grad: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:
    from lit_fast.kernels.launch import Settings, loss_launches

    _check(student_irs, teacher_irs, section_weights, student_logits, teacher_logits, labels, class_weight)
    inputs = [t for t in (*student_irs, *teacher_irs, student_logits, teacher_logits) if t is not None]
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in inputs) else torch.float32
    parts = inputs[0].new_empty(3 + len(student_irs), dtype=dtype)
    settings = Settings(tuple(section_weights), ir_kind, alpha, beta, tau, tau_squared, ignore_index, label_smoothing)
    sections = [_section(s, t, need_grad) for s, t in zip(student_irs, teacher_irs)]
    rows = None
    if student_logits is not None:
        if labels is not None and labels.device.type == "cpu":
            check_labels(labels, student_logits.shape[1], ignore_index)
        rows = _rows(student_logits, teacher_logits, labels, class_weight, need_grad)
    with on_device(parts.device):
        launches = loss_launches(sections, rows, parts, grad_scale, settings)
        for launch in launches:
            launch.run()
    grads = [section.grad for section in sections if section.grad is not None]
    logits_grad = parts.new_empty(0) if rows is None or rows.grad is None else rows.grad
    return parts, grads, logits_grad


def _rescale_(grads: Sequence[Tensor], factor: Tensor, scale: Tensor | None = None) -> None:
    from lit_fast.kernels.rescale import rescale_launches

    with on_device(factor.device):
        _check_dense(grads)
        for launch in rescale_launches(grads, factor, scale):
            launch.run()


def _check(
    student_irs: Sequence[Tensor],
    teacher_irs: Sequence[Tensor],
    section_weights: Sequence[float],
    student_logits: Tensor | None,
    teacher_logits: Tensor | None,
    labels: Tensor | None,
    class_weight: Tensor | None,
) -> None:
    """Refuse what the kernels would read out of bounds; ``lit_fast.functional`` has checked the rest, by name."""
    if not len(student_irs) == len(teacher_irs) == len(section_weights):
        raise ValueError(
            f"lit_loss: expected as many teacher IRs and section weights as student IRs, got {len(student_irs)} "
            f"from the student, {len(teacher_irs)} from the teacher, {len(section_weights)} weights"
        )
    for number, (student, teacher) in enumerate(zip(student_irs, teacher_irs), 1):
        if student.shape != teacher.shape:
            raise ValueError(
                f"lit_loss: section {number}: student gives {list(student.shape)}, teacher {list(teacher.shape)}"
            )
    if student_logits is None:
        if not student_irs:
            raise ValueError("lit_loss: expected IRs or student_logits, got neither")
        return
    if student_logits.dim() != 2 or student_logits.shape[1] == 0:
        raise ValueError(f"lit_loss: student_logits: expected [batch, classes], got {list(student_logits.shape)}")
    batch, classes = student_logits.shape
    expected = (("teacher_logits", teacher_logits, [batch, classes]), ("labels", labels, [batch]))
    for name, tensor, shape in (*expected, ("class_weight", class_weight, [classes])):
        if tensor is not None and list(tensor.shape) != shape:
            raise ValueError(f"lit_loss: {name}: expected {shape}, got {list(tensor.shape)}")


def _check_dense(tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
        if tensor.numel() > 0 and extent != tensor.numel():
            raise ValueError(f"rescale_: expected dense tensors, got strides {tensor.stride()} of {list(tensor.shape)}")


# --- the inputs, made dense


def _section(student: Tensor, teacher: Tensor, need_grad: bool) -> Section:
    from lit_fast.kernels.launch import Section

    # What student, teacher and gradient share is the layout of this tensor: the student's own if that is dense.
    model = torch.empty_like(student) if need_grad or not student.is_contiguous() else student
    return Section(_laid_out_as(model, student), _laid_out_as(model, teacher), model if need_grad else None)


def _laid_out_as(model: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` itself if its elements lie in memory in the order of those of `model`, else a copy in which they do."""
    if model.stride() == tensor.stride():
        return tensor
    strides = zip(model.shape, model.stride(), tensor.stride())
    if all(size == 1 or ours == theirs for size, ours, theirs in strides):
        return tensor
    return torch.empty_like(model, dtype=tensor.dtype).copy_(tensor)


def _rows(
    student: Tensor, teacher: Tensor | None, labels: Tensor | None, class_weight: Tensor | None, need_grad: bool
) -> Rows:
    from lit_fast.kernels.launch import Rows

    return Rows(
        student.contiguous(),
        None if teacher is None else teacher.contiguous(),
        None if labels is None else labels.contiguous(),
        None if class_weight is None else class_weight.contiguous(),
        torch.empty_like(student, memory_format=torch.contiguous_format) if need_grad else None,
    )


# --- the device


def on_device(device: torch.device) -> AbstractContextManager[None]:
    """Triton launches on the current device, whatever the device of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


# --- registration

_library = torch.library.Library("lit_fast", "FRAGMENT")
_library.define(
    "lit_loss_triton(Tensor[] student_irs, Tensor[] teacher_irs, Tensor? student_logits, Tensor? teacher_logits, "
    "Tensor? labels, Tensor? class_weight, Tensor? grad_scale, float[] section_weights, int ir_kind, float alpha, "
    "float beta, float tau, bool tau_squared, int ignore_index, float label_smoothing, bool need_grad) "
    "-> (Tensor parts, Tensor[] ir_grads, Tensor logits_grad)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "rescale_triton_(Tensor(a!)[] grads, Tensor factor, Tensor? scale=None) -> ()", tags=(torch.Tag.pt2_compliant_tag,)
)
for _key in ("CPU", "CUDA"):
    _library.impl("lit_loss_triton", _lit_loss, _key)
    _library.impl("rescale_triton_", _rescale_, _key)
torch.library.register_fake("lit_fast::lit_loss_triton", fused.fake, lib=_library)
torch.library.register_fake("lit_fast::rescale_triton_", lambda grads, factor, scale=None: None, lib=_library)

lit_loss = functools.partial(
    fused.lit_loss, fused.Ops(torch.ops.lit_fast.lit_loss_triton.default, torch.ops.lit_fast.rescale_triton_.default)
)
