"""Accuracy and loss of a classifier over a split."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Scores", "evaluate"]


class Scores(NamedTuple):
    """Top-1 ``accuracy`` in percent, mean cross-entropy ``loss``, number of ``images``."""

    accuracy: float
    loss: float
    images: int


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Scores:
    """Run ``model`` in eval mode over ``batches``; every module's own mode is as before afterwards.

    Args:
        model: images [B, ...] -> logits [B, classes].
        batches: (images, labels [B] int64) on the model's device.

    Raises:
        ValueError: no batch.
    """
    before = [(module, module.training) for module in model.modules()]  # frozen parts of a model in train mode differ
    model.eval()
    totals: Tensor | None = None
    count = 0
    try:
        for images, labels in batches:
            logits = model(images).float()
            right = (logits.argmax(1) == labels).sum().double()
            loss = F.cross_entropy(logits, labels, reduction="sum").double()
            batch = torch.stack([right, loss])
            totals = batch if totals is None else totals + batch
            count += len(labels)
    finally:
        for module, mode in before:
            module.training = mode
    if totals is None:
        raise ValueError("evaluate: expected at least one batch, got none")
    right_sum, loss_sum = totals.tolist()
    return Scores(100.0 * right_sum / count, loss_sum / count, count)
