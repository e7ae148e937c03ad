"""Stratified choices: which images go to validation, and which subset of the rest is trained on."""

import torch
from torch import Tensor

from lit_fast.data.options import Options
from lit_fast.data.tables import generator
from lit_fast.errors import DataError


def stratified(labels: Tensor, size: int, key: tuple[int | str, ...]) -> tuple[Tensor, Tensor]:
    """Choose `size` positions with the classes in proportion, fixed by `key`.

    Each class gets its exact share rounded down; what is left goes to the largest remainders, ties to the lower class.

    Args:
        labels: int64 [N], classes from 0.
        size: how many to choose, 0..N.
        key: names the choice; the same key and labels give the same choice everywhere.

    Returns:
        (chosen int64 [size], rest int64 [N - size]), both ascending.
    """
    total = len(labels)
    if size == 0 or total == 0:
        return torch.empty(0, dtype=torch.int64), torch.arange(total)
    counts = torch.bincount(labels)
    shares = counts * size // total
    remainders = counts * size % total
    extra = torch.argsort(remainders, descending=True, stable=True)[: size - int(shares.sum())]
    shares[extra] += 1
    shuffled = torch.randperm(total, generator=generator("stratified", *key))
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    firsts = torch.cumsum(counts, 0) - counts
    chosen = torch.cat([by_class[f : f + n] for f, n in zip(firsts.tolist(), shares.tolist())]).sort().values
    mask = torch.ones(total, dtype=torch.bool)
    mask[chosen] = False
    return chosen, mask.nonzero().flatten()


def train_val_indices(labels: Tensor, val_size: int, val_seed: int, train_size: int | None) -> tuple[Tensor, Tensor]:
    """Split a training set into training and validation images, both stratified and fixed by `val_seed`.

    Args:
        labels: int64 [N] of the whole training set.
        val_size: images held out for validation, 0..N-1; 0 gives an empty validation split.
        val_seed: fixes both choices.
        train_size: how many of the remaining images to train on; None: all.

    Returns:
        (train int64 [...], val int64 [val_size]), ascending and disjoint.

    Raises:
        DataError: if a size cannot be given.
    """
    total = len(labels)
    if not 0 <= val_size < total:
        raise DataError(f"val_size: expected 0..{total - 1} (the training set has {total} images), got {val_size}")
    val, train = stratified(labels, val_size, ("val", val_seed))
    if train_size is not None:
        if not 1 <= train_size <= len(train):
            raise DataError(
                f"train_size: expected 1..{len(train)} ({total} training images less {val_size} for validation),"
                f" got {train_size}"
            )
        chosen, _ = stratified(labels[train], train_size, ("train", val_seed))
        train = train[chosen]
    return train, val


def kept_and_held_out(labels: Tensor, options: Options, *, own_val: bool) -> tuple[Tensor, Tensor]:
    """Training and validation images of a dataset without a size of its own for either.

    Args:
        labels: int64 [N] of the whole training set.
        options: `val_size` None holds out a tenth.
        own_val: the dataset brings a validation split, so nothing is held out.

    Returns:
        As `train_val_indices`.

    Raises:
        DataError: if a size cannot be given, `val_size` has no meaning, or a label is negative.
    """
    if own_val and options.val_size is not None:
        raise DataError("val_size: there is a validation split already; leave out one of the two")
    if len(labels) and int(labels.min()) < 0:
        raise DataError(f"train labels: expected classes from 0, got {int(labels.min())}")
    tenth = 0 if own_val else len(labels) // 10
    val_size = tenth if options.val_size is None else options.val_size
    return train_val_indices(labels, val_size, options.val_seed, options.train_size)
