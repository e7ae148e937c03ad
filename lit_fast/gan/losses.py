"""StarGAN's losses (Choi et al. 2018, section 3): Wasserstein critic with gradient penalty, attributes, cycle."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["attribute_loss", "gradient_penalty"]


def attribute_loss(logits: Tensor, attributes: Tensor) -> Tensor:
    """Binary cross-entropy, summed over the attributes and averaged over the images (eq. 2 and 3).

    Args:
        logits: [B, D].
        attributes: [B, D], 0 or 1.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), attributes, reduction="sum") / len(logits)


def gradient_penalty(discriminator: nn.Module, real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    """Mean of (|gradient of the critic| - 1)^2 on lines between real and generated images (eq. 8), in float32.

    The penalty differentiates a gradient: in half precision its squares overflow, so autocast is off in here.

    Args:
        discriminator: images -> (critic, attribute logits).
        real, fake: [B, 3, H, W].
        alpha: [B], where on its line each point lies, 0..1.
    """
    with torch.autocast(real.device.type, enabled=False):
        share = alpha[:, None, None, None]
        between = (share * real.float() + (1 - share) * fake.float()).requires_grad_(True)
        critic = discriminator(between)[0]
        (gradient,) = torch.autograd.grad(critic.sum(), between, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
