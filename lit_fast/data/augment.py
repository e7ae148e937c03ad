"""Batched augmentation: integer crops from a zero-padded batch, horizontal flips, per-channel normalisation.

The distribution is torchvision's `RandomCrop(size, padding=pad)` followed by `RandomHorizontalFlip(0.5)`: offsets are
uniform INTEGERS in 0..2*pad for rows and columns, padding is zero in raw pixels. Nothing here draws a random number:
the tables come from `lit_fast.data.tables`, so the same functions serve any device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_fast.errors import DataError


@dataclass(frozen=True)
class Augmentation:
    """What a training batch goes through before normalisation.

    Args:
        pad: zero pixels added on each side before a crop back to the image's size; 0 means no crop.
        flip: mirror each image left to right with probability 0.5.

    Raises:
        DataError: if `pad` is not an integer >= 0 or `flip` is not a bool.
    """

    pad: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.pad, bool) or not isinstance(self.pad, int) or self.pad < 0:
            raise DataError(f"augmentation: pad must be an integer >= 0 (pixels), got {self.pad!r}")
        if not isinstance(self.flip, bool):
            raise DataError(f"augmentation: flip must be True or False, got {self.flip!r}")


def crop_and_flip(
    images: Tensor, pad: int, rows: Tensor | None, columns: Tensor | None, flips: Tensor | None
) -> Tensor:
    """Crop every image from its zero-padded self and mirror some, in one gather.

    Args:
        images: uint8 [B, C, H, W].
        pad: zero pixels on each side; the offsets below lie in 0..2*pad.
        rows: int64 [B], first row of each crop in the padded image; None: centred (pad), that is no crop.
        columns: int64 [B], first column of each crop; None: centred.
        flips: bool [B], which crops are mirrored left to right; None: none.

    Returns:
        uint8 [B, C, H, W], contiguous.
    """
    if rows is None and columns is None and flips is None:
        return images.contiguous()
    batch, channels, height, width = images.shape
    padded = F.pad(images, (pad, pad, pad, pad)) if pad else images.contiguous()
    y = torch.arange(height, device=images.device)
    x = torch.arange(width, device=images.device).expand(batch, width)
    if flips is not None:
        x = torch.where(flips[:, None], width - 1 - x, x)
    y = y + (pad if rows is None else rows[:, None])
    x = x + (pad if columns is None else columns[:, None])
    # One index per pixel of the output, shared by the channels. A gather over flattened planes measured 0.2 ms for 64
    # CIFAR images on one core; indexing a sliding-window view 0.4 ms, four index tensors 1.3 ms.
    index = y.expand(batch, height)[:, :, None] * (width + 2 * pad) + x[:, None, :]  # int64 [B, H, W]
    index = index.view(batch, 1, height * width).expand(batch, channels, height * width)
    return padded.flatten(2).gather(2, index).view(batch, channels, height, width)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn pixels into network input: (images / 255 - mean) / std, per channel.

    Args:
        images: uint8 [B, C, H, W].
        mean, std: one value per channel, in units of full scale (0..1).

    Returns:
        float32 [B, C, H, W], contiguous, on the images' device.
    """
    scale = torch.tensor([1 / (255 * s) for s in std], dtype=torch.float32).to(images.device, non_blocking=True)
    shift = torch.tensor([m / s for m, s in zip(mean, std)], dtype=torch.float32).to(images.device, non_blocking=True)
    return images.to(torch.float32).mul_(scale[:, None, None]).sub_(shift[:, None, None]).contiguous()


def resize(images: Tensor, size: int) -> Tensor:
    """Resize images to size x size bilinearly (antialiased when shrinking), once, before training.

    Args:
        images: uint8 [N, C, H, W].
        size: pixels of both sides of the result.

    Returns:
        uint8 [N, C, size, size], rounded to nearest.
    """
    if images.shape[-2:] == (size, size):
        return images
    parts = [
        F.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True)
        .round_()
        .clamp_(0, 255)
        .to(torch.uint8)
        for part in torch.split(images, 4096)  # bounds the float32 copy
    ]
    return torch.cat(parts) if parts else images.new_empty((0, images.shape[1], size, size))
