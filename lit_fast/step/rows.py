"""What a step gives its loss: rows of logits with their labels out of the models' outputs, and which rows count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_fast.literals import TargetsKind
from lit_fast.loss.targets import TargetsOf, padding_of, resolve
from lit_fast.sections.inputs import Inputs, replaced
from lit_fast.step.batches import signature
from lit_fast.step.passes.student import PassOutputs

__all__ = ["LossRows", "OutputShapes"]

MAX_SHAPES = 256  # of inputs, whose outputs' shapes are kept


class OutputShapes:
    """Outputs without numbers, on torch's meta device, by the shapes of the inputs that they are made of."""

    def __init__(self) -> None:
        self._known: dict[Any, PassOutputs] = {}

    def of(self, inputs: Inputs, run: Callable[[Inputs], PassOutputs]) -> PassOutputs:
        """What ``run`` gives for these inputs, in shape; it is called for shapes that are new."""
        key = signature(inputs)
        if key not in self._known:
            if len(self._known) >= MAX_SHAPES:
                del self._known[next(iter(self._known))]
            irs, output, *_ = run(inputs)
            self._known[key] = PassOutputs([_shape(ir) for ir in irs], replaced(output, _shape), [], None)
        return self._known[key]


def _shape(value: Any) -> Any:
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value


class LossRows:
    """``arguments, keywords = rows(outputs, compared, inputs, labels)``, with which the criterion is called.

    Args:
        targets, skip_padding: as for `lit_fast.LITStep`.
        ignore_index: of labels that give no cross-entropy.
    """

    def __init__(self, targets: TargetsKind | TargetsOf, ignore_index: int, skip_padding: bool) -> None:
        self._targets = resolve(targets, ignore_index, skip_padding)
        self._ignore_index, self._skip_padding = ignore_index, skip_padding

    def __call__(
        self, outputs: PassOutputs, compared: Sequence[int], inputs: Inputs, labels: Tensor | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What is compared, and the masks of rows where some do not count."""
        teacher_irs = [outputs.teacher_irs[i] for i in compared]
        student_logits = teacher_logits = rows = None
        row_labels = labels
        if outputs.output is not None:
            student_logits, row_labels, rows = self._targets(outputs.output, inputs, labels)
        if outputs.teacher_output is not None:
            teacher_logits = self._targets(outputs.teacher_output, inputs, labels).logits
        masks: dict[str, Any] = {} if rows is None else {"rows": rows}
        if self._skip_padding:
            padding = padding_of(inputs, labels, self._ignore_index)
            if padding is not None:
                masks["ir_rows"] = [padding if ir.shape[:2] == padding.shape else None for ir in outputs.irs]
        return (outputs.irs, teacher_irs, student_logits, teacher_logits, row_labels), masks
