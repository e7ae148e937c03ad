"""Accuracy and loss of a network over a split."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_fast.loss.targets import Targets, TargetsOf, classification
from lit_fast.pair.inspect import chance_limit, too_few
from lit_fast.sections.inputs import Inputs, call

__all__ = ["Scores", "evaluate", "refuse_chance"]


class Scores(NamedTuple):
    """Top-1 ``accuracy`` in percent, mean cross-entropy ``loss``, number of ``images``, and of ``classes``.

    Where an image has many labels (pixels, tokens), all are over the labels that count.
    """

    accuracy: float
    loss: float
    images: int
    classes: int = 0


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Inputs, Tensor | None]], targets: TargetsOf = classification
) -> Scores:
    """Run ``model`` in eval mode over ``batches``; every module's own mode is as before afterwards.

    Args:
        model: takes the inputs.
        batches: (inputs, labels) on the model's device.
        targets: gives logits [N, classes] and labels [N] of a batch. Labels below 0, and rows that do not count, are
            left out.

    Raises:
        ValueError: no batch, or no label that counts.
    """
    before = [(module, module.training) for module in model.modules()]  # frozen parts of a model in train mode differ
    model.eval()
    totals: Tensor | None = None
    classes = 0
    try:
        for inputs, labels in batches:
            rows = targets(call(model, inputs), inputs, labels)
            classes = rows.logits.shape[1]
            batch = _sums(rows)
            totals = batch if totals is None else totals + batch
    finally:
        for module, mode in before:
            module.training = mode
    if totals is None:
        raise ValueError("evaluate: expected at least one batch, got none")
    right, loss, count = totals.tolist()
    if not count:
        raise ValueError("evaluate: expected labels that count, got none: all of them are below 0 or padding")
    return Scores(100.0 * right / count, loss / count, int(count), classes)


def _sums(rows: Targets) -> Tensor:
    """[3] float64: rows that are right, their cross-entropy, and how many count."""
    logits, labels = rows.logits.float(), rows.labels
    if labels is None:
        raise ValueError("evaluate: expected labels, got batches without; give items (inputs, label) or with 'labels'")
    if rows.rows is not None:
        logits, labels = logits[rows.rows], labels[rows.rows]
    hard = labels.argmax(1) if labels.is_floating_point() else labels
    right = (logits.argmax(1) == hard).sum().double()
    loss = F.cross_entropy(logits, labels, reduction="sum").double()
    return torch.stack([right, loss, (hard >= 0).sum().double()])


def refuse_chance(label: str, accuracy: float, count: int, classes: int) -> None:
    """Raises ValueError for a teacher that does no better than a guesser, where there are images enough to tell."""
    limit = 100.0 * chance_limit(classes, count)
    if accuracy <= limit and not too_few(classes, count):
        raise ValueError(
            f"teacher {label}: {accuracy:.1f} % on {count} validation images is no better than chance "
            f"({100.0 / classes:.1f} %, up to {limit:.1f} % by luck); check its checkpoint and the normalisation "
            "(data.mean, data.std)"
        )
