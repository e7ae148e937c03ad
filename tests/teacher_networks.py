"""Networks of all families that a frozen teacher is lowered from, with running statistics as after training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import lit_fast as lf


def settle(model: nn.Module) -> nn.Module:
    """Running statistics and affine parameters as after training: far from 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.modules.batchnorm._NormBase,)):
            for name, low, high in (("running_mean", -0.2, 0.2), ("running_var", 1.0, 3.0), ("bias", -0.3, 0.3)):
                tensor = getattr(module, name)
                if tensor is not None:
                    tensor.data.uniform_(low, high, generator=generator)
            if module.weight is not None:
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


class TorchvisionBlock(nn.Module):
    """torchvision's Bottleneck: in-place ReLUs, a downsample branch."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class TorchvisionResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(TorchvisionBlock(8, 4), TorchvisionBlock(16, 4))
        self.layer2 = nn.Sequential(TorchvisionBlock(16, 8, 2), TorchvisionBlock(32, 8))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class TextBlock(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(inputs, width, 3, padding=1), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Conv1d(width, width, 3, padding=1), nn.BatchNorm1d(width), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class TextNet(nn.Module):
    """VDCNN's operations: embedding, 1-d convolutions, max pooling between sections, k-max pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(70, 6)
        self.conv = nn.Conv1d(6, 8, 3, padding=1)
        self.block1 = TextBlock(8, 8)
        self.pool = nn.MaxPool1d(3, 2, 1)
        self.block2 = TextBlock(8, 16)
        self.fc = nn.Sequential(nn.Linear(16 * 4, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.embedding(x).transpose(1, 2))
        x = self.block2(self.pool(self.block1(x)))
        x = x.topk(4, dim=2)[0]
        return self.fc(x.view(x.size(0), -1))


class GeneratorBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.InstanceNorm2d(width, affine=True),
            nn.ReLU(inplace=True), nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.InstanceNorm2d(width, affine=True, track_running_stats=True),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x)


class Generator(nn.Module):
    """StarGAN's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1, bias=False), nn.InstanceNorm2d(8, affine=True), nn.ReLU())
        self.bottleneck = nn.Sequential(GeneratorBlock(8), GeneratorBlock(8))
        self.up = nn.Sequential(
            nn.ConvTranspose2d(8, 4, 4, 2, 1, bias=False),
            nn.BatchNorm2d(4),
            nn.LeakyReLU(0.1),
            nn.Conv2d(4, 3, 7, 1, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.up(self.bottleneck(self.down(x))))


class PreActivation(nn.Module):
    """BatchNorm before the convolution, dense concatenation-free: what no convolution can take in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding="same", dilation=2)
        self.block = nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.AvgPool2d(2))
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(self.stem(x)).mean((2, 3)))


IMAGES = (5, 3, 16, 16)
NETWORKS = {
    "resnet8": (lambda: lf.models.ResNet(8), None, lambda: torch.randn(IMAGES)),
    "resnext8": (lambda: lf.models.ResNeXt(8, cardinality=4), None, lambda: torch.randn(IMAGES)),
    "torchvision": (TorchvisionResNet, ["layer1", "layer2"], lambda: torch.randn(5, 3, 32, 32)),
    "text": (TextNet, ["block1", "block2"], lambda: torch.randint(0, 70, (5, 40))),
    "vdcnn": (lf.models.vdcnn9, None, lambda: torch.randint(0, 69, (5, 64))),
    "generator": (Generator, ["bottleneck"], lambda: torch.randn(IMAGES)),
    "pre-activation": (PreActivation, ["block"], lambda: torch.randn(IMAGES)),
}


def network(name: str) -> tuple[lf.SplitModel, Tensor]:
    torch.manual_seed(0)
    build, at, images = NETWORKS[name]
    return lf.split(settle(build()), at=at), images()
