"""Folders of image files of all sizes."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # benchmarks is no part of the installed package

from benchmarks.pictures import picture

__all__ = ["cut_short", "picture", "write_folder"]


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
