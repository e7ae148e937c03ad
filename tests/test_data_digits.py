"""The bundled digits: sizes, splits that stay apart, and the error without scikit-learn."""

import hashlib
import sys

import pytest
import torch

from lit_fast.data import Augmentation, DataError, open_data


def test_digits_have_their_documented_sizes_and_defaults():
    data = open_data("digits")
    assert (len(data.train), len(data.val), len(data.test)) == (1257, 180, 360)
    assert data.shape == (1, 16, 16)
    assert data.num_classes == 10
    assert data.augmentation == Augmentation(pad=2, flip=False)
    images, labels = next(data.eval_batches("test", batch_size=360))
    assert images.shape == (360, 1, 16, 16)
    assert torch.bincount(labels).min() >= 34  # stratified: 1,797 images, 174 to 183 per class


def test_training_images_are_normalised():
    images, _ = next(open_data("digits").eval_batches("train", batch_size=1257))
    assert abs(float(images.mean())) < 1e-4
    assert abs(float(images.std()) - 1) < 1e-3


def test_the_splits_share_no_image():
    data = open_data("digits")
    indices = torch.cat([split.indices for split in (data.train, data.val, data.test)])
    assert torch.equal(indices.sort().values, torch.arange(1797))
    hashes = [
        {hashlib.sha256(image.numpy().tobytes()).digest() for image in split.fetch(torch.arange(len(split)))}
        for split in (data.train, data.val, data.test)
    ]
    assert not hashes[0] & hashes[1]
    assert not hashes[0] & hashes[2]
    assert not hashes[1] & hashes[2]


def test_the_test_split_never_moves():
    data, other = open_data("digits"), open_data("digits", val_seed=5, val_size=100, train_size=300)
    assert torch.equal(data.test.indices, other.test.indices)
    assert not torch.equal(data.val.indices[:100], other.val.indices)
    assert (len(other.train), len(other.val)) == (300, 100)


def test_digits_open_the_same_every_time():
    assert open_data("digits").fingerprint == open_data("digits").fingerprint
    assert open_data("digits").fingerprint != open_data("digits", image_size=8).fingerprint


def test_the_image_size_is_an_option():
    data = open_data("digits", image_size=8)
    assert data.shape == (1, 8, 8)
    assert data.augmentation.pad == 1
    assert int(data.train.fetch(torch.arange(100)).max()) == 255


def test_without_scikit_learn_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"scikit-learn.*pip install scikit-learn"):
        open_data("digits")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_size": 1437}, r"val_size: expected 0\.\.1436"),
        ({"train_size": 1258}, r"train_size: expected 1\.\.1257"),
        ({"val_size": -1}, "val_size: expected an integer >= 0, got -1"),
        ({"train_size": 0}, "train_size: expected an integer >= 1, got 0"),
        ({"image_size": 16.0}, "image_size: expected an integer >= 1, got 16.0"),
        ({"val_seed": "0"}, "val_seed: expected an integer, got '0'"),
        ({"mean": "0.5"}, "mean: expected numbers, one per channel, got '0.5'"),
        ({"std": ()}, "std: expected numbers, one per channel"),
        ({"mean": (0.5, 0.5, 0.5)}, "digits: mean needs 1 finite values"),
        ({"augmentation": "none"}, "augmentation: expected lit_fast.data.Augmentation"),
        ({"data_dir": "here"}, "leave data_dir out"),
    ],
)
def test_impossible_options_are_refused_by_name(options, message):
    with pytest.raises(DataError, match=message):
        open_data("digits", **options)


def test_an_unknown_dataset_is_refused_with_the_names():
    with pytest.raises(DataError, match="no dataset 'mnist'; choose from digits, cifar10, cifar100, folder"):
        open_data("mnist")
