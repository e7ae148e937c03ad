"""Sample grids: every image as it is and in every domain, one row per network (LIT paper, figures 5 and 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_fast.files import atomic_write, make_folder
from lit_fast.models.stargan import with_domain

__all__ = ["domains", "draw_grid", "to_pixels", "translate"]

HAIR = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")
_MARGIN, _HEADER, _LABEL = 2, 14, 64  # pixels: between images, above the columns, left of the rows


def domains(labels: Tensor, attributes: Sequence[str]) -> list[Tensor]:
    """For each attribute the labels that ask for it: hair colours exclude each other, others are turned round.

    Args:
        labels: [B, D] of the images, 0 or 1.
        attributes: their D names.

    Returns:
        D tensors [B, D].
    """
    hair = [i for i, name in enumerate(attributes) if name in HAIR]
    out = []
    for i, name in enumerate(attributes):
        wanted = labels.clone()
        if name in HAIR:
            wanted[:, hair] = 0.0
            wanted[:, i] = 1.0
        else:
            wanted[:, i] = 1.0 - wanted[:, i]
        out.append(wanted)
    return out


@torch.no_grad()
def translate(generator: nn.Module, images: Tensor, labels: Tensor, attributes: Sequence[str]) -> list[Tensor]:
    """The images in each domain: D tensors [B, 3, H, W] in -1..1. The generator's mode makes no difference."""
    return [generator(with_domain(images, wanted)).float() for wanted in domains(labels, attributes)]


def to_pixels(images: Tensor) -> Tensor:
    """Images in -1..1 as uint8, rounded to nearest."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def draw_grid(
    path: Path, images: Tensor, labels: Tensor, attributes: Sequence[str], generators: Mapping[str, nn.Module]
) -> None:
    """Write the PNG ``path``: columns are the original and the domains; each image has one row per generator.

    Args:
        path: its folder is made if absent, in one that is there.
        images: [N, 3, H, W] in -1..1.
        labels: [N, D].
        attributes: the names of the columns.
        generators: by the label of their row.
    """
    from PIL import Image, ImageDraw

    count, _, height, width = images.shape
    columns = {
        name: [to_pixels(x).cpu() for x in [images, *translate(net, images, labels, attributes)]]
        for name, net in generators.items()
    }
    step_x, step_y = width + _MARGIN, height + _MARGIN
    size = (_LABEL + (1 + len(attributes)) * step_x, _HEADER + count * (len(columns) * step_y + _MARGIN))
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    for column, name in enumerate(["Original", *attributes]):
        pen.text((_LABEL + column * step_x, 1), _fitting(pen, name.replace("_", " "), width), fill="black")
    y = _HEADER
    for i in range(count):
        for label, shown in columns.items():
            pen.text((1, y + height // 2 - 6), _fitting(pen, label, _LABEL - 2), fill="black")
            for column, pixels in enumerate(shown):
                tile = Image.fromarray(pixels[i].permute(1, 2, 0).numpy())
                canvas.paste(tile, (_LABEL + column * step_x, y))
            y += step_y
        y += _MARGIN
    make_folder(path.parent)
    atomic_write(path, lambda temporary: canvas.save(temporary, format="PNG"))


def _fitting(pen: Any, text: str, width: int) -> str:
    """As much of ``text`` as is no wider than ``width`` pixels."""
    while text and pen.textlength(text) > width:
        text = text[:-1]
    return text
