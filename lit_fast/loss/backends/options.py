"""The tensors and settings of one LIT loss and the values it gives: what every backend takes and returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from lit_fast.literals import IRKind

IR_KINDS: tuple[IRKind, ...] = get_args(IRKind)


class Inputs(NamedTuple):
    """The tensors of a LIT loss of k sections, B rows and C classes.

    A backend gets them from ``checks.check_inputs``: all on one device, and only those that the options use. So what is
    given says which terms the loss has: IRs, cross-entropy (labels), KL (the teacher's logits). What does not count is
    not looked at, whatever numbers stand there, and has a gradient of 0.

    Attributes:
        student_irs: k tensors of any shape, floating; gradients flow to them.
        teacher_irs: k tensors of the same shapes, floating.
        student_logits: [B, C], floating; gradients flow to it.
        teacher_logits: [B, C], floating.
        labels: [B], int64, ignored in rows that do not count; int32 too before they are checked. Or soft ones,
            [B, C], floating.
        class_weight: [C], floating; None for 1 each.
        grad_scale: 0-d, the loss scale that grad_output is expected to be (a GradScaler's); None for 1. A fused backend
            computes gradients times this scale, so that float16 ones do not underflow; any other grad_output is right
            as well, at the price of one multiplication more and of rounding before it.
        rows: [B], bool: which rows count; None for all.
        counts: [2 + k], float64: what the sums of cross-entropy, KL and each section are divided by. None for their own
            counts, where all rows and elements count.
        ir_rows: k tensors, bool: which elements of an IR count, for the first of its dimensions, or for none of them,
            all at once. None of them where all elements count.
    """

    student_irs: Sequence[Tensor] = ()
    teacher_irs: Sequence[Tensor] = ()
    student_logits: Tensor | None = None
    teacher_logits: Tensor | None = None
    labels: Tensor | None = None
    class_weight: Tensor | None = None
    grad_scale: Tensor | None = None
    rows: Tensor | None = None
    counts: Tensor | None = None
    ir_rows: Sequence[Tensor] = ()


# Functions, for torch 2.6 cannot trace a NamedTuple's own methods.
def device_of(inputs: Inputs) -> torch.device:
    """The device of checked inputs."""
    return inputs.student_irs[0].device if inputs.student_logits is None else inputs.student_logits.device


def has_soft_labels(inputs: Inputs) -> bool:
    """Whether the labels are probabilities."""
    return inputs.labels is not None and inputs.labels.is_floating_point()


def widest(device: torch.device) -> torch.dtype:
    """The widest floating dtype there: MPS and some XPU devices have no float64."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32


def dtype_of(inputs: Inputs) -> torch.dtype:
    """What a loss is computed and returned in: float64 if any IR or logits tensor is, else float32."""
    logits = [z for z in (inputs.student_logits, inputs.teacher_logits) if z is not None]
    wide = any(t.dtype == torch.float64 for t in (*inputs.student_irs, *inputs.teacher_irs, *logits))
    return torch.float64 if wide else torch.float32


class LossParts(NamedTuple):
    """The value of a LIT loss and of its parts, before weighting.

    All are float32 (float64 when any input is float64), on the device of the inputs::

        total = beta * (alpha * ce + (1 - alpha) * kl) + (1 - beta) * sum_i section_weights[i] * ir[i]

    Attributes:
        total: 0-d. The only field that can carry a gradient.
        ce: 0-d, detached. Cross-entropy with the labels; 0 where alpha or beta is 0.
        kl: 0-d, detached. KL(teacher || student), tau^2 included if it is switched on; 0 where alpha is 1 or beta is 0.
        ir: [k], detached. Mean element loss of each section, unweighted; [0] where beta is 1.
    """

    total: Tensor
    ce: Tensor
    kl: Tensor
    ir: Tensor


@dataclass(frozen=True)
class LossOptions:
    """The settings of a LIT loss (paper eq. 1 to 3), checked when built.

    Attributes:
        ir: element loss between two IRs: ``"l2"`` d^2, ``"l1"`` |d|, ``"smooth_l1"`` with threshold 1.
        alpha: in [0, 1], weight of the hard label loss against the teacher's soft targets.
        beta: in [0, 1], weight of the KD loss against the IR loss.
        tau: > 0, temperature of the soft targets.
        tau_squared: multiply the soft loss by tau^2, which keeps its gradient's size independent of tau.
        section_weights: one finite weight >= 0 per section, kept as a tuple; None weighs every section 1.
        ignore_index: rows with this label give no cross-entropy.
        label_smoothing: in [0, 1], as in ``torch.nn.functional.cross_entropy``.
        reduction: ``"mean"``, or ``"sum"`` for sums over all that counts in place of means.

    Raises:
        TypeError: a setting has the wrong type.
        ValueError: a setting is out of its range.
    """

    ir: str = "l2"
    alpha: float = 0.95
    beta: float = 0.75
    tau: float = 6.0
    tau_squared: bool = True
    section_weights: Sequence[float] | None = None
    ignore_index: int = -100
    label_smoothing: float = 0.0
    reduction: str = "mean"

    def __post_init__(self) -> None:
        if self.ir not in IR_KINDS:
            raise ValueError(f"ir: expected one of {', '.join(map(repr, IR_KINDS))}, got {self.ir!r}")
        _fraction("alpha", self.alpha, "it weighs the hard label loss against the teacher's soft targets")
        _fraction("beta", self.beta, "it weighs the KD loss against the IR loss")
        _fraction("label_smoothing", self.label_smoothing, "as in torch's cross_entropy")
        if not 0 < _real("tau", self.tau) < math.inf:
            raise ValueError(f"tau: expected a finite temperature > 0, got {self.tau}; the paper's recipes use 6")
        if not isinstance(self.tau_squared, bool):
            raise TypeError(f"tau_squared: expected True or False, got {self.tau_squared!r}")
        if not isinstance(self.ignore_index, Integral) or isinstance(self.ignore_index, bool):
            raise TypeError(f"ignore_index: expected an int, got {self.ignore_index!r}")
        if not -(2**63) <= self.ignore_index < 2**63:
            raise ValueError(f"ignore_index: expected a label, an int of 64 bits, got {self.ignore_index}")
        if self.reduction not in ("mean", "sum"):
            raise ValueError(f"reduction: expected 'mean' or 'sum', got {self.reduction!r}")
        if self.section_weights is not None:
            object.__setattr__(self, "section_weights", _section_weights(self.section_weights))


def _real(name: str, value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {value!r} ({type(value).__name__})")
    return float(value)


def _fraction(name: str, value: Any, meaning: str) -> None:
    if not 0 <= _real(name, value) <= 1:
        raise ValueError(f"{name}: expected a number in [0, 1], got {value}; {meaning}")


def _section_weights(weights: Any) -> tuple[float, ...]:
    if not isinstance(weights, Sequence) or isinstance(weights, str):
        raise TypeError(
            f"section_weights: expected a sequence with one number per section, got {type(weights).__name__}; "
            "write for example section_weights=(1.0, 0.5, 0.5)"
        )
    for number, weight in enumerate(weights, 1):
        if not 0 <= _real(f"section_weights: section {number}", weight) < math.inf:
            raise ValueError(f"section_weights: section {number}: expected a finite weight >= 0, got {weight}")
    return tuple(float(weight) for weight in weights)
