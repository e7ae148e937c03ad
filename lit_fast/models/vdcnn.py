"""VDCNN of Conneau et al. 2017 for text as characters: four sections of one-dimensional convolutions.

Taken from the paper: embedding of size 16, a first convolution to 64 channels, blocks of two convolutions of kernel 3
with BatchNorm and ReLU behind each (its figure 2), 64, 128, 256 and 512 channels, 8-max pooling and three linear
layers (its figure 1), the block counts of depth 9, 17 and 29 (its table 2). Where the paper leaves a choice, the one
that LIT's authors released: no shortcuts (the paper's best 29 layers have none), max pooling between the sections, no
bias in the convolutions, a first convolution without BatchNorm and ReLU, k-max pooling that keeps the order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_fast.data.formats.alphabet import SYMBOLS
from lit_fast.models.resnet import positive

EMBEDDING = 16
KMAX = 8
HIDDEN = 2048
CHANNELS = (64, 128, 256, 512)
# Blocks per section by depth: the first convolution and two per block.
BLOCKS = {9: (1, 1, 1, 1), 17: (2, 2, 2, 2), 29: (5, 5, 2, 2)}
# Three poolings halve the length, rounding up, and 8-max pooling needs 8 positions.
SHORTEST = 8 * (KMAX - 1) + 1


class Characters(nn.Embedding):
    """Token numbers to channels: integers [B, L] -> [B, 16, L].

    Raises:
        ValueError: not [B, L] of int64 or int32, fewer characters than the pooling needs, or (on the CPU; CUDA asserts
            on the device) a number outside the alphabet.
    """

    def __init__(self) -> None:
        super().__init__(SYMBOLS, EMBEDDING)

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.dim() != 2 or tokens.dtype not in (torch.int64, torch.int32):
            got = f"{str(tokens.dtype).removeprefix('torch.')} {tuple(tokens.shape)}"
            raise ValueError(f"VDCNN: expected tokens int64 [B, L], got {got}")
        if tokens.shape[1] < SHORTEST:
            raise ValueError(
                f"VDCNN: expected at least {SHORTEST} characters (three poolings leave {KMAX} of them), got "
                f"{tokens.shape[1]}; pad the text with token 0"
            )
        try:
            embedded = super().forward(tokens)
        except IndexError:
            raise ValueError(
                f"VDCNN: expected tokens 0..{SYMBOLS - 1}, got {int(tokens.min())}..{int(tokens.max())}"
            ) from None
        return embedded.transpose(1, 2)


class KMaxPool(nn.Module):
    """The ``k`` largest values of each channel, in the order they stand in the text: [B, C, L] -> [B, C, k].

    Order-preserving as in Kalchbrenner et al. 2014, whose pooling Conneau et al. name, and in LIT's released code. Of
    equal values (zeros, behind a ReLU) the first in the text are kept, so that every device and ONNX agree.
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():  # ONNX has no stable sort, but its TopK is defined to take the first
            places = x.topk(self.k, dim=2).indices
        else:  # torch.topk leaves open which of equal values it takes
            places = torch.sort(x, dim=2, descending=True, stable=True).indices[:, :, : self.k]
        return x.gather(2, places.sort(dim=2).values)

    def extra_repr(self) -> str:
        return f"k={self.k}"


class ConvBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x)))))), both convolutions of kernel 3."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm1d(out_channels)
        self.conv2 = nn.Conv1d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm1d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        # Out of place throughout: x may be a teacher's IR that the loss still needs.
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)))


class VDCNN(nn.Module):
    """Very deep convolutional network over characters.

    Args:
        depth: 9, 17 or 29 convolutions.
        num_classes: width of the logits.

    Input: tokens 0..68, int64 [B, L] with L >= 57, 1014 in the papers; output [B, num_classes]. Each section but the
    first begins with its max pooling (kernel 3, stride 2), so that the IRs, outputs of ``layer1`` to ``layer4``, are
    [B, 64, L], [B, 128, L/2], [B, 256, L/4] and [B, 512, L/8] (rounded up) at every depth.

    Parameters, with c a section's channels, p those before it (64 for the first) and n its blocks:
    69 * 16 + 3 * 16 * 64 + sum of [3pc + 3c^2 + 4c + (n - 1)(6c^2 + 4c)]
    + (8 * 512 + 1) * 2048 + 2049 * 2048 + 2049 * num_classes.

    Raises:
        ValueError: another depth, or classes that are not positive.

    Example:
        >>> import torch
        >>> VDCNN(9, num_classes=5)(torch.zeros(1, 1014, dtype=torch.int64)).shape
        torch.Size([1, 5])
    """

    sections = ("layer1", "layer2", "layer3", "layer4")

    def __init__(self, depth: int, num_classes: int = 5) -> None:
        super().__init__()
        positive(num_classes=num_classes)
        if depth not in BLOCKS:
            raise ValueError(f"VDCNN: depth is one of {', '.join(map(str, BLOCKS))}, got {depth!r}")
        width = CHANNELS[0]
        self.embedding = Characters()
        self.conv1 = nn.Conv1d(EMBEDDING, width, 3, padding=1, bias=False)
        stages = []
        for number, (channels, blocks) in enumerate(zip(CHANNELS, BLOCKS[depth])):
            pooling = [nn.MaxPool1d(3, stride=2, padding=1)] if number else []
            convolutions = [ConvBlock(width if i == 0 else channels, channels) for i in range(blocks)]
            stages.append(nn.Sequential(*pooling, *convolutions))
            width = channels
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.kmax = KMaxPool(KMAX)
        self.fc1 = nn.Linear(KMAX * width, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, HIDDEN)
        self.fc3 = nn.Linear(HIDDEN, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight)  # fan-in, as released with LIT; the rest as torch has it

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.embedding(x))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        out = F.relu(self.fc1(self.kmax(out).flatten(1)))
        return self.fc3(F.relu(self.fc2(out)))


def vdcnn9(num_classes: int = 5) -> VDCNN:
    """VDCNN-9: one block per section, 14.2 M parameters."""
    return VDCNN(9, num_classes)


def vdcnn17(num_classes: int = 5) -> VDCNN:
    """VDCNN-17: two blocks per section, 16.3 M parameters."""
    return VDCNN(17, num_classes)


def vdcnn29(num_classes: int = 5) -> VDCNN:
    """VDCNN-29: 5, 5, 2 and 2 blocks, 16.6 M parameters."""
    return VDCNN(29, num_classes)
