"""`from_arrays`: a dataset of images and labels the user holds in memory."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_fast.data.augment import Augmentation
from lit_fast.data.base import Data, TensorSplit
from lit_fast.data.options import Options, class_count, normalisation, numbers
from lit_fast.data.splits import kept_and_held_out
from lit_fast.errors import DataError

Pair = tuple[Any, Any]  # images and labels, tensors or arrays


def from_arrays(
    train: Pair,
    val: Pair | None = None,
    *,
    test: Pair,
    num_classes: int | None = None,
    name: str = "arrays",
    val_size: int | None = None,
    val_seed: int = 0,
    train_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augmentation: Augmentation | None = None,
) -> Data:
    """Make a dataset of (images, labels) pairs held in memory.

    Tensors and NumPy arrays of the right type are shared, not copied.

    Args:
        train, val, test: images uint8 [N, C, H, W] and integer labels [N], tensors or NumPy arrays. Without `val` a
            stratified part of the training images is held out.
        num_classes: how many classes there are. None: one more than the largest training label.
        name: what the dataset is called in messages and reports.
        val_size: images held out when `val` is None. None: a tenth.
        val_seed, train_size: as in `open_data`.
        mean, std: per-channel normalisation in units of full scale (0..1). None: those of the training images.
        augmentation: what training batches go through. None: nothing.

    Raises:
        DataError: naming the split, what was expected and what was got.

    Example:
        >>> import torch
        >>> images, labels = torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 4
        >>> data = from_arrays((images, labels), test=(images[:8], labels[:8]))
        >>> len(data.train), len(data.val), data.num_classes
        (36, 4, 4)
    """
    options = Options(
        val_size=val_size,
        val_seed=val_seed,
        train_size=train_size,
        mean=numbers(mean, "mean"),
        std=numbers(std, "std"),
        augmentation=augmentation,
    )
    images, labels = _checked("train", train)
    shape = (images.shape[1], images.shape[2], images.shape[3])
    classes = class_count(num_classes, labels)
    kept, held_out = kept_and_held_out(labels, options, own_val=val is not None)
    own_mean, own_std = normalisation(options, lambda: images[kept])
    return Data(
        name=name,
        shape=shape,
        classes=tuple(map(str, range(classes))),
        mean=own_mean,
        std=own_std,
        augmentation=options.augmentation or Augmentation(),
        train=TensorSplit(images, labels, kept),
        val=TensorSplit(images, labels, held_out) if val is None else TensorSplit(*_checked("val", val, shape)),
        test=TensorSplit(*_checked("test", test, shape)),
    )


def _checked(split: str, pair: Pair, shape: tuple[int, int, int] | None = None) -> tuple[Tensor, Tensor]:
    """The pair as tensors uint8 [N, C, H, W] and int64 [N], or an error that says how to mend it."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise DataError(f"{split}: expected a pair (images, labels), got {type(pair).__name__}")
    images, labels = (_tensor(values, f"{split} {what}") for values, what in zip(pair, ("images", "labels")))
    mend = _mend_images(images)
    if mend:
        got = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
        raise DataError(f"{split} images: expected uint8 [N, C, H, W] with 1 to 4 channels, got {got}; {mend}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool or labels.ndim != 1:
        got = f"{str(labels.dtype).removeprefix('torch.')} {tuple(labels.shape)}"
        hint = "labels.argmax(1) turns one-hot rows into classes" if labels.ndim == 2 else "use labels.long()"
        raise DataError(f"{split} labels: expected integers [N], got {got}; {hint}")
    if len(images) != len(labels):
        raise DataError(f"{split}: expected one label per image, got {len(images)} images and {len(labels)} labels")
    if shape is not None and tuple(images.shape[1:]) != shape:
        raise DataError(f"{split} images: expected the training images' shape {shape}, got {tuple(images.shape[1:])}")
    return images, labels.to(torch.int64)


def _tensor(values: Any, what: str) -> Tensor:
    """On the CPU, where splits live and batches start."""
    try:
        with warnings.catch_warnings():
            # A read-only array (a memory map, say) is as good as any: splits are never written to.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what}: expected a tensor or a NumPy array, got {type(values).__name__} ({error})") from error


def _mend_images(images: Tensor) -> str:
    """What to do with images of the wrong type or layout; empty if they are right."""
    if images.ndim == 3:
        return "add the channel dimension: images[:, None]"
    if images.ndim != 4:
        return "give one batch of images"
    if images.shape[1] not in (1, 2, 3, 4):
        if images.shape[3] in (1, 2, 3, 4):
            return "the channels stand last: use images.permute(0, 3, 1, 2), or images.transpose(0, 3, 1, 2) in NumPy"
        return "there is no channel dimension of that size"
    if images.is_floating_point():
        return "give the pixels as they are, 0..255: if the values lie in 0..1, use (images * 255).round() as uint8"
    if images.dtype is not torch.uint8:
        return "convert pixels 0..255 to uint8"
    return ""
