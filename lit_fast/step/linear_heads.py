"""The KD loss of language models from hidden states and heads, so that logits [B, T, V] are never there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_fast.loss.backends import Inputs as LossInputs
from lit_fast.loss.backends.options import LossParts
from lit_fast.loss.functional import compute
from lit_fast.loss.linear_kd import linear_kd_loss
from lit_fast.loss.modules import LITLoss
from lit_fast.loss.targets import logits_of
from lit_fast.sections.calls import Run, in_place_of_calls
from lit_fast.sections.inputs import Inputs, call, num_rows, replaced
from lit_fast.sections.model import SplitModel
from lit_fast.sections.tracing import set_mode

__all__ = ["HeadSearch", "LinearHeads"]


class LinearHeads:
    """The last linear layers of a pair, whose outputs are the models' logits.

    Attributes:
        teacher, student: the layers; the teacher's is None where there is no teacher.
    """

    def __init__(self, teacher: nn.Linear | None, student: nn.Linear) -> None:
        self.teacher, self.student = teacher, student

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Within the context the heads return what they are given: the models' logits are hidden states."""
        heads = [head for head in (self.teacher, self.student) if head is not None]
        with in_place_of_calls([(head, _given) for head in heads]):
            yield

    def loss(
        self, criterion: LITLoss, compared: tuple[Any, ...], masks: dict[str, Any], grad_scale: Tensor | None
    ) -> Tensor:
        """What ``criterion(*compared, grad_scale=grad_scale, **masks)`` gives, of hidden states for logits."""
        irs, teacher_irs, hidden, teacher_hidden, labels = compared
        options = criterion.options
        ir_rows, normalizer = masks.get("ir_rows"), masks.get("normalizer")
        kd = linear_kd_loss(
            hidden,
            self.student,
            teacher_hidden,
            self.teacher,
            labels,
            alpha=options.alpha,
            tau=options.tau,
            tau_squared=options.tau_squared,
            ignore_index=options.ignore_index,
            label_smoothing=options.label_smoothing,
            class_weight=criterion.class_weight,
            grad_scale=grad_scale,
            backend=criterion.backend,
            return_parts=True,
            rows=masks.get("rows"),
            normalizer=normalizer,
        )
        total, ir = kd.total, kd.ir
        if options.beta < 1.0:
            alone = dataclasses.replace(options, beta=0.0)
            inputs = LossInputs(irs, teacher_irs, grad_scale=grad_scale, ir_rows=ir_rows or ())
            of_irs = compute(inputs, alone, criterion.backend, normalizer)
            total, ir = options.beta * kd.total + (1.0 - options.beta) * of_irs.total, of_irs.ir
        criterion.keep(LossParts(total.detach(), kd.ce, kd.kl, ir))
        return total


def _given(run: Run) -> Run:
    def given(hidden: Tensor) -> Tensor:
        return hidden

    return given


class HeadSearch:
    """Finds the linear heads of a pair when its first batch comes.

    Args:
        soft: whether the teacher's logits are needed.
        required: whether a pair without linear heads is an error.
    """

    def __init__(self, soft: bool, required: bool | None) -> None:
        self._soft, self._required = soft, bool(required)
        self._found: LinearHeads | None = None
        self._searched = False

    def of(self, teacher: SplitModel | None, student: SplitModel, inputs: Inputs) -> LinearHeads | None:
        """The heads; None where either has none.

        Raises:
            ValueError: they are required, and one has none.
        """
        if not self._searched:
            head = linear_head(student, inputs)
            others = linear_head(teacher, inputs) if teacher is not None and self._soft else None
            missing = "student" if head is None else "teacher" if self._soft and others is None else None
            if missing is not None and self._required:
                raise ValueError(
                    f"fused_head: the {missing}'s logits are not what an nn.Linear of its head returns, or it is not "
                    "recorded; use fused_head=False, or split it with how='recorded'"
                )
            self._found = None if missing is not None or head is None else LinearHeads(others, head)
            self._searched = True
        return self._found


def linear_head(model: SplitModel, inputs: Inputs) -> nn.Linear | None:
    """The linear layer whose output is what the model returns as its logits; None where there is none.

    It runs in eval mode, which changes nothing of it.
    """
    if model.how != "recorded":
        return None
    gave: dict[int, nn.Linear] = {}
    kept: list[Tensor] = []  # so that no other tensor takes their places

    def watching(layer: nn.Linear) -> Any:
        def watched(run: Run) -> Run:
            def watch(*args: Any, **kwargs: Any) -> Any:
                result = run(*args, **kwargs)
                gave[id(result)] = layer
                kept.append(result)
                return result

            return watch

        return layer, watched

    rows = num_rows(inputs)
    first = replaced(inputs, lambda value: value[:1] if _is_batch(value, rows) else value)
    layers = [module for module in model.head.modules() if type(module) is nn.Linear]
    with torch.no_grad(), set_mode(model, False), in_place_of_calls([watching(layer) for layer in layers]):
        return gave.get(id(logits_of(call(model.model, first))))


def _is_batch(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows
