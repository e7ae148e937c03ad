"""Datasets whose loading is measured, and the same images as the original code reads them, with Pillow one by one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.pictures import write_files
from lit_fast.data import Augmentation, Data, TensorSplit
from lit_fast.data.formats.folder import FolderSplit

REAL = "LIT_FAST_TEST_DATA"  # names a folder that may hold celeba/
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Setting(NamedTuple):
    """One dataset: how it is made in a folder, and the batch it is read in."""

    name: str
    family: str  # "cifar", "jpeg" or "celeba"
    batch: int
    make: Callable[[Path], Data]


def settings(*, tiny: bool) -> list[Setting]:
    """What is measured, the settings that the bars need first."""
    if tiny:
        return [
            Setting("arrays 3x8x8, batch 8", "cifar", 8, lambda _: arrays(32, 8)),
            Setting("JPEG 40x48 to 16x16, batch 4", "jpeg", 4, lambda folder: jpegs(folder, 12, (40, 48), 16)),
        ]
    found = [
        Setting("CIFAR arrays 3x32x32, batch 128", "cifar", 128, lambda _: arrays(3_840, 32)),
        Setting("JPEG 178x218 to 128x128, batch 64", "jpeg", 64, lambda folder: jpegs(folder, 256, (178, 218), 128)),
    ]
    celeba = Path(os.environ.get(REAL, "")) / "celeba" / "img_align_celeba"
    if os.environ.get(REAL) and celeba.is_dir():
        found.append(Setting("CelebA 89x109 to 64x64, batch 64", "celeba", 64, lambda _: faces(celeba, 512, 64, 89)))
    return found


def arrays(count: int, side: int) -> Data:
    """Random pixels: nothing here depends on what they show."""
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % 10
    split = TensorSplit(pixels.to(torch.uint8), labels)
    few = TensorSplit(split.images, labels, torch.arange(min(count, 8)))
    classes = tuple(map(str, range(10)))
    return Data("arrays", (3, side, side), classes, MEAN, STD, Augmentation(side // 8, True), split, few, few)


def jpegs(folder: Path, count: int, shape: tuple[int, int], side: int) -> Data:
    """Files of `shape` (width, height), resized to `side` pixels squared."""
    return _files(write_files(folder, count, width=shape[0], height=shape[1]), side, None)


def faces(folder: Path, count: int, side: int, crop: int) -> Data:
    """The first files of a folder, cropped and resized."""
    return _files(sorted(folder.glob("*.jpg"))[:count], side, crop)


def _files(files: list[Path], side: int, crop: int | None) -> Data:
    split = FolderSplit(files[0].parent, files, torch.arange(len(files)) % 10, side, crop)
    few = split.subset(torch.arange(4))
    classes = tuple(map(str, range(10)))
    return Data("files", (3, side, side), classes, MEAN, STD, Augmentation(side // 8, True), split, few, few)


class OneByOne(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """A training split through the transforms of the original code, image by image.

    They are torchvision's RandomCrop(side, padding=side // 8), RandomHorizontalFlip, ToTensor and Normalize, for files
    after CenterCrop and Resize, as torchvision computes them for Pillow images.
    """

    def __init__(self, data: Data) -> None:
        self.split: Any = data.train
        self.side, self.pad = data.shape[1], data.augmentation.pad
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image, ImageOps

        image = self._image(index)
        image = ImageOps.expand(image, border=self.pad, fill=0)
        top, left = (int(torch.randint(0, 2 * self.pad + 1, (1,))) for _ in range(2))
        image = image.crop((left, top, left + self.side, top + self.side))
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image, np.uint8)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        return pixels.sub_(self.mean).div_(self.std), int(self.split.labels[index])

    def _image(self, index: int) -> Any:
        from PIL import Image

        if isinstance(self.split, TensorSplit):
            return Image.fromarray(self.split.images[index].permute(1, 2, 0).numpy())
        with Image.open(self.split.files[index]) as file:
            image = file.convert("RGB")
        width, height = image.size
        if self.split.crop is not None:
            image = _centre(image, self.split.crop)
            return image.resize((self.side, self.side), Image.Resampling.BILINEAR)
        short = min(width, height)
        size = (self.side * width // short, self.side * height // short)
        return _centre(image.resize(size, Image.Resampling.BILINEAR), self.side)


def _centre(image: Any, side: int) -> Any:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
