"""CIFAR-10 and -100 in every published form, and what is said of broken ones. The archives are small fakes."""

from __future__ import annotations

import pickle
from pathlib import Path

import fake_cifar
import numpy as np
import pytest
import torch

from lit_fast.data import IMAGENET_MEAN, IMAGENET_STD, Augmentation, Data, DataError, open_data
from lit_fast.data.formats import cifar

VAL_SIZE = {"cifar10": 20, "cifar100": 100}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    fake_cifar.shrink(monkeypatch)


def open_fake(name: str, data_dir: Path, **options) -> Data:
    return open_data(name, data_dir=data_dir, **{"val_size": VAL_SIZE[name], **options})


def check(data: Data, name: str) -> None:
    """The whole content: every image and label, in the published order."""
    version = cifar.FAMILIES[name].versions[0]
    parts = [fake_cifar.records(name, file, fake_cifar.TRAIN[name]) for file in range(len(version.train_files))]
    pixels = np.concatenate([part[0] for part in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([part[1] for part in parts])
    for split in (data.train, data.val):
        assert torch.equal(split.fetch(torch.arange(len(split))), torch.from_numpy(pixels)[split.indices])
        assert torch.equal(split.labels, torch.from_numpy(labels)[split.indices])
    pixels, labels = fake_cifar.records(name, len(version.train_files), fake_cifar.TEST[name])
    assert torch.equal(data.test.fetch(torch.arange(len(data.test))), torch.from_numpy(pixels).view(-1, 3, 32, 32))
    assert torch.equal(data.test.labels, torch.from_numpy(labels))


@pytest.mark.parametrize("python2", [True, False])
@pytest.mark.parametrize(("name", "folder"), fake_cifar.FORMS)
def test_every_form_gives_the_images_and_labels_that_were_written(tmp_path, name, folder, python2):
    written = fake_cifar.write(tmp_path, name, folder, python2=python2)
    check(open_fake(name, tmp_path), name)
    check(open_fake(name, written), name)


@pytest.mark.parametrize(("name", "folder"), fake_cifar.FORMS)
def test_archives_are_read_as_downloaded(tmp_path, name, folder):
    written = fake_cifar.write(tmp_path / "unpacked", name, folder)
    tarball = fake_cifar.pack(written, tmp_path / fake_cifar.version_of(name, folder).tarball)
    check(open_fake(name, tarball), name)
    check(open_fake(name, tmp_path), name)
    assert open_fake(name, tarball).fingerprint == open_fake(name, written).fingerprint


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_binary_and_python_versions_are_the_same_data(tmp_path, name):
    opened = [open_fake(name, fake_cifar.write(tmp_path, name, folder)) for n, folder in fake_cifar.FORMS if n == name]
    assert opened[0].fingerprint == opened[1].fingerprint


def test_column_major_pickles_are_understood(tmp_path):
    folder = fake_cifar.write(tmp_path, "cifar10", "cifar-10-batches-py")
    pixels, labels = fake_cifar.records("cifar10", 0, 40)
    content = fake_cifar.python2_pickle(pixels, labels.tolist(), b"labels", column_major=True)
    (folder / "data_batch_1").write_bytes(content)
    check(open_fake("cifar10", folder), "cifar10")


def test_defaults_are_the_papers(tmp_path):
    data = open_fake("cifar10", fake_cifar.write(tmp_path, "cifar10", "cifar-10-batches-bin"))
    assert data.shape == (3, 32, 32)
    assert data.classes[3] == "cat"
    assert data.augmentation == Augmentation(pad=4, flip=True)
    assert data.mean == (0.4914, 0.4822, 0.4465)
    assert data.std == (0.2470, 0.2435, 0.2616)
    data = open_fake("cifar100", fake_cifar.write(tmp_path, "cifar100", "cifar-100-binary"))
    assert data.num_classes == 100
    assert len(set(data.classes)) == 100
    assert list(data.classes) == sorted(data.classes)  # the published order is alphabetical
    assert data.mean != (0.4914, 0.4822, 0.4465)


def test_normalisation_augmentation_and_size_can_be_chosen(tmp_path):
    data = open_fake(
        "cifar10",
        fake_cifar.write(tmp_path, "cifar10", "cifar-10-batches-bin"),
        mean=IMAGENET_MEAN,
        std=list(IMAGENET_STD),
        augmentation=Augmentation(),
        image_size=16,
    )
    assert (data.mean, data.std) == (IMAGENET_MEAN, IMAGENET_STD)
    images, _ = next(data.train_batches(0, batch_size=4, seed=0))
    assert images.shape == (4, 3, 16, 16)


def test_splits_are_stratified_disjoint_and_fixed_by_the_seed(tmp_path):
    folder = fake_cifar.write(tmp_path, "cifar10", "cifar-10-batches-bin")
    data, other = open_fake("cifar10", folder, train_size=100), open_fake("cifar10", folder, val_seed=1)
    assert (len(data.train), len(data.val), len(data.test)) == (100, 20, 20)
    assert torch.equal(torch.bincount(data.val.labels), torch.full((10,), 2))
    assert torch.equal(torch.bincount(data.train.labels), torch.full((10,), 10))
    assert not set(data.train.indices.tolist()) & set(data.val.indices.tolist())
    assert not torch.equal(data.val.indices, other.val.indices)


def test_a_missing_file_is_named(tmp_path):
    folder = fake_cifar.write(tmp_path, "cifar10", "cifar-10-batches-bin")
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin: missing"):
        open_fake("cifar10", tmp_path)


@pytest.mark.parametrize("change", [-1, 1, -3073])
def test_a_file_of_the_wrong_size_is_named_with_both_sizes(tmp_path, change):
    folder = fake_cifar.write(tmp_path, "cifar10", "cifar-10-batches-bin")
    content = (folder / "test_batch.bin").read_bytes()
    (folder / "test_batch.bin").write_bytes(content[:change] if change < 0 else content + b"x")
    size = len(content)
    with pytest.raises(DataError, match=rf"test_batch\.bin: expected {size} bytes .*got {size + change};.*truncated"):
        open_fake("cifar10", tmp_path)


@pytest.mark.parametrize(("name", "folder", "file"), [
    ("cifar10", "cifar-10-batches-bin", "data_batch_2.bin"),
    ("cifar100", "cifar-100-binary", "train.bin"),
])  # fmt: skip
def test_a_label_out_of_range_is_named_with_file_and_image(tmp_path, name, folder, file):
    written = fake_cifar.write(tmp_path, name, folder)
    version = fake_cifar.version_of(name, folder)
    content = bytearray((written / file).read_bytes())
    content[5 * (version.label_bytes + 3072) + version.label_bytes - 1] = 200
    (written / file).write_bytes(content)
    with pytest.raises(DataError, match=rf"{file}: label 200 of image 5 is outside 0\.\."):
        open_fake(name, tmp_path)


def test_an_out_of_range_label_in_a_pickle_is_named(tmp_path):
    folder = fake_cifar.write(tmp_path, "cifar100", "cifar-100-python")
    pixels, labels = fake_cifar.records("cifar100", 0, 200)
    labels[3] = -1
    (folder / "train").write_bytes(fake_cifar.python2_pickle(pixels, labels.tolist(), b"fine_labels"))
    with pytest.raises(DataError, match=r"train: label -1 of image 3 is outside 0\.\.99"):
        open_fake("cifar100", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], r"expected a dictionary .*got list"),
        ({b"data": 1}, r"expected a dictionary with the keys b'data' and b'labels', got \[\"b'data'\"\]"),
        ({b"data": 1, b"labels": [0] * 20}, r"expected an array of uint8 \(20, 3072\), got int"),
        (
            {b"data": np.zeros((19, 3072), np.uint8), b"labels": [0] * 20},
            r"array of uint8 \(20, 3072\), got u1 \(19, 3072\)",
        ),
        ({b"data": np.zeros((20, 3072), np.int8), b"labels": [0] * 20}, r"array of uint8 \(20, 3072\), got i1"),
        (
            {b"data": np.zeros((20, 3072), np.uint8), b"labels": [0] * 19},
            r"b'labels' to be a list of 20 integers, got 19 of int",
        ),
        (
            {b"data": np.zeros((20, 3072), np.uint8), b"labels": ["0"] * 20},
            r"b'labels' to be a list of 20 integers, got 20 of str",
        ),
    ],
)
def test_a_pickle_with_other_contents_is_named_with_what_was_found(tmp_path, content, message):
    folder = fake_cifar.write(tmp_path, "cifar10", "cifar-10-batches-py")
    (folder / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=f"test_batch: .*{message}"):
        open_fake("cifar10", tmp_path)


def test_a_truncated_archive_is_named_with_published_and_actual_size(tmp_path):
    tarball = fake_cifar.pack(
        fake_cifar.write(tmp_path / "unpacked", "cifar10", "cifar-10-batches-bin"), tmp_path / "cifar-10-binary.tar.gz"
    )
    half = tarball.read_bytes()[: tarball.stat().st_size // 2]
    tarball.write_bytes(half)
    message = rf"cifar-10-binary\.tar\.gz: cannot be read .*expected 170052171 bytes as published, got {len(half)};"
    with pytest.raises(DataError, match=message):
        open_fake("cifar10", tmp_path)


def test_a_web_page_saved_as_an_archive_is_refused(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_text("<html>404</html>")
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz: cannot be read as a \.tar\.gz archive"):
        open_fake("cifar10", tmp_path)


def test_an_archive_without_a_file_names_it(tmp_path):
    folder = fake_cifar.write(tmp_path / "unpacked", "cifar100", "cifar-100-binary")
    (folder / "test.bin").unlink()
    fake_cifar.pack(folder, tmp_path / "cifar-100-binary.tar.gz")
    with pytest.raises(DataError, match=r"cifar-100-binary\.tar\.gz/test\.bin: missing from the archive"):
        open_fake("cifar100", tmp_path)


def test_a_folder_without_the_dataset_says_what_was_expected(tmp_path):
    fake_cifar.write(tmp_path, "cifar100", "cifar-100-binary")
    with pytest.raises(DataError, match=r"holds no cifar10 data; expected cifar-10-batches-bin/ \(or cifar-10-binary"):
        open_fake("cifar10", tmp_path)
    with pytest.raises(DataError, match=r"data_dir: .*nowhere does not exist"):
        open_fake("cifar10", tmp_path / "nowhere")
    with pytest.raises(DataError, match="cifar10: data_dir is needed: cifar-10-batches-bin/"):
        open_data("cifar10")
    (tmp_path / "other.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"other\.zip holds no cifar10 data"):
        open_fake("cifar10", tmp_path / "other.zip")
