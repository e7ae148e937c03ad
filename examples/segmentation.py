"""Semantic segmentation: a fully convolutional network with a third of its blocks, a loss for each pixel.

python examples/segmentation.py         # coloured shapes drawn here; use your own images and masks in `draw`
python examples/segmentation.py --tiny
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lit_fast as lf

CLASSES, IGNORED = 3, 255  # background, discs, squares; pixels on an edge have no label


class Block(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv(x)))


class FCN(nn.Module):
    """Three stages at a quarter of the size, each seeing further; logits at the size of the image."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 5, stride=4, padding=2, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.near, self.middle, self.far = (
            nn.Sequential(*(Block(width, dilation) for _ in range(blocks))) for dilation in (1, 2, 4)
        )
        self.classes = nn.Conv2d(width, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.classes(self.far(self.middle(self.near(self.stem(images)))))
        return F.interpolate(logits, scale_factor=4.0, mode="bilinear", align_corners=False)


def draw(count: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images [B, 3, H, W] with a disc or a square in noise, and labels [B, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(1, CLASSES, (count, 1, 1), generator=generator)
    centre = torch.rand(2, count, 1, 1, generator=generator) * size / 2 + size / 4
    along = torch.arange(size)
    down, right = (along[:, None] - centre[0]).abs(), (along - centre[1]).abs()
    distance = torch.where(kinds == 1, (down**2 + right**2).sqrt(), torch.maximum(down, right))
    labels = torch.where(distance < size / 5, kinds, 0)
    images = 0.5 * torch.randn(count, 3, size, size, generator=generator) + 2.0 * (labels > 0)[:, None]
    return images, labels.masked_fill((distance - size / 5).abs() < 0.5, IGNORED)


def mean_iou(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    net.eval()
    with torch.no_grad():
        found = net(images).argmax(1)
    rows = labels != IGNORED
    each = [((found == c) & (labels == c)).sum() / ((found == c) | (labels == c))[rows].sum() for c in range(CLASSES)]
    return torch.stack(each).mean().item()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--save", default="fcn-student.pt")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    size, width, steps = (32, 8, 30) if args.tiny else (128, 32, args.steps)

    teacher, student = (lf.split(FCN(blocks, width), at=["near", "middle", "far"]) for blocks in (3, 1))
    labels_only = lf.LITLoss(alpha=1.0, beta=1.0, ignore_index=IGNORED)
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=5e-3)
    pretrain = lf.LITStep(None, teacher.train(), labels_only, optimizer, targets="dense")  # yours is trained already
    for number in range(steps):
        pretrain(*draw(8, size, number))

    lf.copy_parts(teacher, student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-3)
    criterion = lf.LITLoss(alpha=0.5, beta=0.5, tau=2.0, ignore_index=IGNORED)
    # skip_padding: pixels without a label do not count in the soft targets' loss either.
    step = lf.LITStep(teacher, student.train(), criterion, optimizer, targets="dense", skip_padding=True)
    for number in range(steps):
        parts = step(*draw(8, size, number))
        if number % (steps // 5) == 0:
            print(f"step {number}: loss {parts.total.item():.4f}", flush=True)
    for name, model in (("teacher", teacher), ("student", student)):
        print(f"{name}: mean IoU {mean_iou(model, *draw(32, size, -1)):.3f}")
    torch.save(student.model.state_dict(), args.save)


if __name__ == "__main__":
    main()
