"""A network of three sections small enough to be trained for hundreds of steps in a test."""

from __future__ import annotations

from torch import Tensor, nn

import lit_fast as lf

CLASSES = 5


class Net(nn.Module):
    """Three sections with BatchNorm, and dropout where it is wanted."""

    def __init__(self, width: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, stride=stride, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Dropout(dropout),
            )
            for stride in (1, 2, 2)
        )
        self.linear = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.linear(h.mean((2, 3)))


def split(net: nn.Module) -> lf.SplitModel:
    return lf.split(net, at=["layer1", "layer2", "layer3"])
