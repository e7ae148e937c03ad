"""Datasets whose items go to the networks as they are: tensors, tuples and dicts, batched by a collate function.

Whatever is random in a dataset or its transforms draws from generators that are seeded for each item, by the seed of
the run, the epoch and the item's place in it: a resumed run draws the same.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from lit_fast.data.augment import Augmentation
from lit_fast.data.base import SPLITS, Batch, Data, Split, TrainingPlan
from lit_fast.data.tables import generator
from lit_fast.errors import DataError
from lit_fast.sections.inputs import Inputs, replaced, without_labels

__all__ = ["SAMPLE", "Collate", "ItemData", "ItemSplit", "length", "looked_at", "of_items"]

SAMPLE = 1_000  # items that statistics look at, and the fingerprint of a dataset that is too large to be read whole
WHOLE = 20_000  # items of a dataset that the fingerprint reads whole: for more, reading may take minutes

Collate = Callable[[list[Any]], Any]  # a list of items -> a batch


class ItemSplit(Split):
    """A map-style dataset; `labels` is empty, for a batch brings its own."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset, self.name = dataset, name
        self.labels = torch.empty(0, dtype=torch.int64)
        self._length = length(dataset, name)

    def __len__(self) -> int:
        return self._length

    def fetch(self, indices: Tensor) -> Any:
        """The items at `indices`, in a list."""
        return self.items(indices, range(len(indices)), self.name)

    def items(self, indices: Tensor, places: Sequence[int], *key: int | str) -> list[Any]:
        """The items at `indices`; what is random in each follows from `key` and its place."""
        found = []
        for at, place in zip(indices.tolist(), places):
            _seed(*key, place)
            found.append(self.dataset[at])
        return found

    def digest(self) -> bytes:
        """A hash of the items that `looked_at` gives."""
        sha = hashlib.sha256()
        with _random_state_kept():
            for indices in looked_at(len(self)):
                for item in self.fetch(indices):
                    _hash(sha, item)
        return sha.digest()


@dataclass(frozen=True, eq=False)
class ItemData(Data):
    """A dataset of `ItemSplit`s.

    Args:
        shape: of an item's inputs where these are one tensor; else ().
        classes: () where their number is not known.
        collate: makes a batch of a list of items: (inputs, labels), or a dict with "labels".
    """

    collate: Collate = default_collate

    def __post_init__(self) -> None:
        if not len(self.train):
            raise DataError(f"{self.name}: the training split is empty")

    @property
    def items(self) -> str:
        return "items"

    @property
    def collated(self) -> bool:
        return True

    def example(self, batch: int, device: torch.device | str = "cpu") -> Inputs:
        split = "val" if len(self.val) else "train"
        rows = torch.arange(min(batch, len(self.split(split))))
        return self._batch(split, rows, range(len(rows)), (split,), device)[0]

    def planned_batches(self, plan: TrainingPlan, device: torch.device | str = "cpu") -> Iterator[Batch]:
        key = ("train", plan.seed, plan.epoch)
        for place in plan.left:
            yield self._batch("train", plan.tables.order[place], range(place.start, place.stop), key, device)

    def eval_batches(self, split: str, *, batch_size: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
        places = [range(place.start, place.stop) for place in self.eval_places(split, batch_size=batch_size)]
        return (self._batch(split, torch.tensor(place), place, (split,), device) for place in places)

    def _batch(
        self, split: str, indices: Tensor, places: Sequence[int], key: Sequence[int | str], device: torch.device | str
    ) -> Batch:
        if not len(indices):  # this process has no row of a small last batch
            return torch.empty(0, device=device), None
        source = self.split(split)
        assert isinstance(source, ItemSplit)
        with _random_state_kept():
            batch = self.collate(source.items(indices, places, *key))
        inputs, labels = self._taken_apart(split, batch)
        target = torch.device(device)
        return replaced((inputs, labels), lambda value: _moved(value, target))

    def _taken_apart(self, split: str, batch: Any) -> Batch:
        if isinstance(batch, Mapping):
            inputs, labels = without_labels(batch, None)
        elif isinstance(batch, (tuple, list)) and len(batch) == 2:
            inputs, labels = batch
        else:
            got = f"{len(batch)} values" if isinstance(batch, (tuple, list)) else type(batch).__name__
            raise DataError(
                f"{self.name}: expected items (inputs, label), or dicts with 'labels', got a batch of {got} from the "
                f"{split} split; put several inputs into a tuple or a dict of their own"
            )
        if labels is not None and not isinstance(labels, Tensor):
            raise DataError(
                f"{self.name}: expected the labels of a batch to be a tensor, got {type(labels).__name__} from the "
                f"{split} split; make them one in `collate`"
            )
        return inputs, labels


def of_items(
    splits: Mapping[str, Any], collate: Collate, *, num_classes: int | None = None, name: str = "datasets"
) -> ItemData:
    """A dataset of map-style datasets, by split.

    Raises:
        DataError: a split is missing, or not map-style, or its items give no batch.
    """
    missing = [split for split in SPLITS if splits.get(split) is None]
    if missing:
        raise DataError(
            f"{name}: expected the datasets train, val and test, got no {' and no '.join(missing)}; hold items out of "
            "train for it (torch.utils.data.random_split)"
        )
    if num_classes is not None and (isinstance(num_classes, bool) or not isinstance(num_classes, int)):
        raise DataError(f"{name}: num_classes: expected an integer, got {num_classes!r}")
    train, val, test = (ItemSplit(splits[split], f"{name}: {split}") for split in SPLITS)
    classes = tuple(map(str, range(num_classes or 0)))
    whole = ItemData(name, (), classes, (), (), Augmentation(), train, val, test, collate=collate)
    inputs = whole.example(2)
    return replace(whole, shape=tuple(inputs.shape[1:])) if isinstance(inputs, Tensor) else whole


def looked_at(size: int) -> Iterator[Tensor]:
    """The items that a fingerprint is of, `SAMPLE` at a time: all of up to `WHOLE`, of more some, evenly spaced."""
    count = size if size <= WHOLE else SAMPLE
    yield from torch.split(torch.arange(count) * size // max(count, 1), SAMPLE)


def length(dataset: Any, name: str) -> int:
    """The number of items of a map-style dataset.

    Raises:
        DataError: it is none, or empty.
    """
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise DataError(
            f"{name}: expected a map-style dataset (with __len__ and __getitem__), got {type(dataset).__name__}; "
            + (
                "give its .dataset"
                if hasattr(dataset, "dataset")
                else "read an iterable one into memory and use from_arrays"
            )
        )
    size = len(dataset)
    if not size:
        raise DataError(f"{name}: the dataset is empty")
    return size


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Of torch on the CPU, of Python, and of NumPy where it is in use."""
    numpy = sys.modules.get("numpy")
    pythons, numpys = random.getstate(), None if numpy is None else numpy.random.get_state()
    try:
        with torch.random.fork_rng([]):
            yield
    finally:
        random.setstate(pythons)
        if numpy is not None:
            numpy.random.set_state(numpys)


def _seed(*key: int | str) -> None:
    number = generator("item", *key).initial_seed()
    torch.default_generator.manual_seed(number)
    random.seed(number)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(number % 2**32)


def _hash(sha: Any, value: Any) -> None:
    """Add what a value holds: tensors, arrays and images by their bytes."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            sha.update(repr(key).encode())
            _hash(sha, item)
    elif isinstance(value, (tuple, list)):
        sha.update(str(len(value)).encode())
        for item in value:
            _hash(sha, item)
    elif isinstance(value, Tensor):
        sha.update(repr((tuple(value.shape), value.dtype)).encode())
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif hasattr(value, "tobytes"):
        sha.update(value.tobytes())
    else:
        sha.update((repr(value) if isinstance(value, (str, bytes, int, float)) else type(value).__name__).encode())
