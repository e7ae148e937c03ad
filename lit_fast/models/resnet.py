"""CIFAR ResNets of He et al. 2016, section 4.2: 6n + 2 layers, three sections of n basic blocks, option A shortcuts.

The state_dict keys are those of the widely published checkpoints: ``conv1``, ``bn1``,
``layer{1,2,3}.{j}.{conv1,bn1,conv2,bn2}`` and ``linear``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from lit_fast.models import fused_norm
from lit_fast.models.fused_norm import norm_act

# (channels of the section's IR, stride of its first block)
STAGES = ((16, 1), (32, 2), (64, 2))


LARGEST = 2**31 - 1  # of a tensor's size: beyond 64 bits torch fails with pages of its own code


def positive(**numbers: int) -> None:
    """Raise ValueError naming the first argument that is not an integer above zero."""
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: expected an integer above 0, got {value!r}")
        if value > LARGEST:
            raise ValueError(f"{name}: expected at most {LARGEST}, got {value}")


def blocks_per_section(depth: int, family: str, layers_per_block: int = 2) -> int:
    """The n of a network of ``layers_per_block * 3n + 2`` layers.

    Raises:
        ValueError: ``depth`` is not of that form.
    """
    step = 3 * layers_per_block
    n, rest = divmod(depth - 2, step)
    if n < 1 or rest:
        raise ValueError(f"{family}: depth is {step}n + 2 (20, 32, 44, 56, 110), got {depth}")
    return n


def initialise(model: nn.Module) -> None:
    """He initialisation (fan-in) of every convolution and linear weight, as the published CIFAR networks have it."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)


class OptionA(nn.Module):
    """Shortcut without parameters: every second pixel; new channels are zero, half of them before the old ones.

    [B, C, H, W] -> [B, C + 2 * pad, ceil(H / 2), ceil(W / 2)] (He et al. 2016, section 3.3, option A). Zeros on both
    sides, not only behind, because the published checkpoints were trained so.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.pad = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))

    def added_to(self, out: Tensor, x: Tensor) -> Tensor:
        """``out + self(x)`` in out's memory, without the padding's zeros."""
        return _AddToMiddle.apply(out, _EverySecond.apply(x), self.pad)

    def extra_repr(self) -> str:
        return f"pad={self.pad}"


class _EverySecond(torch.autograd.Function):
    """Every second pixel of x; its gradient in one copy, where two slices make two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.size, ctx.stride = x.size(), x.stride()
        return x.detach()[:, :, ::2, ::2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        whole = grad.new_empty_strided(ctx.size, ctx.stride).zero_()
        whole[:, :, ::2, ::2] = grad
        return whole


class _AddToMiddle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, middle: Tensor, pad: int) -> Tensor:  # type: ignore[override]
        ctx.place = (1, pad, middle.shape[1])
        out.narrow(*ctx.place).add_(middle)
        ctx.mark_dirty(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        return grad, grad.narrow(*ctx.place), None


class BasicBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)), both convolutions 3x3."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity() if stride == 1 else OptionA(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        # Nothing is done in place on x, which may be a teacher's IR that the loss still needs.
        out = self.conv2(norm_act(self.bn1, self.conv1(x)))
        if isinstance(self.shortcut, OptionA) and self._trained_as_it_is(x):
            return F.relu(self.shortcut.added_to(self.bn2(out), x), inplace=True)
        return norm_act(self.bn2, out, self.shortcut(x))

    def _trained_as_it_is(self, x: Tensor) -> bool:
        """Whether this is a step of training, and nobody looks into it: no tracer, compiler, hook or transform."""
        if not self.training or type(x) is not Tensor or fused_norm.is_enabled() or torch.compiler.is_compiling():
            return False
        if forward_ad._current_level >= 0 or torch._C._functorch.maybe_current_level() is not None:
            return False
        return all(map(fused_norm.is_plain, self.children()))


class ResNet(nn.Module):
    """ResNet for small images: 3x3 stem of 16 channels, sections of 16, 32 and 64 channels, mean pooling, ``linear``.

    Args:
        depth: number of layers, 6n + 2.
        num_classes: width of the logits.
        in_channels: channels of the images.

    Input [B, in_channels, H, W] with H and W divisible by 4; output [B, num_classes]. The IRs, outputs of ``layer1``,
    ``layer2`` and ``layer3``, are [B, 16, H, W], [B, 32, H/2, W/2] and [B, 64, H/4, W/4].

    Raises:
        ValueError: a depth that is not 6n + 2, or a count that is not positive.

    Example:
        >>> import torch
        >>> ResNet(20, num_classes=10)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    sections = ("layer1", "layer2", "layer3")

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        positive(num_classes=num_classes, in_channels=in_channels)
        n = blocks_per_section(depth, "ResNet")
        width = STAGES[0][0]
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages = []
        for channels, stride in STAGES:
            first = BasicBlock(width, channels, stride)
            stages.append(nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(n - 1))))
            width = channels
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(width, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        out = norm_act(self.bn1, self.conv1(x))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


def resnet20(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-20: 3 blocks per section, 0.27 M parameters, 40.6 MMACs per 32x32 image."""
    return ResNet(20, num_classes, in_channels)


def resnet32(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-32: 5 blocks per section, 0.46 M parameters, 68.9 MMACs per 32x32 image."""
    return ResNet(32, num_classes, in_channels)


def resnet44(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-44: 7 blocks per section, 0.66 M parameters, 97.2 MMACs per 32x32 image."""
    return ResNet(44, num_classes, in_channels)


def resnet56(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-56: 9 blocks per section, 0.85 M parameters, 125.5 MMACs per 32x32 image."""
    return ResNet(56, num_classes, in_channels)


def resnet110(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-110: 18 blocks per section, 1.73 M parameters, 252.9 MMACs per 32x32 image."""
    return ResNet(110, num_classes, in_channels)
