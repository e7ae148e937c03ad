"""The KD loss straight from hidden states and heads, for vocabularies whose logits would fill the memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, overload

import torch
from torch import Tensor, nn

from lit_fast.loss import backends
from lit_fast.loss.backends import LossOptions, LossParts, linear
from lit_fast.loss.backends.chunks import LinearInputs, rows_at_once
from lit_fast.loss.backends.linear_checks import check_linear_inputs

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["linear_kd_loss"]

Head = nn.Linear | Tensor | tuple[Tensor, Tensor | None]


class Counts(Protocol):
    """What sums over rows are divided by; each a number or a 0-d tensor."""

    @property
    def ce(self) -> float | Tensor: ...
    @property
    def kl(self) -> float | Tensor: ...


class _Settings(TypedDict, total=False):
    alpha: float
    tau: float
    tau_squared: bool
    ignore_index: int
    label_smoothing: float
    class_weight: Tensor | None
    rows: Tensor | None
    normalizer: Counts | None
    grad_scale: Tensor | None
    chunk: int | None
    backend: str


@overload
def linear_kd_loss(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor | None = ...,
    teacher_head: Head | None = ...,
    labels: Tensor | None = ...,
    *,
    return_parts: Literal[False] = ...,
    **settings: Unpack[_Settings],
) -> Tensor: ...
@overload
def linear_kd_loss(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor | None = ...,
    teacher_head: Head | None = ...,
    labels: Tensor | None = ...,
    *,
    return_parts: Literal[True],
    **settings: Unpack[_Settings],
) -> LossParts: ...
def linear_kd_loss(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor | None = None,
    teacher_head: Head | None = None,
    labels: Tensor | None = None,
    *,
    alpha: float = 0.95,
    tau: float = 6.0,
    tau_squared: bool = True,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    class_weight: Tensor | None = None,
    rows: Tensor | None = None,
    normalizer: Counts | None = None,
    grad_scale: Tensor | None = None,
    chunk: int | None = None,
    backend: str = "auto",
    return_parts: bool = False,
) -> Tensor | LossParts:
    """The KD loss (paper eq. 2) of the logits that two linear heads give, without either network's logits [N, V]::

        z_s = student_hidden @ W_s^T + b_s        z_t = teacher_hidden @ W_t^T + b_t
        L   = alpha * CE(z_s, labels) + (1 - alpha) * tau^2 * KL(softmax(z_t / tau) || softmax(z_s / tau))

    It equals ``kd_loss(z_s, z_t, labels, ...)`` to rounding. Forward takes `chunk` rows at a time: their logits, the
    loss, the gradient of the student's logits, and from it that of hidden states, weight and bias, which backward only
    multiplies. Gradients flow to the student's tensors that require one, none to the teacher, none of second order.

    Products are computed in the dtype of the hidden states, under autocast in autocast's; the loss and the sum of the
    head's gradients over the chunks in float32 (float64 if hidden states are float64). Student and teacher may have
    different dtypes. On a GPU the host waits for the device in each call, so that a CUDA graph cannot capture it;
    ``backend="eager"`` can be captured where `rows` is None.

    Args:
        student_hidden: [N, H_s], floating: what the student's head is given. Flatten batch and positions into N.
        student_head: an ``nn.Linear``, its weight [V, H_s], or (weight, bias [V] or None). Hooks of the module do not
            run.
        teacher_hidden: [N, H_t], floating. None if alpha is 1.
        teacher_head: as `student_head`, of the same V and the width H_t. None if alpha is 1.
        labels: class indices [N], int64 or int32. None if alpha is 0.
        alpha: in [0, 1], weight of the HARD label loss against the soft one.
        tau: temperature, > 0.
        tau_squared: multiply the soft loss by tau^2, once.
        ignore_index: rows with this label give no CE; they do give KL.
        label_smoothing: in [0, 1], of CE.
        class_weight: weights of the classes in CE, [V], floating.
        rows: which rows count, in CE and KL, [N], bool (False for padding); None for all. The others cost nothing.
        normalizer: what the sums over rows are divided by: has ``ce``, the sum of the class weights of all rows with CE
            (without class weights their number), and ``kl``, the number of rows with KL. With those of a whole batch,
            the losses and gradients of its parts add up to those of the batch. None: own counts, a mean.
        grad_scale: the loss scale, 0-d, if the loss will be multiplied by one (``GradScaler``). The result is the same
            without it; with it gradients of float16 tensors are kept in float16 until backward.
        chunk: rows at a time; None: as many as keep both networks' logits and their gradient within 60 MiB on a CPU and
            512 MiB elsewhere, but at least 32.
        backend: ``"native"`` or ``"triton"`` compute the loss of a chunk's logits in one pass; ``"auto"`` takes the
            first of them that there is, else plain PyTorch. ``"eager"`` is the reference: whole logits, by autograd.
        return_parts: return ``LossParts`` instead; its ``total`` is the loss, its ``ir`` is empty.

    Returns:
        The loss, 0-d, float32 or float64. No rows, or labels that are all ignored, give NaN, as in ``kd_loss``; with a
        `normalizer` that counts some, 0.

    Raises:
        TypeError, ValueError: an input is missing or does not fit; the message names it and the mend.
        IndexError: a label is out of range (CPU; elsewhere as in ``lit_loss``).
        UnavailableError: the backend is not to be had here.
        RuntimeError: in backward, ``create_graph=True``.

    Example:
        >>> import torch
        >>> from lit_fast.loss.functional import linear_kd_loss
        >>> student_head, teacher_head = torch.nn.Linear(8, 1000), torch.nn.Linear(16, 1000)
        >>> student_hidden, teacher_hidden = torch.randn(6, 8, requires_grad=True), torch.randn(6, 16)
        >>> labels = torch.tensor([3, 1, 4, 1, 5, -100])
        >>> loss = linear_kd_loss(student_hidden, student_head, teacher_hidden, teacher_head, labels, alpha=0.5)
        >>> loss.backward()
        >>> student_hidden.grad.shape, student_head.weight.grad.shape, teacher_head.weight.grad
        (torch.Size([6, 8]), torch.Size([1000, 8]), None)
    """
    options = LossOptions(
        alpha=alpha,
        beta=1.0,
        tau=tau,
        tau_squared=tau_squared,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )
    if chunk is not None and (not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1):
        raise ValueError(f"chunk: expected a number of rows of at least 1, or None, got {chunk!r}")
    student, teacher = _weight_and_bias("student_head", student_head), _weight_and_bias("teacher_head", teacher_head)
    ce_count, kl_count = _counts(normalizer, student_hidden)
    given = (student_hidden, *student, teacher_hidden, *teacher, labels, class_weight, rows, ce_count, kl_count)
    inputs = check_linear_inputs(LinearInputs(*given, grad_scale), options)  # type: ignore[arg-type]
    name = backends.select(inputs.student_hidden.device, backend).name
    if backend == "eager" or backends.transformed():
        parts = linear.unfused(inputs, options)
    else:
        hidden = inputs.student_hidden
        size = chunk or rows_at_once(inputs.student_weight.shape[0], hidden.dtype, hidden.device)
        parts = linear.chunked(inputs, options, size, linear.FUSED.get(name, ""))
    return parts if return_parts else parts.total


def _weight_and_bias(name: str, head: Any) -> tuple[Any, Any]:
    if head is None or isinstance(head, Tensor):
        return head, None
    if isinstance(head, nn.Linear):
        return head.weight, head.bias
    if isinstance(head, tuple | list) and len(head) == 2:
        return head[0], head[1]
    raise TypeError(
        f"{name}: expected an nn.Linear, its weight, or (weight, bias), got {type(head).__name__}; "
        "a head that is more than one linear layer needs its logits: use kd_loss"
    )


def _counts(normalizer: Any, hidden: Any) -> tuple[Tensor | None, Tensor | None]:
    """The normalizer's counts as 0-d tensors on the device of the hidden states."""
    if normalizer is None or not isinstance(hidden, Tensor):
        return None, None
    if not hasattr(normalizer, "ce") or not hasattr(normalizer, "kl"):
        raise TypeError(
            f"normalizer: expected counts with the fields ce and kl, got {type(normalizer).__name__}; "
            "pass the sums over the whole batch: the class weights of rows with CE, and the number of rows with KL"
        )
    dtype = torch.float32 if hidden.device.type == "mps" else torch.float64
    ce, kl = (torch.as_tensor(count, dtype=dtype, device=hidden.device) for count in (normalizer.ce, normalizer.kl))
    return ce.detach(), kl.detach()
