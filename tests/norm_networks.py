"""Networks with BatchNorm, addition and ReLU written as libraries write them: without `norm_act`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lit_fast as lf

Layers = nn.Module | None


class ModulesBlock(nn.Module):
    """As torchvision has it: one nn.ReLU for all, an addition in place, a shortcut that may be missing."""

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.downsample: Layers = None
        if stride > 1 or inside != outside:
            shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class FunctionsBlock(nn.Module):
    """As scripts have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return torch.relu(x + self.bn2(self.conv2(out)))


class HandedOnBlock(nn.Module):
    """As timm has it: places for what may be added, which hand on what they get."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.drop_block, self.act1, self.aa = nn.Identity(), nn.ReLU(inplace=True), nn.Identity()
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.se: Layers = None
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.drop_block(x)
        x = self.act1(x)
        x = self.aa(x)
        x = self.conv2(x)
        x = self.bn2(x)
        if self.se is not None:
            x = self.se(x)
        x = x + shortcut
        return self.act2(x)


class Network(nn.Module):
    """A stem that `split` reads, and three sections of such blocks: 8 pairs of BatchNorm and ReLU, 9 BatchNorms."""

    sections = ("layer1", "layer2", "layer3")

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem, self.norm, self.relu = nn.Conv2d(3, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()
        self.layer1 = nn.Sequential(FunctionsBlock(width))
        self.layer2 = nn.Sequential(ModulesBlock(width, 2 * width, 2), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.layer3 = nn.Sequential(HandedOnBlock(2 * width))
        self.head = nn.Linear(2 * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.head(x.mean((2, 3)))


FUSED = 1 + 2 + (2 + 1) + 2  # of a pass, in stem and sections


def split(seed: int = 0, width: int = 8) -> lf.SplitModel:
    torch.manual_seed(seed)
    return lf.split(Network(width)).train()
