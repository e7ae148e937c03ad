"""Options every dataset understands, checked once before any file is read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lit_fast.data.augment import Augmentation
from lit_fast.errors import DataError

Channels = tuple[float, ...]  # one value per channel

MAX_CLASSES = 1_000_000  # each has a name and a row of the last layer
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Options:
    """Arguments of `open_data`; None means the dataset's own default.

    Raises:
        DataError: if a number is of the wrong kind or out of range.
    """

    data_dir: Path | None = None
    val_size: int | None = None
    val_seed: int = 0
    train_size: int | None = None
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augmentation: Augmentation | None = None
    on_bad_image: str = "stop"
    length: int | None = None
    cache_dir: Path | None = None
    attributes: tuple[str, ...] | None = None
    crop: int | None = None

    def __post_init__(self) -> None:
        for what, value, least in (
            ("val_size", self.val_size, 0),
            ("train_size", self.train_size, 1),
            ("image_size", self.image_size, 1),
            ("length", self.length, 1),
            ("crop", self.crop, 1),
        ):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise DataError(f"{what}: expected an integer >= {least}, got {value!r}")
        if self.on_bad_image not in ("stop", "skip"):
            raise DataError(f"on_bad_image: expected 'stop' or 'skip', got {self.on_bad_image!r}")
        if self.attributes is not None and (not self.attributes or len(set(self.attributes)) < len(self.attributes)):
            raise DataError(f"attributes: expected at least one name, none of them twice, got {self.attributes}")
        if isinstance(self.val_seed, bool) or not isinstance(self.val_seed, int):
            raise DataError(f"val_seed: expected an integer, got {self.val_seed!r}")
        if self.augmentation is not None and not isinstance(self.augmentation, Augmentation):
            raise DataError(
                f"augmentation: expected lit_fast.data.Augmentation(pad=..., flip=...), got {self.augmentation!r}"
            )


def numbers(values: Sequence[float] | None, what: str) -> tuple[float, ...] | None:
    """A tuple of floats, or None; `what` names the argument.

    Raises:
        DataError: for strings, nothing at all, and things that are not numbers.
    """
    if values is None:
        return None
    try:
        found = () if isinstance(values, str) else tuple(float(value) for value in values)
    except (TypeError, ValueError):
        found = ()
    if not found:
        raise DataError(f"{what}: expected numbers, one per channel, got {values!r}")
    return found


def class_count(num_classes: int | None, labels: Tensor) -> int:
    """`num_classes` as given, or one more than the largest training label (int64 [N]).

    Raises:
        DataError: if there are no training labels to count by, or the number is not an integer >= 1; or there are more
            classes than anybody has names for, which would fill the memory with them.
    """
    largest = int(labels.max()) if len(labels) else 0
    if largest >= MAX_CLASSES:
        raise DataError(
            f"train labels: expected classes numbered from 0, fewer than {MAX_CLASSES:,}, got {largest}; number them "
            "anew: labels.unique(return_inverse=True)[1]"
        )
    if num_classes is None:
        if not len(labels):
            raise DataError("the training split is empty")
        return largest + 1
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise DataError(f"num_classes: expected an integer >= 1, got {num_classes!r}")
    if num_classes > MAX_CLASSES:
        raise DataError(f"num_classes: expected at most {MAX_CLASSES:,}, got {num_classes:,}")
    return num_classes


def normalisation(options: Options, images: Callable[[], Tensor]) -> tuple[Channels, Channels]:
    """Mean and deviation as given, or those of `images()` (uint8 [N, C, H, W]), read only if one is missing."""
    if options.mean is not None and options.std is not None:
        return options.mean, options.std
    mean, std = channel_statistics(images())
    return options.mean or mean, options.std or std


def channel_statistics(images: Tensor) -> tuple[Channels, Channels]:
    """Mean and standard deviation per channel of uint8 images [N, C, H, W], in units of full scale (0..1).

    Computed from integer histograms, so the values do not depend on the number of threads. A constant channel gets the
    standard deviation 1.
    """
    means, deviations = [], []
    levels = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        share = counts / counts.sum()
        mean = float((share * levels).sum())
        deviation = float((share * (levels - mean) ** 2).sum().sqrt())
        means.append(mean)
        deviations.append(deviation if deviation > 0 else 1.0)
    return tuple(means), tuple(deviations)
