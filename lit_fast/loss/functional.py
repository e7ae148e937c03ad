"""The LIT loss as functions: check the tensors, pick a backend, compute.

``lit_fast.loss.modules`` has the same as modules, for scripts that build a criterion once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import torch
from torch import Tensor

from lit_fast.loss import backends
from lit_fast.loss.backends import Inputs, LossOptions, LossParts
from lit_fast.loss.backends.checks import check_inputs
from lit_fast.loss.backends.counts import LossCounts, with_counts
from lit_fast.loss.backends.options import device_of
from lit_fast.loss.linear_kd import linear_kd_loss

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["compute", "ir_loss", "kd_loss", "linear_kd_loss", "lit_loss"]

IRs = Sequence[Tensor] | None
IRRows = Tensor | Sequence[Tensor | None] | None


class _Settings(TypedDict, total=False):
    alpha: float
    beta: float
    tau: float
    ir: str
    tau_squared: bool
    section_weights: Sequence[float] | None
    class_weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    reduction: str
    grad_scale: Tensor | None
    rows: Tensor | None
    ir_rows: IRRows
    normalizer: LossCounts | None
    backend: str


@overload
def lit_loss(
    student_irs: IRs,
    teacher_irs: IRs,
    student_logits: Tensor | None = ...,
    teacher_logits: Tensor | None = ...,
    labels: Tensor | None = ...,
    *,
    return_parts: Literal[False] = ...,
    **settings: Unpack[_Settings],
) -> Tensor: ...
@overload
def lit_loss(
    student_irs: IRs,
    teacher_irs: IRs,
    student_logits: Tensor | None = ...,
    teacher_logits: Tensor | None = ...,
    labels: Tensor | None = ...,
    *,
    return_parts: Literal[True],
    **settings: Unpack[_Settings],
) -> LossParts: ...
def lit_loss(
    student_irs: IRs,
    teacher_irs: IRs,
    student_logits: Tensor | None = None,
    teacher_logits: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    alpha: float = 0.95,
    beta: float = 0.75,
    tau: float = 6.0,
    ir: str = "l2",
    tau_squared: bool = True,
    section_weights: Sequence[float] | None = None,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    grad_scale: Tensor | None = None,
    rows: Tensor | None = None,
    ir_rows: IRRows = None,
    normalizer: LossCounts | None = None,
    backend: str = "auto",
    return_parts: bool = False,
) -> Tensor | LossParts:
    """The LIT loss (paper eq. 1 to 3)::

        L    = beta * L_KD + (1 - beta) * sum_i section_weights[i] * mean(l(student_irs[i] - teacher_irs[i]))
        L_KD = alpha * CE(z_s, y) + (1 - alpha) * tau^2 * KL(softmax(z_t / tau) || softmax(z_s / tau))
        l    = d^2 ("l2") | |d| ("l1") | smooth l1 with threshold 1 ("smooth_l1")

    CE is ``torch.nn.functional.cross_entropy``'s mean over the rows that are not ignored; KL is the mean over ALL rows
    (labels play no role in it) but those that ``rows`` takes out of both. The factor tau^2 keeps the soft gradient's
    size independent of tau (Hinton et al. 2014): the gradient is ``beta * (1 - alpha) * tau * (p_s - p_t) / B``.
    ``tau_squared=False`` leaves it out.

    Floating tensors may be float16, bfloat16, float32 or float64, mixed as autocast leaves them. Arithmetic and result
    are float32, float64 if any IR or logits tensor that is used is float64; each gradient has its input's dtype.
    Autocast does not change the result. No gradient flows to the teacher's tensors, and none of second order anywhere.

    Args:
        student_irs: outputs S_i(T_(i-1)) of the student's k sections, tensors of any shape. None if beta is 1.
        teacher_irs: outputs T_i of the teacher's k sections, of the same shapes. None if beta is 1.
        student_logits: z_s, [B, C]. None if beta is 0.
        teacher_logits: z_t, [B, C]. None if beta is 0 or alpha is 1.
        labels: y, class indices [B], int64 or int32; or probabilities of the classes [B, C], floating, as mixup and
            cutmix make them: CE is then ``-sum_c class_weight_c y_c log softmax(z_s)_c``, averaged over the rows.
            None if beta or alpha is 0.
        alpha: in [0, 1], weight of the HARD label loss against the soft one.
        beta: in [0, 1], weight of the KD loss against the IR loss. 0 needs no logits, 1 needs no IRs.
        tau: temperature, > 0.
        ir: ``"l2"``, ``"l1"`` (gradient 0 at d = 0) or ``"smooth_l1"``.
        tau_squared: multiply the soft loss by tau^2, once.
        section_weights: one weight >= 0 per section; None for 1 each.
        class_weight: weights of the classes in CE, [C], floating.
        ignore_index: rows with this label give no CE.
        label_smoothing: in [0, 1], of CE.
        reduction: ``"mean"``, or ``"sum"`` for the sums in place of all means.
        grad_scale: the loss scale, 0-d, if the loss will be multiplied by one (``GradScaler``). The result is the same
            without it, but a fused backend that knows it saves a float32 copy of every float16 student tensor.
        rows: which rows of the logits count, [B], bool; None for all. The others are in neither CE nor KL.
        ir_rows: which elements of the IRs count, bool, by their first dimensions: [B] or [B, T] of an IR [B, T, H].
            One tensor for all sections, or a sequence with a tensor or None for each. None for all elements.
        normalizer: what the sums are divided by in place of their own counts: those of a whole of which this is a part.
        backend: ``"auto"``, ``"native"``, ``"triton"`` or ``"eager"``; see ``lit_fast.loss.backends``.
        return_parts: return ``LossParts`` instead; its ``total`` is the loss.

    Returns:
        The loss, 0-d. As in torch, an empty batch, an empty IR or labels that are all ignored give NaN, and so does a
        batch of which nothing counts; NaN gives NaN, but not where it does not count.
        Classes masked with -inf logits in the teacher, or in both, add nothing to the soft loss.

    Raises:
        TypeError, ValueError: an input is missing or does not fit; the message names it and the mend.
        IndexError: a label is out of range (CPU; on CUDA a device assert, as in torch, or NaN with Triton).
        UnavailableError: the backend is not to be had here.
        RuntimeError: in backward, ``create_graph=True``.

    Example:
        >>> import torch
        >>> from lit_fast.loss.functional import lit_loss
        >>> student_irs, teacher_irs = [torch.zeros(4, 8, 2, 2)], [torch.ones(4, 8, 2, 2)]
        >>> z_s, z_t, y = torch.zeros(4, 10), torch.zeros(4, 10), torch.arange(4)
        >>> loss = lit_loss(student_irs, teacher_irs, z_s, z_t, y, alpha=0.95, beta=0.75, tau=6.0)
        >>> print(f"{loss:.4f}")  # 0.75 * 0.95 * log(10) + 0.25 * 1
        1.8906
    """
    options = _options(ir, alpha, beta, tau, tau_squared, section_weights, ignore_index, label_smoothing, reduction)
    inputs = Inputs(  # IRs that are None are refused, or not looked at, by check_inputs
        student_irs,  # type: ignore[arg-type]
        teacher_irs,  # type: ignore[arg-type]
        student_logits,
        teacher_logits,
        labels,
        class_weight,
        grad_scale,
        rows,
        ir_rows=ir_rows,  # type: ignore[arg-type]
    )
    parts = compute(inputs, options, backend, normalizer)
    return parts if return_parts else parts.total


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    alpha: float = 0.95,
    tau: float = 6.0,
    tau_squared: bool = True,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    grad_scale: Tensor | None = None,
    rows: Tensor | None = None,
    normalizer: LossCounts | None = None,
    backend: str = "auto",
) -> Tensor:
    """The KD loss (paper eq. 2), ``lit_loss`` with beta = 1: ``alpha * CE + (1 - alpha) * tau^2 * KL``.

    Arguments, dtypes and errors are those of ``lit_loss``; tau^2 is included unless ``tau_squared=False``.

    Returns:
        The loss, 0-d.

    Example:
        >>> import torch
        >>> from lit_fast.loss.functional import kd_loss
        >>> z = torch.zeros(2, 10)
        >>> print(f"{kd_loss(z, z, torch.tensor([3, 7]), alpha=0.5):.4f}")  # 0.5 * log(10) + 0.5 * 0
        1.1513
    """
    options = LossOptions(
        alpha=alpha,
        beta=1.0,
        tau=tau,
        tau_squared=tau_squared,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )
    inputs = Inputs((), (), student_logits, teacher_logits, labels, class_weight, grad_scale, rows)
    return compute(inputs, options, backend, normalizer).total


def ir_loss(
    student_irs: Sequence[Tensor],
    teacher_irs: Sequence[Tensor],
    *,
    ir: str = "l2",
    section_weights: Sequence[float] | None = None,
    reduction: str = "mean",
    grad_scale: Tensor | None = None,
    ir_rows: IRRows = None,
    normalizer: LossCounts | None = None,
    backend: str = "auto",
) -> Tensor:
    """The IR loss (paper eq. 3), ``lit_loss`` with beta = 0: ``sum_i w_i * mean(l(student_irs[i] - teacher_irs[i]))``.

    Arguments, dtypes and errors are those of ``lit_loss``.

    Returns:
        The loss, 0-d.

    Example:
        >>> import torch
        >>> from lit_fast.loss.functional import ir_loss
        >>> ir_loss([torch.zeros(2, 3), torch.zeros(5)], [torch.full((2, 3), 2.0), torch.ones(5)])  # 4 + 1
        tensor(5.)
    """
    options = LossOptions(ir=ir, beta=0.0, section_weights=section_weights, reduction=reduction)
    inputs = Inputs(student_irs, teacher_irs, grad_scale=grad_scale, ir_rows=ir_rows)  # type: ignore[arg-type]
    return compute(inputs, options, backend, normalizer).total


_checked_options = functools.lru_cache(maxsize=64, typed=True)(LossOptions)


def _options(*settings: Any) -> LossOptions:
    if not torch.compiler.is_compiling():
        with suppress(TypeError):  # a list has no hash; what is wrong is told below
            return _checked_options(*settings)
    return LossOptions(*settings)


def compute(
    inputs: Inputs, options: LossOptions, backend: str = "auto", normalizer: LossCounts | None = None
) -> LossParts:
    """Check the tensors, pick the backend for their device and compute: what the functions and modules share.

    Results and errors are those of ``lit_loss``.
    """
    if normalizer is None and not torch.compiler.is_compiling() and _are_usual(inputs, options):
        with suppress(IndexError, RuntimeError, TypeError, ValueError):  # what is wrong is found and told below
            choice = backends.select(device_of(inputs), backend)
            if choice.name == "native":
                return choice.lit_loss(Inputs(*inputs[:-1]), options)  # ir_rows may be None
    inputs = with_counts(check_inputs(inputs, options), options, normalizer)
    choice = backends.select(device_of(inputs), backend)
    if choice.name != "eager":
        if inputs.ir_rows:
            inputs = _with_rows_in_order(inputs)
        if inputs.grad_scale is None:
            inputs = _with_float32_gradients(inputs)
    return choice.lit_loss(inputs, options)


def _are_usual(inputs: Inputs, options: LossOptions) -> bool:
    """Whether all tensors are used as they are, so that the compiled op's own checks are enough.

    To check them in Python as well takes as long as the loss of small tensors.
    """
    irs, teacher_irs, z, teacher_z, labels, _, scale, rows, _, ir_rows = inputs
    if rows is not None or not (ir_rows is None or (type(ir_rows) is tuple and not ir_rows)):
        return False
    if options.reduction != "mean" or not (0 < options.beta < 1 and 0 < options.alpha < 1):
        return False
    if type(irs) not in (list, tuple) or type(teacher_irs) not in (list, tuple):
        return False
    for tensor in (*irs, *teacher_irs, z, teacher_z, labels):
        if type(tensor) is not Tensor or tensor.dtype is torch.float16 or tensor.is_meta:
            return False
    if scale is not None and not (type(scale) is Tensor and scale.dtype is torch.float32 and scale.dim() == 0):
        return False
    return labels.dtype is torch.int64  # type: ignore[union-attr]


def _with_rows_in_order(inputs: Inputs) -> Inputs:
    """Copy the student's IRs that do not lie in memory one of the rows that count, or do not, after the other."""

    def in_order(ir: Tensor, rows: Tensor) -> Tensor:
        if rows.dim() == 1 and ir.dim() == 4 and ir.is_contiguous(memory_format=torch.channels_last):
            return ir
        return ir.contiguous()

    return Inputs([in_order(ir, rows) for ir, rows in zip(inputs.student_irs, inputs.ir_rows)], *inputs[1:])


def _with_float32_gradients(inputs: Inputs) -> Inputs:
    """Widen the student's float16 tensors, so that a loss scale reaches their gradients before they are rounded.

    A fused backend rounds its gradients in the forward pass. Those of float16, near 2 d / N, underflow there unless the
    backend is told the scale; where it is not, autograd rounds them behind the cast, with the scale multiplied in.
    """

    def widened(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.dtype == torch.float16 and tensor.requires_grad else tensor

    logits = inputs.student_logits
    logits = None if logits is None else widened(logits)
    return Inputs([widened(ir) for ir in inputs.student_irs], inputs.teacher_irs, logits, *inputs[3:])
