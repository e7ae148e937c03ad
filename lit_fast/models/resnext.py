"""CIFAR ResNeXts: the bottleneck of Xie et al. 2017 in three sections, block counts of the LIT paper's table 6.

A section of ``planes`` p (64, 128, 256) has blocks of
1x1 (to D * C channels), 3x3 in C groups, 1x1 (to 4p channels), with D = floor(p * base_width / 64) channels per group
(Xie et al. 2017, section 3 and the template "C x 4d"). With base width 4, D = 4, 8, 16; the IRs have 4p = 256, 512 and
1024 channels whatever the cardinality C, which is why LIT can also reduce C (paper, section 4.1).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lit_fast.models.fused_norm import norm_act
from lit_fast.models.resnet import blocks_per_section, initialise, positive

STEM = 64
EXPANSION = 4
MOST_GROUPS = 1024
# (planes, stride of the section's first block)
STAGES = ((64, 1), (128, 2), (256, 2))


class Bottleneck(nn.Module):
    """relu(bn3(conv3(relu(bn2(conv2(relu(bn1(conv1(x)))))))) + shortcut(x)), conv2 grouped.

    The shortcut is a strided 1x1 convolution with BatchNorm where the shape changes, the identity elsewhere.
    """

    def __init__(self, in_channels: int, planes: int, stride: int, cardinality: int, base_width: int) -> None:
        super().__init__()
        width = planes * base_width // 64 * cardinality
        out_channels = planes * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=cardinality, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = norm_act(self.bn1, self.conv1(x))
        out = norm_act(self.bn2, self.conv2(out))
        return norm_act(self.bn3, self.conv3(out), self.shortcut(x))


class ResNeXt(nn.Module):
    """ResNeXt for small images: stem of 64 channels, sections of 256, 512 and 1024 channels, mean pooling, ``linear``.

    Args:
        depth: 20, 32, 44, 56, 110 and so on, 6n + 2. The name counts as the paper's table 6 does: "ResNeXt-20" has the
            n = 3 blocks per section of ResNet-20, so 9n + 2 = 29 layers by a bottleneck's own count.
        num_classes: width of the logits.
        in_channels: channels of the images.
        cardinality: number of groups of the 3x3 convolutions; the paper uses 32, and 16 for reduced cardinality.
        base_width: channels per group in the first section.

    Input [B, in_channels, H, W] with H and W divisible by 4; output [B, num_classes]. The IRs are [B, 256, H, W],
    [B, 512, H/2, W/2] and [B, 1024, H/4, W/4].

    Raises:
        ValueError: a depth that is not 6n + 2, or a count that is not positive, or a cardinality above 1024.

    Example:
        >>> import torch
        >>> ResNeXt(20, num_classes=10, cardinality=16)(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 10])
    """

    sections = ("layer1", "layer2", "layer3")

    def __init__(
        self, depth: int, num_classes: int = 10, in_channels: int = 3, cardinality: int = 32, base_width: int = 4
    ) -> None:
        super().__init__()
        positive(num_classes=num_classes, in_channels=in_channels, cardinality=cardinality, base_width=base_width)
        if cardinality > MOST_GROUPS:
            raise ValueError(f"cardinality: expected at most {MOST_GROUPS}, got {cardinality}")
        n = blocks_per_section(depth, "ResNeXt")
        self.conv1 = nn.Conv2d(in_channels, STEM, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        width = STEM
        stages = []
        for planes, stride in STAGES:
            blocks = [Bottleneck(width, planes, stride, cardinality, base_width)]
            width = planes * EXPANSION
            blocks += [Bottleneck(width, planes, 1, cardinality, base_width) for _ in range(n - 1)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(width, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        out = norm_act(self.bn1, self.conv1(x))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


def resnext20(num_classes: int = 10, cardinality: int = 32, in_channels: int = 3) -> ResNeXt:
    """ResNeXt-20: 3 blocks per section."""
    return ResNeXt(20, num_classes, in_channels, cardinality)


def resnext32(num_classes: int = 10, cardinality: int = 32, in_channels: int = 3) -> ResNeXt:
    """ResNeXt-32: 5 blocks per section."""
    return ResNeXt(32, num_classes, in_channels, cardinality)


def resnext44(num_classes: int = 10, cardinality: int = 32, in_channels: int = 3) -> ResNeXt:
    """ResNeXt-44: 7 blocks per section."""
    return ResNeXt(44, num_classes, in_channels, cardinality)


def resnext56(num_classes: int = 10, cardinality: int = 32, in_channels: int = 3) -> ResNeXt:
    """ResNeXt-56: 9 blocks per section."""
    return ResNeXt(56, num_classes, in_channels, cardinality)


def resnext110(num_classes: int = 10, cardinality: int = 32, in_channels: int = 3) -> ResNeXt:
    """ResNeXt-110: 18 blocks per section."""
    return ResNeXt(110, num_classes, in_channels, cardinality)
