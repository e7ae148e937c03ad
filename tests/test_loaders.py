"""Every loader gives the batches of `Data`; `open_loader` chooses one and says why."""

from __future__ import annotations

import pytest
import torch
from small_data import attributes, coloured, make, texts

from lit_fast.data import DataError
from lit_fast.data.loaders import NAMES, open_loader

LOADERS = ["torch", "resident"]  # what runs everywhere


DATA = {"grey": make, "coloured": coloured, "texts": texts, "attributes": attributes}


def same(got, expected) -> None:
    got, expected = list(got), list(expected)
    assert len(got) == len(expected)
    for (inputs, labels), (right_inputs, right_labels) in zip(got, expected):
        assert inputs.dtype is right_inputs.dtype
        assert torch.equal(inputs, right_inputs)
        assert labels.dtype is right_labels.dtype
        assert torch.equal(labels, right_labels)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"start_step": 2},
        {"augment": False},
        {"shard": (0, 2)},
        {"shard": (1, 2), "start_step": 1},
        {"shard": (2, 3)},
    ],
    ids=str,
)
def test_training_batches_are_those_of_the_data_bit_by_bit(name, kind, request_):
    data = DATA[kind]()
    with open_loader(data, name) as loader:
        for epoch in (0, 3):
            arguments = {"batch_size": 8, "seed": 5, **request_}
            same(loader.train_batches(epoch, **arguments), data.train_batches(epoch, **arguments))


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_evaluation_batches_are_those_of_the_data_bit_by_bit(name, kind, split):
    data = DATA[kind]()
    with open_loader(data, name) as loader:
        same(loader.eval_batches(split, batch_size=8), data.eval_batches(split, batch_size=8))


@pytest.mark.parametrize("name", LOADERS)
def test_images_come_channels_last_where_that_is_wanted(name):
    data = coloured()
    with open_loader(data, name, channels_last=True) as loader:
        same(loader.train_batches(0, batch_size=8, seed=0), data.train_batches(0, batch_size=8, seed=0))
        for batches in (loader.train_batches(0, batch_size=8, seed=0), loader.eval_batches("val", batch_size=4)):
            images, _ = next(batches)
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert not images.is_contiguous()
    with open_loader(texts(), name, channels_last=True) as loader:
        assert next(loader.eval_batches("val", batch_size=4))[0].shape == (4, 12)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda loader: loader.train_batches(0, batch_size=0, seed=0), "batch_size: expected an integer >= 1, got 0"),
        (lambda loader: loader.train_batches(-1, batch_size=4, seed=0), "epoch: expected an integer >= 0, got -1"),
        (
            lambda loader: loader.train_batches(0, batch_size=50, seed=0, start_step=4),
            r"start_step: expected 0\.\.3 .*got 4",
        ),
        (lambda loader: loader.train_batches(0, batch_size=5, seed=0, shard=(2, 2)), r"shard: expected \(rank, size\)"),
        (lambda loader: loader.eval_batches("training", batch_size=4), "no split 'training'; choose train, val or"),
    ],
)
def test_impossible_requests_are_refused_at_the_call(name, call, message):
    with open_loader(make(), name) as loader, pytest.raises(DataError, match=message):
        call(loader)


def test_a_loader_that_does_not_exist_is_refused_by_name():
    with pytest.raises(DataError, match="there is no loader 'fast'; choose from auto, resident, dali, torch"):
        open_loader(make(), "fast")


@pytest.mark.parametrize("name", LOADERS)
def test_loaders_say_who_they_are_and_why(name):
    with open_loader(make(), name) as loader:
        assert loader.name == name
        assert loader.reason.endswith("requested")
    with open_loader(make()) as loader:
        assert loader.name in NAMES[1:]
        assert loader.reason
        assert "\n" not in loader.reason
