"""What the students are trained on: CIFAR-10, as published or packed; for a dry run, images and a teacher made here."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.gpu import pack
from lit_fast.data import Augmentation, Data, from_arrays
from lit_fast.models.resnet import ResNet

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Cifar:
    """CIFAR-10, or the part of its training images that is there; `checked` against digests."""

    images: pack.Unpacked
    packed: bool

    @property
    def share(self) -> str:
        """How much of the training images there is, in words."""
        return f"{len(self.images.train.labels):,} of {self.images.whole:,} training images"

    @property
    def partial(self) -> bool:
        return len(self.images.train.labels) < self.images.whole

    @cached_property
    def digest(self) -> str:
        sha = hashlib.sha256()
        for array in (*self.images.train, *self.images.test):
            sha.update(np.ascontiguousarray(array).data)
        return sha.hexdigest()

    def data(
        self, normalisation: Normalisation, *, train_size: int | None = None, test_size: int | None = None
    ) -> Data:
        """Training, validation (a tenth of the training images, as the recipe's 5,000 are) and test split.

        Args:
            normalisation: mean and deviation by channel.
            train_size: of what is left for training, only so many.
            test_size: only the first so many.
        """
        test = pack.Images(*(array[:test_size] for array in self.images.test))
        mean, std = normalisation
        return from_arrays(
            self.images.train,
            test=test,
            num_classes=10,
            name="cifar10",
            train_size=train_size,
            mean=mean,
            std=std,
            augmentation=Augmentation(pad=4, flip=True),
        )


def read(folders: str) -> Cifar:
    """CIFAR-10 from folders with colons between them: parts, or one folder with the dataset as it is published."""
    paths = [Path(folder).expanduser() for folder in folders.split(os.pathsep) if folder]
    if any(pack.is_part(folder) for path in paths for folder in (path, path / "part1", path / "part2")):
        return Cifar(pack.unpack(paths), packed=True)
    if len(paths) != 1:
        raise pack.PackError(
            f"{folders}: expected one folder with CIFAR-10, or the parts that benchmarks.gpu.pack makes"
        )
    found = pack.published(paths[0])
    return Cifar(pack.Unpacked(found["train"], found["test"], len(found["train"].labels), True), packed=False)


# -- a dry run's -------------------------------------------------------------------------------------------------------

_TRAIN, _TEST, _SHEET = 160, 80, 40
STUDENT_DEPTH, TEACHER_DEPTH = 8, 14


def make_dry(folder: Path) -> tuple[str, Path]:
    """Packed images in `folder`, noisy patterns of ten classes, and a teacher that knows them; kept for later calls."""
    if not folder.exists():
        beside = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        generator = np.random.default_rng(0)
        patterns = generator.integers(0, 256, (10, 3, 4, 4)).repeat(8, 2).repeat(8, 3)
        splits = {}
        for split, count in (("train", _TRAIN), ("test", _TEST)):
            labels = np.arange(count) % 10
            noisy = patterns[labels] + generator.normal(0, 30, (count, 3, pack.SIDE, pack.SIDE))
            splits[split] = pack.Images(noisy.clip(0, 255).astype(np.uint8), labels.astype(np.uint8))
        pack.pack(splits, beside, per_sheet=_SHEET)
        torch.save({"state_dict": _trained(splits["train"]).state_dict(), "best_prec1": 0.0}, beside / "teacher.th")
        beside.rename(folder)
    return str(folder), folder / "teacher.th"


def _trained(train: pack.Images) -> ResNet:
    from lit_fast.data import IMAGENET_MEAN, IMAGENET_STD
    from lit_fast.data.augment import normalise

    torch.manual_seed(0)
    teacher = ResNet(TEACHER_DEPTH)
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.02, momentum=0.9)
    images = normalise(torch.from_numpy(train.pixels), IMAGENET_MEAN, IMAGENET_STD)
    labels = torch.from_numpy(train.labels).long()
    for step in range(30):
        rows = torch.arange(step * 20, step * 20 + 20) % len(labels)
        optimizer.zero_grad()
        F.cross_entropy(teacher(images[rows]), labels[rows]).backward()
        optimizer.step()
    return teacher
