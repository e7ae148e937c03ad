"""What an adversarial step draws at random: pure functions of (seed, epoch, step), so that resuming needs no state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_fast.data.tables import generator

__all__ = ["Draws", "draw"]


@dataclass(frozen=True)
class Draws:
    """Wanted attributes ``targets`` [B, D], and the gradient penalty's ``alpha`` [B]."""

    targets: Tensor
    alpha: Tensor


def draw(labels: Tensor, seed: int, epoch: int, step: int) -> Draws:
    """The draws of one batch.

    Targets are the batch's own labels in another order, as in StarGAN's code: combinations that occur.

    Args:
        labels: float32 [B, D].
    """
    order = torch.randperm(len(labels), generator=generator("target", seed, epoch, step))
    alpha = torch.rand(len(labels), generator=generator("penalty", seed, epoch, step))
    return Draws(labels[order.to(labels.device)], alpha.to(labels.device))
