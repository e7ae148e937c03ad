"""StarGAN (Choi et al. 2018, appendix A.2): one generator for all domains, and its discriminator.

The generator's only compared section is the residual bottleneck; down- and up-sampling are stem and head, copied from
the teacher (LIT paper, appendix A.3: six residual blocks to two).

As the authors' code, instance norm is affine. That code also keeps running statistics, yet generates images in train
mode, where they are not used; here there are none, so that ``eval()`` changes nothing.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from lit_fast.models.resnet import positive

__all__ = ["Discriminator", "Generator", "ResidualBlock", "stargan2", "stargan6", "with_domain"]


def with_domain(images: Tensor, domain: Tensor) -> Tensor:
    """The generator's input: each domain value as one more channel of the image.

    Args:
        images: [B, 3, H, W].
        domain: [B, D], the attributes the output is to have, 0 or 1.

    Returns:
        [B, 3 + D, H, W], of the images' dtype.

    Raises:
        ValueError: the shapes do not go together.
    """
    if images.dim() != 4 or domain.dim() != 2 or len(images) != len(domain):
        raise ValueError(
            f"with_domain: expected images [B, 3, H, W] and domain [B, D], got {tuple(images.shape)} and "
            f"{tuple(domain.shape)}"
        )
    planes = domain.to(images.dtype)[:, :, None, None].expand(-1, -1, *images.shape[2:])
    return torch.cat([images, planes], dim=1)


def _norm(channels: int) -> nn.InstanceNorm2d:
    return nn.InstanceNorm2d(channels, affine=True)


class ResidualBlock(nn.Module):
    """x + norm2(conv2(relu(norm1(conv1(x))))), both convolutions 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = _norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = _norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))


class _Down(nn.Sequential):
    """Down-sampling that names what is wrong with its input."""

    def forward(self, x: Tensor) -> Tensor:
        first = self[0]
        assert isinstance(first, nn.Conv2d)
        channels = first.in_channels
        if x.dim() != 4 or x.shape[1] != channels or x.shape[2] % 4 or x.shape[3] % 4:
            raise ValueError(
                f"StarGAN generator: expected [B, {channels}, H, W] (3 colours and {channels - 3} domains, see "
                f"with_domain) with H and W divisible by 4, got {tuple(x.shape)}"
            )
        out: Tensor = super().forward(x)
        return out


class Generator(nn.Module):
    """Image and wanted domain in, image out; split by `lit_fast.split` at its bottleneck.

    Args:
        blocks: residual blocks of the bottleneck; 6 in StarGAN, 2 in LIT's student.
        domains: D, attributes that can be asked for.
        width: channels of the first convolution; the bottleneck has four times as many.

    Input [B, 3 + D, H, W] as `with_domain` makes it, H and W divisible by 4; output [B, 3, H, W] in -1..1. The IR is
    [B, 4 * width, H/4, W/4].

    Raises:
        ValueError: a count that is not positive; in the forward, another number of channels or a size that is not
            divisible by 4.

    Example:
        >>> generator = Generator(blocks=2, domains=5, width=8)
        >>> generator(with_domain(torch.zeros(1, 3, 32, 32), torch.ones(1, 5))).shape
        torch.Size([1, 3, 32, 32])
    """

    sections = ("bottleneck",)

    def __init__(self, blocks: int = 6, domains: int = 5, width: int = 64) -> None:
        super().__init__()
        positive(blocks=blocks, domains=domains, width=width)
        self.domains = domains
        self.down = _Down(
            nn.Conv2d(3 + domains, width, 7, padding=3, bias=False), _norm(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False), _norm(2 * width), nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1, bias=False), _norm(4 * width), nn.ReLU(),
        )  # fmt: skip
        self.bottleneck = nn.Sequential(*(ResidualBlock(4 * width) for _ in range(blocks)))
        self.up = nn.Sequential(
            nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1, bias=False), _norm(2 * width), nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False), _norm(width), nn.ReLU(),
            nn.Conv2d(width, 3, 7, padding=3, bias=False), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.bottleneck(self.down(x)))


class Discriminator(nn.Module):
    """Is a patch real (Wasserstein critic), and which attributes does the image have.

    Args:
        image_size: pixels of a square image, divisible by ``2 ** layers``.
        domains: D, attributes to recognise.
        width: channels of the first convolution, doubled by every further one.
        layers: convolutions of stride 2; 6 in StarGAN. None: 6, or as many as leave one pixel of a smaller image.

    Input [B, 3, image_size, image_size]; output (critic [B, 1, h, h], attribute logits [B, D]) with
    h = image_size / 2 ** layers.

    Raises:
        ValueError: a count that is not positive, or an image size that the layers cannot halve.
    """

    def __init__(self, image_size: int = 128, domains: int = 5, width: int = 64, layers: int | None = None) -> None:
        super().__init__()
        positive(image_size=image_size, domains=domains, width=width)
        if layers is None:
            layers = max(1, min(6, image_size.bit_length() - 1))
        positive(layers=layers)
        if image_size % 2**layers:
            raise ValueError(
                f"StarGAN discriminator: image_size must be divisible by {2**layers} ({layers} halvings), got "
                f"{image_size}; use a power of two, or fewer layers"
            )
        channels = [3, *(width * 2**i for i in range(layers))]
        self.main = nn.Sequential()
        for inputs, outputs in itertools.pairwise(channels):
            self.main.append(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1))
            self.main.append(nn.LeakyReLU(0.01))
        self.critic = nn.Conv2d(channels[-1], 1, 3, padding=1, bias=False)
        self.attributes = nn.Conv2d(channels[-1], domains, image_size // 2**layers, bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.main(images)
        return self.critic(features), self.attributes(features).flatten(1)


def stargan6(domains: int = 5, width: int = 64) -> Generator:
    """StarGAN's generator: 6 residual blocks, 8.43 M parameters, 9,960 MMACs per 128x128 image."""
    return Generator(6, domains, width)


def stargan2(domains: int = 5, width: int = 64) -> Generator:
    """LIT's student of it: 2 residual blocks, 3.71 M parameters, 5,129 MMACs per 128x128 image."""
    return Generator(2, domains, width)
