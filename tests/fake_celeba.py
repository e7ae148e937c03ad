"""Small CelebA folders in the published form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("Bald", "Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young")


def write(folder: Path, count: int = 40, *, size: tuple[int, int] = (22, 27), names: tuple[str, ...] = NAMES) -> Path:
    """``count`` smooth pictures whose colours tell two of their attributes; returns the folder."""
    images = folder / "img_align_celeba"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, (count, len(names)))
    rows = [str(count), " ".join(names) + " "]
    for i, row in enumerate(values):
        name = f"{i + 1:06d}.jpg"
        coarse = rng.integers(60, 190, (3, 3, 3))
        coarse[..., 0] += 60 * row[-1]
        coarse[..., 2] += 60 * row[-2]
        Image.fromarray(coarse.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC).save(images / name, quality=95)
        rows.append(name + "".join(f" {2 * value - 1:2d}" for value in row))
    (folder / "list_attr_celeba.txt").write_text("\n".join(rows) + "\n")
    return folder
