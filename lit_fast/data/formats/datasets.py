"""`from_datasets`: a dataset of map-style PyTorch datasets, read item by item when a batch needs them."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, default_collate

from lit_fast.data.augment import Augmentation
from lit_fast.data.base import SPLITS, Data, Split
from lit_fast.data.formats.images import eight_bit, pixels
from lit_fast.data.items import SAMPLE, Collate, length, looked_at, of_items
from lit_fast.data.options import Options, class_count, normalisation, numbers
from lit_fast.data.splits import kept_and_held_out
from lit_fast.errors import DataError

TWICE = 8  # items read twice: a random transform (a flip, at p = 0.5) goes unseen once in 256 times


def from_datasets(
    train: Any,
    val: Any = None,
    test: Any = None,
    *,
    num_classes: int | None = None,
    name: str = "datasets",
    val_size: int | None = None,
    val_seed: int = 0,
    train_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augmentation: Augmentation | None = None,
    collate: Collate | None = None,
) -> Data:
    """Make a dataset of map-style PyTorch datasets whose items are (image, class), or anything else with `collate`.

    Items are read when a batch needs them, one after another in the calling thread. Without `collate` their transforms
    must be neither random nor normalise: both are done here, reproducibly. Labels come from the attribute `targets`
    (also through `Subset`); where there is none, every item is read once now.

    Args:
        train, val, test: objects with a length and items (image, class): a Pillow image, a uint8 tensor [C, H, W] or a
            float tensor [C, H, W] in 0..1. All images have one shape. `test` is required; without `val` a stratified
            part of `train` is held out.
        num_classes, name, val_size, val_seed, train_size, augmentation: as in `from_arrays`.
        mean, std: per-channel normalisation in units of full scale (0..1). None: those of up to 1,000 training images.
        collate: items go to the networks as they are, and this makes a batch of a list of them, as
            `torch.utils.data.default_collate` does: (inputs, labels), or a dict with "labels". Inputs are what the
            networks take: a tensor, a tuple, a dict. What is random in transforms (torch's, Python's and NumPy's global
            generators) is seeded for each item, so a resumed run repeats it. `val` is required, and there is nothing
            to normalise, to augment or to hold out.

    Raises:
        DataError: naming the split and item, what was expected and what was got.
    """
    if collate is not None:
        refused = {"val_size": val_size, "train_size": train_size, "mean": mean, "std": std}
        for what, value in (refused | {"augmentation": augmentation}).items():
            if value is not None:
                raise DataError(f"{what}: with collate, items go to the networks as they are; leave it out")
        splits = dict(zip(SPLITS, (train, val, test)))
        return of_items(splits, collate, num_classes=num_classes, name=name)
    options = Options(
        val_size=val_size,
        val_seed=val_seed,
        train_size=train_size,
        mean=numbers(mean, "mean"),
        std=numbers(std, "std"),
        augmentation=augmentation,
    )
    if test is None:
        raise DataError("from_datasets: test is needed; accuracy is reported on images that took no part in training")
    whole = DatasetSplit(train, "train")
    classes = class_count(num_classes, whole.labels)
    kept, held_out = kept_and_held_out(whole.labels, options, own_val=val is not None)
    chosen = whole.subset(kept)
    own_mean, own_std = normalisation(options, chosen.sample)
    return Data(
        name=name,
        shape=whole.shape,
        classes=tuple(map(str, range(classes))),
        mean=own_mean,
        std=own_std,
        augmentation=options.augmentation or Augmentation(),
        train=chosen,
        val=whole.subset(held_out) if val is None else DatasetSplit(val, "val", whole.shape),
        test=DatasetSplit(test, "test", whole.shape),
    )


class DatasetSplit(Split):
    """Items of a map-style dataset, read when they are fetched.

    Args:
        dataset: has a length and items (image, class).
        name: of the split, for messages.
        shape: (C, H, W) every image must have; None: that of the first one.

    Raises:
        DataError: if the object is not map-style, empty, or its first items are unfit or random.
    """

    def __init__(self, dataset: Any, name: str, shape: tuple[int, int, int] | None = None) -> None:
        self.dataset = dataset
        self.name = name
        size = length(dataset, name)
        first = self._image(0, dataset[0])
        self.shape = shape or (first.shape[0], first.shape[1], first.shape[2])
        self.labels = self._labels(size)
        self.indices = torch.arange(size)
        few = torch.arange(min(size, TWICE))
        if not torch.equal(self.fetch(few), self.fetch(few)):
            raise DataError(
                f"{name}: the dataset gives different images for the same index; remove its random transforms and pass"
                " augmentation=Augmentation(pad=..., flip=...), which a resumed run repeats exactly"
            )

    def subset(self, indices: Tensor) -> DatasetSplit:
        """The items at `indices`, as a split of its own."""
        part = object.__new__(DatasetSplit)  # everything is checked already
        part.dataset, part.name, part.shape = self.dataset, self.name, self.shape
        part.labels, part.indices = self.labels[indices], self.indices[indices]
        return part

    def fetch(self, indices: Tensor) -> Tensor:
        out = torch.empty((len(indices), *self.shape), dtype=torch.uint8)
        for row, (at, label) in enumerate(zip(self.indices[indices].tolist(), self.labels[indices].tolist())):
            item = self.dataset[at]
            image = self._image(at, item)
            if tuple(image.shape) != self.shape:
                raise DataError(
                    f"{self.name}: image {at} has shape {tuple(image.shape)}, expected {self.shape} like the first"
                    " training image; resize and crop all images to one size"
                )
            if _label(item[1]) != label:
                raise DataError(
                    f"{self.name}: item {at} has class {item[1]!r}, its entry in `targets` says {label};"
                    " let both agree (is there a target_transform?)"
                )
            out[row] = image
        return out

    def sample(self) -> Tensor:
        """Up to `SAMPLE` images, evenly spaced: uint8 [S, C, H, W]."""
        count = min(len(self), SAMPLE)
        return self.fetch(torch.arange(count) * len(self) // max(count, 1))

    def digest(self) -> bytes:
        """A hash of the images that `looked_at` gives."""
        sha = hashlib.sha256()
        for indices in looked_at(len(self)):
            sha.update(self.fetch(indices).numpy().data)
        return sha.digest()

    def _labels(self, size: int) -> Tensor:
        """int64 [size]."""
        labels = _targets(self.dataset)
        if labels is None:
            labels = [self._pair(at, self.dataset[at])[1] for at in range(size)]
        if len(labels) != size:
            raise DataError(f"{self.name}: the dataset has {size} items but {len(labels)} entries in `targets`")
        classes = [_label(label) for label in labels]
        if None in classes:
            at = classes.index(None)
            raise DataError(f"{self.name}: expected item {at} to be (image, integer class), got class {labels[at]!r}")
        return torch.tensor(classes, dtype=torch.int64)

    def _pair(self, at: int, item: Any) -> tuple[Any, Any]:
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"{self.name}: expected item {at} to be (image, class), got {type(item).__name__}")
        return item[0], item[1]

    def _image(self, at: int, item: Any) -> Tensor:
        """uint8 [C, H, W] of an item."""
        image, what = self._pair(at, item)[0], f"{self.name}: image {at}"
        if hasattr(image, "convert") and hasattr(image, "getbands"):  # a Pillow image, without importing Pillow
            return pixels(eight_bit(image, what, keep_grey=True))
        expected = "a Pillow image, a uint8 tensor [C, H, W] or a float tensor [C, H, W] in 0..1"
        if not isinstance(image, Tensor) or image.ndim != 3:
            got = f"a tensor {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise DataError(f"{what}: expected {expected}, got {got}")
        if image.dtype is torch.uint8:
            return image
        if not image.is_floating_point():
            raise DataError(f"{what}: expected {expected}, got {image.dtype}")
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):  # also true for NaN
            raise DataError(
                f"{what}: expected {expected}, got floats in {low:.3g}..{high:.3g}; remove the normalisation from the"
                " dataset's transform and pass mean= and std= here"
            )
        return (image.float() * 255).round().to(torch.uint8)


def as_data(source: Any, name: str) -> Data:
    """A dataset of what a function of one's own, or the caller of `lit_fast.distill`, gives.

    Args:
        source: a dataset already, or a mapping or an object that has ``train``, ``val`` and ``test``, datasets as of
            `from_datasets` with ``collate``, and perhaps ``num_classes`` and ``collate``.
        name: of the dataset.

    Raises:
        DataError: it is neither.
    """
    if isinstance(source, Data):
        return source

    def part(key: str) -> Any:
        return source.get(key) if isinstance(source, Mapping) else getattr(source, key, None)

    splits = {split: part(split) for split in SPLITS}
    if all(split is None for split in splits.values()):
        if isinstance(source, DataLoader):
            raise DataError(
                f"{name}: expected datasets, got a DataLoader; give those that it reads, {{'train': ..., 'val': ..., "
                "'test': ..., 'collate': loader.collate_fn}: the order of batches is the run's"
            )
        raise DataError(
            f"{name}: expected a mapping or an object with the datasets train, val and test, or a lit_fast.data.Data, "
            f"got {type(source).__name__}"
        )
    collate, num_classes = part("collate") or default_collate, part("num_classes")
    return of_items(splits, collate, num_classes=num_classes, name=name)


def _targets(dataset: Any) -> Any:
    """All labels without reading the images, where the dataset offers them as torchvision's do; else None."""
    if isinstance(dataset, Subset):
        whole = _targets(dataset.dataset)
        return None if whole is None else [whole[at] for at in dataset.indices]
    targets = getattr(dataset, "targets", None)
    return targets if hasattr(targets, "__len__") and hasattr(targets, "__getitem__") else None


def _label(value: Any) -> int | None:
    """An integer, 0-d integer tensor or NumPy integer as int; None if it is anything else."""
    try:
        return operator.index(value)
    except (TypeError, ValueError):
        return None
