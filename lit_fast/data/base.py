"""`Data`: one dataset in three splits that are kept apart, and the batches made from them."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_fast.data.ahead import read_ahead
from lit_fast.data.augment import Augmentation, crop_and_flip, normalise
from lit_fast.data.tables import EpochTables, epoch_tables, share
from lit_fast.errors import DataError

# Images float32 [B, C, H, W] or tokens int64 [B, L], and labels int64 [B] or float32 [B, classes] (attributes).
# Of `lit_fast.data.items`: what the networks take, and labels or None.
Batch = tuple[Any, Any]
SPLITS = ("train", "val", "test")


class Split(ABC):
    """Images and labels of one split, or texts as rows of tokens and labels.

    `labels` is int64 [N], or float32 [N, classes] of 0 and 1 where an image has several attributes. `ahead` says that
    `fetch` takes long enough (decoding files) for the next batch to be fetched in a thread while the current one is
    used.
    """

    labels: Tensor
    ahead: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def fetch(self, indices: Tensor) -> Tensor:
        """Images at `indices` (int64 [B]) as uint8 [B, C, H, W], or tokens as uint8 [B, L]."""

    @abstractmethod
    def digest(self) -> bytes:
        """A hash of the images or tokens in their order; the labels are hashed by `Data`."""

    def read(self, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
        """What `fetch` gives, looked at: it may be a user's.

        Raises:
            DataError: it is not uint8, or not of as many rows of this shape.
        """
        found = self.fetch(indices)
        wanted = (len(indices), *shape)
        if not isinstance(found, Tensor) or found.dtype != torch.uint8 or tuple(found.shape) != wanted:
            got = type(found).__name__
            if isinstance(found, Tensor):
                got = f"{str(found.dtype).removeprefix('torch.')} {tuple(found.shape)}"
            raise DataError(
                f"{type(self).__name__}: expected fetch to give uint8 {wanted}, got {got}; give pixels as "
                "they are, 0..255: they are normalised by mean and std"
            )
        return found


class TensorSplit(Split):
    """A split held in memory: the rows `indices` of a uint8 tensor that several splits may share.

    Args:
        images: uint8 [M, C, H, W], or tokens [M, L].
        labels: int64 [M], one per image of `images`.
        indices: int64 [N], which rows make the split, in order; None: all.
    """

    def __init__(self, images: Tensor, labels: Tensor, indices: Tensor | None = None) -> None:
        if images.dtype != torch.uint8:
            raise DataError(f"TensorSplit: expected images as uint8, pixels 0..255, or tokens, got {images.dtype}")
        self.images = images
        self.indices = torch.arange(len(images)) if indices is None else indices
        self.labels = labels[self.indices]

    def fetch(self, indices: Tensor) -> Tensor:
        return self.images[self.indices[indices]]

    def digest(self) -> bytes:
        sha = hashlib.sha256()
        for rows in torch.split(self.indices, 4096):
            sha.update(self.images[rows].contiguous().numpy().data)
        return sha.digest()


@dataclass(frozen=True)
class TrainingPlan:
    """What one process's training batches of an epoch are made of.

    Attributes:
        epoch, batch_size, seed, start_step, augment, shard: as `Data.train_batches` was asked.
        tables: those of the whole epoch, with crop offsets in 0..2*`pad`.
        places: of every batch of the epoch, the positions in `tables` of this process's rows.
    """

    epoch: int
    batch_size: int
    seed: int
    start_step: int
    augment: bool
    shard: tuple[int, int]
    tables: EpochTables
    pad: int
    places: list[slice]

    @property
    def left(self) -> list[slice]:
        """`places` without the batches that are skipped."""
        return self.places[self.start_step :]


@dataclass(frozen=True, eq=False)
class Data:
    """One dataset: three splits kept apart, and how their images or texts become network input.

    Args:
        name: what the dataset is called in messages and reports.
        shape: (C, H, W) of one image, or (L,) of one text: the number of its tokens.
        classes: class names; their number is `num_classes`, and labels are positions in it.
        mean, std: per-channel normalisation in units of full scale (0..1); () for texts.
        augmentation: what training batches go through; `Augmentation()` is none, the only one for texts.
        train, val, test: the splits; `val` may be empty.
        left_out: files that are in no split because they cannot be decoded, each with the reason.

    Raises:
        DataError: if the shape, a split's labels, the channel counts, the standard deviations or the augmentation do
            not fit.
    """

    name: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    train: Split
    val: Split
    test: Split
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.shape) not in (1, 3) or min(self.shape) < 1:
            raise DataError(f"{self.name}: shape: expected (C, H, W) of images or (L,) of texts, got {self.shape}")
        if self.is_text and self.augmentation != Augmentation():
            raise DataError(f"{self.name}: texts are not augmented, got {self.augmentation}; use Augmentation()")
        channels = 0 if self.is_text else self.shape[0]
        for what, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels or not all(math.isfinite(v) for v in values):
                raise DataError(f"{self.name}: {what} needs {channels} finite values (one per channel), got {values}")
        if any(value <= 0 for value in self.std):
            raise DataError(f"{self.name}: std must be > 0 in every channel, got {self.std}")
        if not len(self.train):
            raise DataError(f"{self.name}: the training split is empty")
        if any(abs(value) > 1 for value in (*self.mean, *self.std)):
            raise DataError(
                f"{self.name}: mean and std are in units of full scale, 0..1, got {self.mean} and {self.std}; divide "
                "those of pixels in 0..255 by 255"
            )
        for name in SPLITS:
            split = self.split(name)
            if not isinstance(split, Split):
                raise DataError(
                    f"{self.name}: {name}: expected a lit_fast.data.Split, got {type(split).__name__}; use from_arrays "
                    "or from_datasets"
                )
            self._check_labels(name, split.labels)

    def _check_labels(self, split: str, labels: Tensor) -> None:
        if not isinstance(labels, Tensor) or labels.dtype not in (torch.int64, torch.float32):
            got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise DataError(f"{self.name}: labels of the {split} split: expected a tensor of int64, got {got}")
        if labels.is_floating_point():
            if labels.dim() != 2 or labels.shape[1] != self.num_classes or not ((labels == 0) | (labels == 1)).all():
                raise DataError(
                    f"{self.name}: attributes of the {split} split: expected 0 and 1, (N, {self.num_classes}), got "
                    f"{tuple(labels.shape)} from {labels.min():g} to {labels.max():g}"
                )
            return
        bad = ((labels < 0) | (labels >= self.num_classes)).nonzero()
        if len(bad):
            at = int(bad[0])
            raise DataError(
                f"{self.name}: label {int(labels[at])} of image {at} in the {split} split is outside"
                f" 0..{self.num_classes - 1} ({self.num_classes} classes)"
            )

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def has_attributes(self) -> bool:
        """Whether labels are float32 [N, classes] of 0 and 1, several per image, not one class each."""
        return self.train.labels.is_floating_point()

    @property
    def is_text(self) -> bool:
        """Whether the items are rows of tokens, not images."""
        return len(self.shape) == 1

    @property
    def items(self) -> str:
        """What messages call the items."""
        return "texts" if self.is_text else "images"

    @property
    def collated(self) -> bool:
        """Whether items go to the networks as they are, with labels of any shape (`lit_fast.data.items`)."""
        return False

    @property
    def has_files(self) -> bool:
        """Whether images are decoded from files, which a split then names in `files`."""
        return any(hasattr(self.split(name), "files") for name in SPLITS)

    def split(self, name: str) -> Split:
        """The split called "train", "val" or "test"."""
        if name not in SPLITS:
            raise DataError(f"{self.name}: there is no split {name!r}; choose train, val or test")
        split: Split = getattr(self, name)
        return split

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that decides the batches: images, labels, split, normalisation, augmentation.

        A checkpoint keeps it, so that a run is never resumed on other data.
        """
        return self._hash(self._digests)

    def fingerprint_without(self, files: Collection[str]) -> str:
        """The fingerprint but for the contents of image files that a split names so."""
        digests = {}
        for name in SPLITS:
            split: Any = self.split(name)
            digests[name] = split.digest(files) if hasattr(split, "is_as_it_was") else self._digests[name]
        return self._hash(digests)

    def bad_from_the_beginning(self, file: Path) -> str | None:
        """The name of an image file whose content is what it was when the fingerprint was made."""
        for name in SPLITS:
            split: Any = self.split(name)
            if hasattr(split, "is_as_it_was") and file in split.files:
                return str(split.name(file)) if split.is_as_it_was(file) else None
        return None

    def _hash(self, digests: Mapping[str, bytes]) -> str:
        sha = hashlib.sha256()
        sha.update(repr((self.name, self.shape, self.classes, self.mean, self.std, self.augmentation)).encode())
        for name in SPLITS:
            split = self.split(name)
            sha.update(len(split).to_bytes(8, "little"))
            sha.update(split.labels.contiguous().numpy().data)
            sha.update(digests[name])
        return sha.hexdigest()

    @cached_property
    def _digests(self) -> dict[str, bytes]:
        """Of the images or texts of each split: to compute them may be to read every file."""
        return {name: self.split(name).digest() for name in SPLITS}

    def contents(self) -> dict[str, Any]:
        """What `fingerprint` is a hash of, part by part and fit for JSON, to tell what changed when it did."""
        found: dict[str, Any] = {
            "name": self.name,
            "shape": list(self.shape),
            "classes": list(self.classes),
            "mean": list(self.mean),
            "std": list(self.std),
            "augmentation": str(self.augmentation),
        }
        for name in SPLITS:
            labels = self.split(name).labels
            found[f"{name}.count"] = len(self.split(name))
            found[f"{name}.labels"] = hashlib.sha256(labels.contiguous().numpy().data).hexdigest()
            found[f"{name}.inputs"] = self._digests[name].hex()
        return found

    def network_input(self, raw: Tensor) -> Tensor:
        """What a network is fed: uint8 [B, C, H, W] normalised to float32, or tokens uint8 [B, L] as int64."""
        return raw.to(torch.int64) if self.is_text else normalise(raw, self.mean, self.std)

    def example(self, batch: int, device: torch.device | str = "cpu") -> Any:
        """Network input of the right shape and dtype, [batch, ...], all zeros: a black image, or padding alone."""
        return torch.zeros(batch, *self.shape, dtype=torch.int64 if self.is_text else torch.float32, device=device)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Training batches per epoch; the last one may be smaller."""
        return -(-len(self.train) // _checked(batch_size, "batch_size", 1))

    def train_batches(
        self,
        epoch: int,
        *,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        augment: bool = True,
        device: torch.device | str = "cpu",
        shard: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """Batches of one training epoch in random order, the last one possibly smaller.

        Every batch is a pure function of (seed, epoch, step) and the batch size: a run resumed with `start_step` gets
        the batches an uninterrupted run would get, bit by bit, and the skipped ones are not computed.

        Args:
            epoch: number of the epoch, from 0.
            batch_size: images per batch.
            seed: any integer.
            start_step: batches to skip, 0..steps_per_epoch.
            augment: apply `augmentation`; False gives the images as they are, in the same order.
            device: where the batches go; pixels travel as uint8 and are augmented there.
            shard: (rank, size): of every batch, only the rows that process `rank` of `size` takes (none, where a small
                last batch has fewer rows than there are processes). Together they take every row once.

        Yields:
            (images float32 [B, C, H, W] contiguous and normalised, or tokens int64 [B, L]; labels int64 [B]).

        Raises:
            DataError: at the call, if an argument is out of range.
        """
        plan = self.training_plan(
            epoch, batch_size=batch_size, seed=seed, start_step=start_step, augment=augment, shard=shard
        )
        return self.planned_batches(plan, device)

    def planned_batches(self, plan: TrainingPlan, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """The batches of `train_batches` that are left in a plan."""
        tables, target = plan.tables, torch.device(device)

        def batch(positions: slice, raw: Tensor) -> Batch:
            rows, columns, flips = (
                None if table is None else table[positions].to(target, non_blocking=True)
                for table in (tables.rows, tables.columns, tables.flips)
            )
            moved = crop_and_flip(raw.to(target, non_blocking=True), plan.pad, rows, columns, flips)
            labels = self.train.labels[tables.order[positions]].to(target, non_blocking=True)
            return self.network_input(moved), labels

        fetched = _fetch(self.train, self.shape, [tables.order[place] for place in plan.left])
        return (batch(place, raw) for place, raw in zip(plan.left, fetched))

    def training_plan(
        self,
        epoch: int,
        *,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        augment: bool = True,
        shard: tuple[int, int] = (0, 1),
    ) -> TrainingPlan:
        """What the batches of `train_batches` hold, and how it is augmented; arguments and errors as there."""
        steps = self.steps_per_epoch(batch_size)
        if not 0 <= start_step <= steps:
            raise DataError(f"start_step: expected 0..{steps} (steps per epoch), got {start_step}")
        rank, size = shard
        if not 0 <= rank < size:
            raise DataError(f"shard: expected (rank, size) with 0 <= rank < size, got {shard}")
        augmentation = self.augmentation if augment else Augmentation()
        places = []
        for start in range(0, len(self.train), batch_size):
            rows = share(min(batch_size, len(self.train) - start), rank, size)
            places.append(slice(start + rows.start, start + rows.stop))
        tables = epoch_tables(len(self.train), seed, _checked(epoch, "epoch", 0), augmentation)
        return TrainingPlan(epoch, batch_size, seed, start_step, augment, shard, tables, augmentation.pad, places)

    def eval_batches(self, split: str, *, batch_size: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """All images of a split in their fixed order, without augmentation; the last batch may be smaller.

        Yields:
            As `train_batches`; nothing for an empty split.

        Raises:
            DataError: at the call, if there is no such split or `batch_size` < 1.
        """
        places = self.eval_places(split, batch_size=batch_size)
        chosen, target = self.split(split), torch.device(device)
        fetched = _fetch(chosen, self.shape, [torch.arange(place.start, place.stop) for place in places])
        return (
            (
                self.network_input(raw.to(target, non_blocking=True)),
                chosen.labels[place].to(target, non_blocking=True),
            )
            for place, raw in zip(places, fetched)
        )

    def eval_places(self, split: str, *, batch_size: int) -> list[slice]:
        """The positions in a split of the rows of each batch of `eval_batches`; arguments and errors as there."""
        count, size = len(self.split(split)), _checked(batch_size, "batch_size", 1)
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _checked(value: int, what: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DataError(f"{what}: expected an integer >= {least}, got {value!r}")
    return value


def _fetch(split: Split, shape: tuple[int, ...], places: list[Tensor]) -> Iterator[Tensor]:
    """Images of each batch in turn, read one batch ahead in a thread if the split asks for it."""

    def read(indices: Tensor) -> Tensor:
        return split.read(indices, shape)

    return read_ahead(read, places) if split.ahead else map(read, places)
