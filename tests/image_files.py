"""Image files of all sizes that look like photos more than noise does: smooth patches with some grain."""

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


def write_folder(root: Path, suffix: str = "jpg", *, train: int = 20, test: int = 3, side: int | None = None) -> Path:
    """root/{train,test}/{ant,bee}/*; `side`: all are squares of that many pixels, else of many sizes."""
    number = 0
    for split, count in (("train", train), ("test", test)):
        for name in ("ant", "bee"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                number += 1
                width, height = (side, side) if side else (40 + 7 * number % 53, 36 + 11 * number % 61)
                picture(number, width=width, height=height).save(folder / f"{i:02}.{suffix}", quality=90)
    return root


def cut_short(path: Path) -> None:
    """Leave the first half of a file: its header is whole, its pixels are not."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
