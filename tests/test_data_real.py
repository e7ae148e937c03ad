"""Real CIFAR archives, where LIT_FAST_TEST_DATA names a folder that holds them."""

from __future__ import annotations

import hashlib
import os

import pytest
import torch

from lit_fast.data import Data, DataError, open_data

ROOT = os.environ.get("LIT_FAST_TEST_DATA", "")


@pytest.fixture(scope="module", params=["cifar10", "cifar100"])
def data(request) -> Data:
    if not ROOT:
        pytest.skip("set LIT_FAST_TEST_DATA to a folder that holds CIFAR archives")
    try:
        return open_data(request.param, data_dir=ROOT)
    except DataError as error:
        if "holds no" in str(error):
            pytest.skip(str(error))
        raise


def test_sizes_and_classes_are_the_published_ones(data):
    assert (len(data.train), len(data.val), len(data.test)) == (45_000, 5_000, 10_000)
    assert torch.bincount(data.test.labels).tolist() == [10_000 // data.num_classes] * data.num_classes
    assert torch.bincount(data.val.labels).tolist() == [5_000 // data.num_classes] * data.num_classes


def test_no_row_is_in_two_splits(data):
    assert not set(data.train.indices.tolist()) & set(data.val.indices.tolist())


def test_cifar10_has_no_picture_in_two_splits(data):
    if data.name != "cifar10":
        pytest.skip("CIFAR-100 as published repeats some pictures")
    seen = [
        {hashlib.sha256(image.numpy().data).digest() for image in split.fetch(torch.arange(len(split)))}
        for split in (data.train, data.val, data.test)
    ]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def test_the_normalisation_fits_the_training_images(data):
    pixels = data.train.fetch(torch.arange(0, 45_000, 5)).float() / 255
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.tensor(data.mean), rtol=0, atol=5e-3)
    torch.testing.assert_close(pixels.std((0, 2, 3)), torch.tensor(data.std), rtol=0, atol=5e-3)
