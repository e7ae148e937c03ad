"""Batches are pure functions of (seed, epoch, step); the splits stay apart; `Data` checks itself."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import islice

import pytest
import torch
from small_data import make, numbered, texts
from torch import Tensor

from lit_fast.data import Augmentation, Data, DataError, TensorSplit, from_arrays


def numbers_of(images: Tensor) -> list[int]:
    """Which numbered images a batch holds; the centre survives every crop."""
    return (images[:, 0, 4, 4] * 255).round().int().tolist()


@pytest.mark.parametrize("start", [0, 1, 3, 6, 7])
def test_a_resumed_epoch_continues_bit_by_bit(start):
    data = make()
    whole = list(data.train_batches(4, batch_size=16, seed=9))
    resumed = list(data.train_batches(4, batch_size=16, seed=9, start_step=start))
    assert len(resumed) == len(whole) - start
    for (images, labels), (images_again, labels_again) in zip(whole[start:], resumed):
        assert torch.equal(images, images_again)
        assert torch.equal(labels, labels_again)


def test_a_batch_does_not_depend_on_what_was_drawn_before():
    data = make()
    expected = next(data.train_batches(1, batch_size=16, seed=0))
    torch.manual_seed(123)
    list(islice(data.train_batches(0, batch_size=7, seed=5), 3))
    torch.rand(10)
    assert torch.equal(next(data.train_batches(1, batch_size=16, seed=0))[0], expected[0])


def test_an_epoch_holds_every_image_once_and_a_smaller_last_batch():
    data = make()
    batches = list(data.train_batches(0, batch_size=16, seed=0))
    assert [len(labels) for _, labels in batches] == [16] * 6 + [7]
    assert data.steps_per_epoch(16) == 7
    numbers = [number for images, _ in batches for number in numbers_of(images)]
    assert sorted(numbers) == list(range(103))
    assert torch.cat([labels for _, labels in batches]).tolist() == [number % 5 for number in numbers]


def test_batches_are_contiguous_float32_images_and_int64_labels():
    for batches in (make().train_batches(0, batch_size=8, seed=0), make().eval_batches("test", batch_size=8)):
        images, labels = next(batches)
        assert images.shape == (8, 1, 8, 8)
        assert images.dtype is torch.float32
        assert images.is_contiguous()
        assert labels.shape == (8,)
        assert labels.dtype is torch.int64


def test_without_augmentation_the_same_images_come_untouched_in_the_same_order():
    data = make()
    for (augmented, labels), (plain, plain_labels) in zip(
        data.train_batches(0, batch_size=16, seed=0), data.train_batches(0, batch_size=16, seed=0, augment=False)
    ):
        assert torch.equal(labels, plain_labels)
        assert numbers_of(augmented) == numbers_of(plain)
        assert torch.equal(plain, plain[:, :, :1, :1].expand_as(plain))
        assert not torch.equal(plain, augmented)


@pytest.mark.parametrize(("split", "first", "count"), [("train", 0, 103), ("val", 110, 20), ("test", 140, 30)])
def test_evaluation_is_in_fixed_order_and_not_augmented(split, first, count):
    batches = list(make().eval_batches(split, batch_size=16))
    assert [n for images, _ in batches for n in numbers_of(images)] == list(range(first, first + count))
    assert all(torch.equal(images, images[:, :, :1, :1].expand_as(images)) for images, _ in batches)


def test_texts_come_as_int64_tokens_that_are_neither_normalised_nor_augmented():
    data = texts()
    order = torch.cat([labels for _, labels in data.train_batches(0, batch_size=8, seed=1)])
    tokens = torch.cat([tokens for tokens, _ in data.train_batches(0, batch_size=8, seed=1)])
    assert tokens.dtype is torch.int64
    assert not torch.equal(order, data.train.labels)  # shuffled
    kept = {tuple(row) for row in data.train.fetch(torch.arange(20)).tolist()}
    assert {tuple(row) for row in tokens.tolist()} == kept
    ((in_order, labels),) = data.eval_batches("test", batch_size=8)
    assert torch.equal(in_order, data.test.fetch(torch.arange(6)).long())
    assert torch.equal(labels, data.test.labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augmentation": Augmentation(flip=True)}, "texts are not augmented"),
        ({"mean": (0.5,)}, "mean needs 0 finite values"),
        ({"shape": (3, 4)}, r"shape: expected \(C, H, W\) of images or \(L,\) of texts, got \(3, 4\)"),
        ({"shape": (0,)}, "shape: expected"),
    ],
)
def test_texts_that_do_not_fit_are_refused_when_they_are_made(changes, message):
    with pytest.raises(DataError, match=f"texts: .*{message}"):
        texts(**changes)


def test_an_empty_split_gives_no_batches():
    data = from_arrays(numbered(20), test=numbered(10), val_size=0)
    assert list(data.eval_batches("val", batch_size=4)) == []


class Recording(TensorSplit):
    """Remembers which fetches were made, and in which thread."""

    def __init__(self, split: TensorSplit, *, ahead: bool) -> None:
        super().__init__(split.images, split.images[:, 0, 0, 0].long() % 5, split.indices)
        self.ahead = ahead
        self.fetched: list[int] = []
        self.threads: set[int] = set()

    def fetch(self, indices: Tensor) -> Tensor:
        self.fetched.append(len(indices))
        self.threads.add(threading.get_ident())
        return super().fetch(indices)


def recording(ahead: bool) -> tuple[Data, Recording]:
    data = make()
    assert isinstance(data.train, TensorSplit)
    split = Recording(data.train, ahead=ahead)
    return replace(data, train=split), split


def test_skipped_batches_are_not_fetched():
    data, split = recording(ahead=False)
    list(data.train_batches(0, batch_size=16, seed=0, start_step=5))
    assert split.fetched == [16, 7]


def test_slow_splits_are_read_one_batch_ahead_and_give_the_same_batches():
    data, split = recording(ahead=True)
    expected = list(make().train_batches(0, batch_size=16, seed=0))
    batches = data.train_batches(0, batch_size=16, seed=0)
    got = [next(batches)]
    assert len(split.fetched) <= 3  # this one, the next, and the one after being asked for: never the whole epoch
    got += list(batches)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(got, expected))
    assert len(got) == len(expected)
    assert threading.get_ident() not in split.threads


def test_an_abandoned_epoch_leaves_no_thread():
    data, _ = recording(ahead=True)
    batches = data.train_batches(0, batch_size=16, seed=0)
    next(batches)
    del batches
    assert not [t for t in threading.enumerate() if t.name.startswith("lit_fast-fetch")]


def test_an_error_while_reading_ahead_reaches_the_caller():
    data, split = recording(ahead=True)

    def broken(indices: Tensor) -> Tensor:
        raise DataError("picture.png: cannot be decoded")

    split.fetch = broken  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"picture\.png"):
        next(data.train_batches(0, batch_size=16, seed=0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda data: data.train_batches(0, batch_size=0, seed=0), "batch_size: expected an integer >= 1, got 0"),
        (lambda data: data.train_batches(-1, batch_size=4, seed=0), "epoch: expected an integer >= 0, got -1"),
        (
            lambda data: data.train_batches(0, batch_size=50, seed=0, start_step=4),
            r"start_step: expected 0\.\.3 .*got 4",
        ),
        (lambda data: data.eval_batches("train ", batch_size=4), "no split 'train '; choose train, val or test"),
        (lambda data: data.eval_batches("val", batch_size=True), "batch_size: expected an integer"),
    ],
)
def test_impossible_requests_are_refused_at_the_call(call, message):
    with pytest.raises(DataError, match=message):
        call(make())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.5, 0.5)}, "mean needs 1 finite values"),
        ({"std": (float("nan"),)}, "std needs 1 finite values"),
        ({"std": (0.0,)}, "std must be > 0"),
        ({"num_classes": 4}, r"label 4 of image 4 in the train split is outside 0\.\.3 \(4 classes\)"),
    ],
)
def test_data_that_does_not_fit_is_refused_when_it_is_made(changes, message):
    with pytest.raises(DataError, match=f"arrays: .*{message}"):
        make(**changes)


def test_the_fingerprint_is_repeatable_and_follows_everything_that_decides_the_batches():
    first = make().fingerprint
    assert first == make().fingerprint
    images, labels = numbered(103)
    touched, relabelled = images.clone(), labels.clone()
    touched[50, 0, 3, 3] += 1
    relabelled[7] = (relabelled[7] + 1) % 5
    rest = {"test": numbered(30, 140), "num_classes": 5, "mean": (0.0,), "std": (1.0,)}
    rest["augmentation"] = Augmentation(pad=2, flip=True)
    others = [
        from_arrays((touched, labels), numbered(20, 110), **rest),
        from_arrays((images, relabelled), numbered(20, 110), **rest),
        from_arrays((images, labels), numbered(20, 111), **rest),
        make(train_size=100),
        make(train_size=100, val_seed=1),
        make(mean=(0.1,)),
        make(augmentation=Augmentation(pad=1, flip=True)),
        make(num_classes=6),
        make(name="other"),
    ]
    fingerprints = {first, *(data.fingerprint for data in others)}
    assert len(fingerprints) == 1 + len(others)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_made_on_the_gpu_equal_those_made_on_the_cpu():
    data = make(mean=(0.4914,), std=(0.247,))
    for (images, labels), (cuda_images, cuda_labels) in zip(
        data.train_batches(0, batch_size=16, seed=0), data.train_batches(0, batch_size=16, seed=0, device="cuda")
    ):
        assert cuda_images.device.type == "cuda"
        assert torch.equal(images, cuda_images.cpu())
        assert torch.equal(labels, cuda_labels.cpu())
