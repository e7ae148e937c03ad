"""Pictures that are more like photos than noise is: smooth patches with some grain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def picture(seed: int, *, width: int, height: int) -> Any:
    """A Pillow image in mode RGB."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    grain = rng.integers(-8, 9, (height, width, 3))
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def write_files(folder: Path, count: int, *, width: int, height: int) -> list[Path]:
    """`count` JPEG files of quality 90."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{i:06}.jpg" for i in range(count)]
    for i, file in enumerate(files):
        picture(i, width=width, height=height).save(file, quality=90)
    return files
