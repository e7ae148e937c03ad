"""The ops of the fused backends: their schemas, the order of their arguments, and what they return to a compiler.

A fused backend implements two ops under names of its own: ``lit_loss``, the whole loss with all gradients, and
``rescale_``, which multiplies gradients in place. Those of the compiled extension (csrc/lit_loss.h) have no suffix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from lit_fast.extension import LOSS_ARGUMENTS
from lit_fast.loss.backends.options import IR_KINDS, Inputs, LossOptions, dtype_of


def arguments(inputs: Inputs, options: LossOptions) -> tuple[Any, ...]:
    """LOSS_ARGUMENTS of a loss."""
    sections = len(inputs.student_irs)
    return (
        *inputs,
        (options.section_weights or (1.0,) * sections) if sections else (),
        IR_KINDS.index(options.ir),
        options.alpha,
        options.beta,
        options.tau,
        options.tau_squared,
        options.ignore_index,
        options.label_smoothing,
    )


def inputs_of(arguments: Sequence[Any]) -> tuple[Inputs, Sequence[Any]]:
    """The tensors among an op's arguments, and the numbers behind them."""
    count = len(Inputs._fields)
    return Inputs(*arguments[:count]), arguments[count:]


def define(suffix: str) -> Library:
    """Define ``lit_fast::lit_loss<suffix>`` and ``lit_fast::rescale<suffix>_``, which live as long as the result.

    ``lit_loss`` returns the values of ``LossParts`` in one tensor [3 + k], float32 or float64; a gradient for each
    student IR, in its layout; and the gradient of the student's logits, contiguous. Gradients are those of the total,
    times grad_scale; without need_grad there are none, and an empty tensor for the logits'.

    ``rescale_`` multiplies by factor / scale, both 0-d, and leaves the gradients alone where that is 1.
    """
    library = Library("lit_fast", "FRAGMENT")
    compliant = (torch.Tag.pt2_compliant_tag,)
    library.define(
        f"lit_loss{suffix}({LOSS_ARGUMENTS}, bool need_grad) -> (Tensor parts, Tensor[] ir_grads, Tensor logits_grad)",
        tags=compliant,
    )
    library.define(f"rescale{suffix}_(Tensor(a!)[] grads, Tensor factor, Tensor? scale=None) -> ()", tags=compliant)
    torch.library.register_fake(f"lit_fast::lit_loss{suffix}", empty_results, lib=library)
    torch.library.register_fake(f"lit_fast::rescale{suffix}_", lambda *_: None, lib=library)
    return library


def empty_results(*arguments: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    """What ``lit_loss`` returns, without values: shapes, dtypes and layouts."""
    inputs, (*_, need_grad) = inputs_of(arguments)
    given = inputs.student_irs[0] if inputs.student_logits is None else inputs.student_logits
    parts = given.new_empty(3 + len(inputs.student_irs), dtype=dtype_of(inputs))
    if not need_grad:
        return parts, [], parts.new_empty(0)
    logits_grad = (
        parts.new_empty(0)
        if inputs.student_logits is None
        else torch.empty_like(inputs.student_logits, memory_format=torch.contiguous_format)
    )
    return parts, [torch.empty_like(ir) for ir in inputs.student_irs], logits_grad
