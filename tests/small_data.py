"""Small datasets of every kind, made from numbers."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lit_fast.data import Augmentation, Data, TensorSplit, from_arrays


def numbered(count: int, first: int = 0) -> tuple[Tensor, Tensor]:
    """Images [count, 1, 8, 8] whose pixels spell their number, labels number % 5."""
    numbers = torch.arange(first, first + count)
    return numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous(), numbers % 5


def make(**changes) -> Data:
    options = {
        "augmentation": Augmentation(pad=2, flip=True),
        "mean": (0.0,),
        "std": (1.0,),
        "num_classes": 5,
        **changes,
    }
    return from_arrays(numbered(103), numbered(20, 110), test=numbered(30, 140), **options)


def texts(**changes) -> Data:
    """31 texts of 12 tokens below 69, five classes."""
    tokens = torch.randint(0, 69, (31, 12), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    labels = torch.arange(31) % 5
    splits = [TensorSplit(tokens, labels, torch.arange(31)[part]) for part in (slice(20), slice(20, 25), slice(25, 31))]
    options = {"shape": (12,), "mean": (), "std": (), "augmentation": Augmentation(), **changes}
    return Data(
        "texts", options["shape"], tuple("abcde"), *[options[k] for k in ("mean", "std", "augmentation")], *splits
    )


def coloured() -> Data:
    """103 training images [3, 6, 10] of random pixels, with crops and flips."""
    images = torch.randint(0, 256, (143, 3, 6, 10), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    labels = torch.arange(143) % 7
    return from_arrays(
        (images[:103], labels[:103]), test=(images[103:], labels[103:]), augmentation=Augmentation(pad=2, flip=True)
    )


def attributes() -> Data:
    """The images of `coloured` with three attributes each, of which an image has any number."""
    data = coloured()
    splits = {}
    for name in ("train", "val", "test"):
        split = data.split(name)
        assert isinstance(split, TensorSplit)
        labels = torch.arange(len(split.images))[:, None].bitwise_and(torch.tensor([1, 2, 4])).ne(0).float()
        splits[name] = TensorSplit(split.images, labels, split.indices)
    return replace(data, classes=("dark", "glad", "old"), **splits)
