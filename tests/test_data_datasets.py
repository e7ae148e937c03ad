"""`from_datasets`: map-style datasets of Pillow images or tensors, read when needed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, Subset, TensorDataset, default_collate

from lit_fast.data import Augmentation, Data, DataError, from_arrays, from_datasets

IMAGES = torch.arange(40 * 3 * 8 * 8).remainder(256).to(torch.uint8).view(40, 3, 8, 8)
LABELS = torch.arange(40) % 4


class Items:
    """A dataset in torchvision's manner; counts what is read."""

    def __init__(self, items, targets=None) -> None:
        self.items = items
        self.read: list[int] = []
        if targets is not None:
            self.targets = targets

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        self.read.append(index)
        return self.items[index]


def plain() -> list[tuple[torch.Tensor, int]]:
    return list(zip(IMAGES, LABELS.tolist()))


def same_as_arrays(data: Data) -> bool:
    arrays = from_arrays((IMAGES, LABELS), test=(IMAGES[:10], LABELS[:10]))
    return all(
        torch.equal(a, b) and torch.equal(x, y)
        for split in ("train", "val", "test")
        for (a, x), (b, y) in zip(data.eval_batches(split, batch_size=7), arrays.eval_batches(split, batch_size=7))
    ) and (data.mean, data.std, len(data.val)) == (arrays.mean, arrays.std, len(arrays.val))


def test_uint8_tensors_give_the_same_batches_as_arrays():
    assert same_as_arrays(from_datasets(plain(), test=plain()[:10]))
    assert same_as_arrays(from_datasets(TensorDataset(IMAGES, LABELS), test=TensorDataset(IMAGES[:10], LABELS[:10])))


def test_floats_in_0_to_1_give_the_same_batches_as_their_pixels():
    items = [(image.float() / 255, label) for image, label in plain()]
    assert same_as_arrays(from_datasets(items, test=items[:10]))


def test_pillow_images_give_the_same_batches_as_their_pixels():
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    items = [(image_module.fromarray(image.permute(1, 2, 0).numpy()), label) for image, label in plain()]
    assert same_as_arrays(from_datasets(items, test=items[:10]))
    grey = [(image.convert("L"), np.int64(label)) for image, label in items]
    assert from_datasets(grey, test=grey).shape == (1, 8, 8)


def test_images_are_read_only_when_needed_where_the_labels_are_known():
    train = Items(plain(), targets=LABELS)
    data = from_datasets(train, test=plain(), mean=(0.5,) * 3, std=(0.5,) * 3, val_size=0)
    train.read.clear()
    next(data.train_batches(0, batch_size=4, seed=0))
    assert len(train.read) == 4


def test_labels_come_from_targets_through_subsets():
    train = Items(plain(), targets=LABELS.tolist())
    data = from_datasets(Subset(train, list(range(20, 40))), plain()[:4], plain()[:8])
    assert torch.equal(data.train.labels, LABELS[20:])
    assert torch.equal(data.train.fetch(torch.arange(20)), IMAGES[20:])
    assert len(data.val) == 4


def test_training_subsets_and_augmentation_are_options():
    data = from_datasets(plain(), test=plain(), train_size=8, val_size=12, augmentation=Augmentation(pad=1, flip=True))
    assert (len(data.train), len(data.val)) == (8, 12)
    assert not set(data.train.indices.tolist()) & set(data.val.indices.tolist())
    first, again = (next(data.train_batches(0, batch_size=8, seed=0))[0] for _ in range(2))
    assert torch.equal(first, again)


def test_the_fingerprint_follows_the_images():
    changed = plain()
    changed[5] = (changed[5][0] + 1, changed[5][1])
    fingerprints = [from_datasets(train, test=plain()).fingerprint for train in (plain(), plain(), changed)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_random_transforms_are_refused():
    class Random(Items):
        def __getitem__(self, index: int):
            image, label = self.items[index]
            return torch.randint(0, 256, image.shape, dtype=torch.uint8), label

    with pytest.raises(DataError, match="train: the dataset gives different images for the same index"):
        from_datasets(Random(plain()), test=plain())


def test_a_label_that_disagrees_with_targets_is_named_when_it_is_read():
    data = from_datasets(Items(plain(), targets=[*LABELS[:39].tolist(), 0]), test=plain(), mean=[0] * 3, std=[1] * 3)
    with pytest.raises(DataError, match="train: item 39 has class 3, its entry in `targets` says 0"):
        list(data.train_batches(0, batch_size=4, seed=0))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(plain())


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (Stream(), "train: expected a map-style dataset .*from_arrays"),
        (3, "train: expected a map-style dataset"),
        ([], "train: the dataset is empty"),
        ([IMAGES[0]], r"train: expected item 0 to be \(image, class\), got Tensor"),
        ([(IMAGES[0], 1.5)], r"train: expected item 0 to be \(image, integer class\), got class 1\.5"),
        ([(IMAGES[0].numpy(), 1)], "train: image 0: expected a Pillow image, .*got ndarray"),
        ([(IMAGES[0, 0], 1)], r"train: image 0: .*got a tensor \(8, 8\)"),
        ([(IMAGES[0].int(), 1)], r"train: image 0: .*got torch\.int32"),
        ([(IMAGES[0].float(), 1)], r"train: image 0: .*got floats in 0\.\.191; remove the normalisation"),
        ([(torch.full((3, 8, 8), torch.nan), 1)], "train: image 0: .*got floats in nan"),
        ([(IMAGES[0], 0), (IMAGES[1, :, :4], 1)], r"train: image 1 has shape \(3, 4, 8\), expected \(3, 8, 8\)"),
        (Items(plain(), targets=[0]), "train: the dataset has 40 items but 1 entries in `targets`"),
        ([(IMAGES[0], -2)] * 3, "expected classes from 0, got -2"),
    ],
)
def test_unfit_datasets_are_refused_by_name(train, message):
    with pytest.raises(DataError, match=message):
        from_datasets(train, test=plain())


def test_a_test_set_is_required():
    with pytest.raises(DataError, match="from_datasets: test is needed"):
        from_datasets(plain())


@pytest.mark.parametrize("collate", [None, default_collate])
def test_one_image_of_thousands_that_changes_changes_the_fingerprint(collate):
    images, labels = torch.zeros(1500, 1, 2, 2, dtype=torch.uint8), torch.arange(1500) % 2
    small = [(images[0], 0), (images[1], 1)]

    def fingerprint() -> str:
        train = list(zip(images, labels.tolist()))
        return from_datasets(train, small, small, collate=collate).fingerprint

    before = fingerprint()
    images[1234, 0, 1, 1] = 1
    assert fingerprint() != before
