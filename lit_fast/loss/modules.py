"""The losses as modules: build once, call every step, read ``.parts``.

``LITLoss`` is the whole loss of the LIT phase, ``KDLoss`` that of fine-tuning and of plain distillation, ``IRLoss`` the
comparison of IRs alone (GANs).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lit_fast.loss import backends
from lit_fast.loss.backends import Inputs, LossOptions, LossParts
from lit_fast.loss.backends.counts import LossCounts, count
from lit_fast.loss.functional import IRRows, IRs, compute

__all__ = ["IRLoss", "KDLoss", "LITLoss"]


_CE_SETTINGS = ("ignore_index", "label_smoothing")


class _Loss(nn.Module):
    """Settings, class weights, backend and the parts of the last call."""

    class_weight: Tensor | None

    def __init__(self, options: LossOptions, class_weight: Tensor | None, backend: str) -> None:
        super().__init__()
        backends.check(backend)
        self.options = options
        self.backend = backend
        self.register_buffer("class_weight", _checked_class_weight(class_weight))
        self._parts: LossParts | None = None

    def _repr(self, *settings: str) -> str:
        shown = [f"{name}={getattr(self.options, name)!r}" for name in settings]
        if self.options.reduction != "mean":
            shown.append(f"reduction={self.options.reduction!r}")
        if self.class_weight is not None:
            shown.append(f"class_weight=[{self.class_weight.numel()}]")
        return ", ".join([*shown, f"backend={self.backend!r}"])

    @property
    def parts(self) -> LossParts | None:
        """Value and parts of the last call, detached and still on its device; None before the first.

        ``torch.compile`` keeps them too, without a graph break. Where it replays CUDA graphs (``reduce-overhead``), the
        next call reclaims their memory: clone what is to be kept.
        """
        return self._parts

    def keep(self, parts: LossParts) -> None:
        """Take ``parts`` for those of the last call: a graph that is replayed repeats the call without making it."""
        object.__setattr__(self, "_parts", parts)

    def _compute(self, inputs: Inputs, normalizer: LossCounts | None) -> Tensor:
        total, ce, kl, ir = compute(inputs, self.options, self.backend, normalizer)
        # clone: `loss /= steps` must not change it. object's: Module looks for parameters in all that is set, for 5 us.
        object.__setattr__(self, "_parts", LossParts(total.detach().clone(), ce, kl, ir))
        return total


def _checked_class_weight(class_weight: Tensor | None) -> Tensor | None:
    """Built once, so its values are looked at here, where the functional forms look at its shape alone."""
    if class_weight is None:
        return None
    if not isinstance(class_weight, Tensor) or not class_weight.is_floating_point():
        got = f"{class_weight.dtype}" if isinstance(class_weight, Tensor) else type(class_weight).__name__
        raise TypeError(f"class_weight: expected a floating tensor of shape (classes,), got {got}")
    if class_weight.dim() != 1 or class_weight.numel() == 0:
        raise ValueError(f"class_weight: expected shape (classes,), got {tuple(class_weight.shape)}")
    if not bool(((class_weight >= 0) & class_weight.isfinite()).all()):
        raise ValueError(f"class_weight: expected finite weights >= 0, got {class_weight.tolist()}")
    return class_weight.detach().clone()


class LITLoss(_Loss):
    """The loss of the LIT phase (paper eq. 1): hard labels, the teacher's soft targets and its IRs.

    ::

        L    = beta * L_KD + (1 - beta) * sum_i section_weights[i] * mean(l(student_irs[i] - teacher_irs[i]))
        L_KD = alpha * CE(z_s, y) + (1 - alpha) * tau^2 * KL(softmax(z_t / tau) || softmax(z_s / tau))

    The defaults are the paper's for CIFAR ResNets. ``lit_fast.loss.functional.lit_loss`` says what each term is, which
    dtypes are computed how, and why tau^2 is there: the soft gradient's size then does not depend on tau.

    Args:
        alpha: in [0, 1], weight of the HARD label loss against the soft one.
        beta: in [0, 1], weight of the KD loss against the IR loss. 0 needs no logits, 1 needs no IRs.
        tau: temperature, > 0.
        ir: ``"l2"``, ``"l1"`` or ``"smooth_l1"``.
        tau_squared: multiply the soft loss by tau^2, once.
        section_weights: one weight >= 0 per section; None for 1 each.
        class_weight: weights >= 0 of the classes in CE, [C], floating; kept as a buffer, so ``.to(device)`` moves it.
        ignore_index: rows with this label give no CE.
        label_smoothing: in [0, 1], of CE.
        backend: ``"auto"``, ``"native"``, ``"triton"`` or ``"eager"``; see ``lit_fast.loss.backends``.
        reduction: ``"mean"``, or ``"sum"`` for the sums in place of all means.

    Raises:
        TypeError, ValueError: a setting is wrong; the message names it.
        UnavailableError: the backend is not built.

    Example:
        >>> import torch
        >>> from lit_fast.loss.modules import LITLoss
        >>> criterion = LITLoss(alpha=0.95, beta=0.75, tau=6.0, ir="l2")
        >>> student_irs, teacher_irs = [torch.zeros(4, 8, 2, 2, requires_grad=True)], [torch.ones(4, 8, 2, 2)]
        >>> z_s, z_t, y = torch.zeros(4, 10, requires_grad=True), torch.zeros(4, 10), torch.arange(4)
        >>> loss = criterion(student_irs, teacher_irs, z_s, z_t, y)
        >>> loss.backward()
        >>> print(f"{loss:.4f} = 0.75 * 0.95 * {criterion.parts.ce:.4f} + 0.25 * {criterion.parts.ir[0]:.1f}")
        1.8906 = 0.75 * 0.95 * 2.3026 + 0.25 * 1.0
    """

    def __init__(
        self,
        alpha: float = 0.95,
        beta: float = 0.75,
        tau: float = 6.0,
        ir: str = "l2",
        tau_squared: bool = True,
        section_weights: Sequence[float] | None = None,
        class_weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        backend: str = "auto",
        reduction: str = "mean",
    ) -> None:
        options = LossOptions(
            ir, alpha, beta, tau, tau_squared, section_weights, ignore_index, label_smoothing, reduction
        )
        super().__init__(options, class_weight, backend)

    def forward(
        self,
        student_irs: IRs,
        teacher_irs: IRs,
        student_logits: Tensor | None = None,
        teacher_logits: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        grad_scale: Tensor | None = None,
        rows: Tensor | None = None,
        ir_rows: IRRows = None,
        normalizer: LossCounts | None = None,
    ) -> Tensor:
        """Return the loss, 0-d; arguments and errors as ``lit_fast.loss.functional.lit_loss``."""
        inputs = Inputs(
            student_irs,  # type: ignore[arg-type]
            teacher_irs,  # type: ignore[arg-type]
            student_logits,
            teacher_logits,
            labels,
            self.class_weight,
            grad_scale,
            rows,
            ir_rows=ir_rows,  # type: ignore[arg-type]
        )
        return self._compute(inputs, normalizer)

    def count(
        self,
        student_irs: Sequence[Tensor | Sequence[int]] | None,
        labels: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        ir_rows: IRRows = None,
    ) -> LossCounts:
        """What counts in a batch: what this loss divides its sums by, to be added up and given as ``normalizer=``.

        Nothing waits for the device. Before there are IRs, their shapes do: ``[(B, T, H)] * sections``.

        Args:
            student_irs: the IRs, or their shapes. None if beta is 1.
            labels: as in a call; they, or rows, tell the number of rows. None if beta is 0.
            rows: as in a call.
            ir_rows: as in a call.

        Raises:
            TypeError, ValueError: something is missing or does not fit; the message names it.
        """
        return count(self.options, self.class_weight, student_irs, labels, rows, ir_rows)

    def extra_repr(self) -> str:
        return self._repr("alpha", "beta", "tau", "ir", "tau_squared", "section_weights", *_CE_SETTINGS)


class KDLoss(_Loss):
    """The loss of knowledge distillation (paper eq. 2), used in the fine-tune phase: ``LITLoss`` with beta = 1.

    ::

        L_KD = alpha * CE(z_s, y) + (1 - alpha) * tau^2 * KL(softmax(z_t / tau) || softmax(z_s / tau))

    Args, dtypes and errors: see ``LITLoss``. alpha = 1 needs no teacher, alpha = 0 needs no labels.

    Example:
        >>> import torch
        >>> from lit_fast.loss.modules import KDLoss
        >>> criterion = KDLoss(alpha=0.5, tau=2.0)
        >>> z = torch.zeros(2, 10)
        >>> print(f"{criterion(z, z, torch.tensor([3, 7])):.4f}")  # 0.5 * log(10) + 0.5 * 0
        1.1513
    """

    def __init__(
        self,
        alpha: float = 0.95,
        tau: float = 6.0,
        tau_squared: bool = True,
        class_weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        backend: str = "auto",
        reduction: str = "mean",
    ) -> None:
        options = LossOptions(
            alpha=alpha,
            beta=1.0,
            tau=tau,
            tau_squared=tau_squared,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )
        super().__init__(options, class_weight, backend)

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        grad_scale: Tensor | None = None,
        rows: Tensor | None = None,
        normalizer: LossCounts | None = None,
    ) -> Tensor:
        """Return the loss, 0-d; arguments and errors as ``lit_fast.loss.functional.kd_loss``."""
        inputs = Inputs((), (), student_logits, teacher_logits, labels, self.class_weight, grad_scale, rows)
        return self._compute(inputs, normalizer)

    def count(self, labels: Tensor | None = None, *, rows: Tensor | None = None) -> LossCounts:
        """What counts in a batch, as ``LITLoss.count``."""
        return count(self.options, self.class_weight, None, labels, rows, None)

    def extra_repr(self) -> str:
        return self._repr("alpha", "tau", "tau_squared", *_CE_SETTINGS)


class IRLoss(_Loss):
    """The IR loss alone (paper eq. 3): ``LITLoss`` with beta = 0, for models without logits or labels (GANs).

    ::

        L_IR = sum_i section_weights[i] * mean(l(student_irs[i] - teacher_irs[i]))

    Args, dtypes and errors: see ``LITLoss``.

    Example:
        >>> import torch
        >>> from lit_fast.loss.modules import IRLoss
        >>> criterion = IRLoss("l1", section_weights=(1.0, 0.5))
        >>> criterion([torch.zeros(2, 3), torch.zeros(5)], [torch.full((2, 3), 2.0), torch.ones(5)])  # 2 + 0.5 * 1
        tensor(2.5000)
    """

    def __init__(
        self,
        ir: str = "l2",
        section_weights: Sequence[float] | None = None,
        backend: str = "auto",
        reduction: str = "mean",
    ) -> None:
        options = LossOptions(ir=ir, beta=0.0, section_weights=section_weights, reduction=reduction)
        super().__init__(options, None, backend)

    def forward(
        self,
        student_irs: Sequence[Tensor],
        teacher_irs: Sequence[Tensor],
        *,
        grad_scale: Tensor | None = None,
        ir_rows: IRRows = None,
        normalizer: LossCounts | None = None,
    ) -> Tensor:
        """Return the loss, 0-d; arguments and errors as ``lit_fast.loss.functional.ir_loss``."""
        inputs = Inputs(student_irs, teacher_irs, grad_scale=grad_scale, ir_rows=ir_rows)  # type: ignore[arg-type]
        return self._compute(inputs, normalizer)

    def count(self, student_irs: Sequence[Tensor | Sequence[int]], *, ir_rows: IRRows = None) -> LossCounts:
        """What counts in a batch, as ``LITLoss.count``."""
        return count(self.options, None, student_irs, None, None, ir_rows)

    def extra_repr(self) -> str:
        return self._repr("ir", "section_weights")
