"""CelebA: the published files, the splits, and errors that name file and line."""

from __future__ import annotations

import os
import random
from pathlib import Path

import fake_celeba
import pytest
import torch
from PIL import Image

from lit_fast.data import Data, DataError, from_arrays, open_data

REAL = os.environ.get("LIT_FAST_TEST_DATA", "")
TWO = ("Male", "Young")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_celeba.write(tmp_path_factory.mktemp("celeba"))


def load(folder: Path, **options) -> Data:
    return open_data("celeba", data_dir=folder, **{"crop": 22, "image_size": 16, **options})


def edited(folder: Path, tmp_path: Path, line: int, text: str | None) -> Path:
    """A folder with the same images and an attribute file in which one line is another, or missing."""
    rows = (folder / "list_attr_celeba.txt").read_text().splitlines()
    rows[line - 1 : line] = [] if text is None else [text]
    (tmp_path / "img_align_celeba").symlink_to(folder / "img_align_celeba")
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_attributes_are_read_in_the_order_asked_for(folder):
    data = load(folder, attributes=["Young", "Bald"], val_size=0)
    assert data.classes == ("Young", "Bald")
    rows = [line.split() for line in (folder / "list_attr_celeba.txt").read_text().splitlines()[2:]]
    expected = {row[0]: [float(row[6] == "1"), float(row[1] == "1")] for row in rows}
    for split in (data.train, data.test):
        assert split.labels.tolist() == [expected[path.name] for path in split.files]
        assert split.labels.dtype == torch.float32


def test_by_default_the_attributes_are_stargans(folder):
    assert load(folder).classes == ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young")


def test_the_splits_are_disjoint_and_test_does_not_depend_on_the_options(folder):
    one, other = load(folder), load(folder, val_size=10, val_seed=3, train_size=12)
    assert (len(one.train), len(one.val), len(one.test)) == (32, 4, 4)
    assert (len(other.train), len(other.val), len(other.test)) == (12, 10, 4)
    assert one.test.files == other.test.files
    for data in (one, other):
        names = [path.name for split in (data.train, data.val, data.test) for path in split.files]
        assert len(set(names)) == len(names)
    assert one.val.files != load(folder, val_seed=1).val.files


def test_the_test_images_are_those_stargans_shuffle_puts_first(folder):
    rows = (folder / "list_attr_celeba.txt").read_text().splitlines()[2:]
    random.Random(1234).shuffle(rows)  # as its code shuffles the lines themselves
    assert {path.name for path in load(folder).test.files} == {row.split()[0] for row in rows[:4]}


def test_a_batch_is_the_central_square_resized_and_normalised_to_minus_one_to_one(folder):
    data = load(folder, crop=20, image_size=8)
    images, labels = next(data.eval_batches("test", batch_size=4))
    with Image.open(data.test.files[0]) as image:
        square = image.convert("RGB").crop((1, 3, 21, 23)).resize((8, 8), Image.Resampling.BILINEAR)
    pixels = torch.tensor(list(square.tobytes()), dtype=torch.float32).view(8, 8, 3).permute(2, 0, 1)
    torch.testing.assert_close(images[0], pixels / 127.5 - 1, rtol=0, atol=1e-6)
    assert labels.shape == (4, 5)


def test_training_batches_are_functions_of_seed_epoch_and_step(folder):
    data = load(folder, attributes=TWO)
    whole = list(data.train_batches(1, batch_size=10, seed=5))
    rest = list(data.train_batches(1, batch_size=10, seed=5, start_step=2))
    assert len(whole) == 4
    for (images, labels), (again, labels_again) in zip(whole[2:], rest, strict=True):
        assert images.equal(again)
        assert labels.equal(labels_again)
    plain = next(data.train_batches(1, batch_size=10, seed=5, augment=False))[0]
    flipped = [not a.equal(b) for a, b in zip(whole[0][0], plain)]
    assert any(flipped)
    assert all(a.flip(-1).equal(b) for a, b, turned in zip(whole[0][0], plain, flipped) if turned)


def test_the_files_are_there_for_loaders_that_decode_themselves(folder):
    split = load(folder).train
    assert (len(split.files), split.size, split.crop) == (32, 16, 22)


def test_the_fingerprint_tells_attributes_apart(folder):
    assert load(folder, attributes=TWO).fingerprint != load(folder, attributes=TWO[::-1]).fingerprint


def kaggle(folder: Path, root: Path) -> Path:
    """The same faces as Kaggle's copy of CelebA unpacks."""
    (root / "img_align_celeba").mkdir()
    (root / "img_align_celeba" / "img_align_celeba").symlink_to(folder / "img_align_celeba")
    rows = [",".join(row.split()) for row in (folder / "list_attr_celeba.txt").read_text().splitlines()[1:]]
    (root / "list_attr_celeba.csv").write_text("\n".join(["image_id," + rows[0], *rows[1:]]) + "\n")
    return root


def test_kaggles_copy_gives_the_same_data(folder, tmp_path):
    assert load(kaggle(folder, tmp_path)).fingerprint == load(folder).fingerprint


@pytest.mark.parametrize(
    ("text", "replacement", "message"),
    [
        ("image_id,", "id,", r"csv:1: expected image_id and attribute names"),
        ("Male", "Mael", r"csv:1: there is no attribute 'Male'; did you"),
        (
            "000003.jpg,",
            "000003.jpg,1,",
            r"csv:4: expected a file name and 6 values .* of line 1\), got .* \(7 values\)",
        ),
    ],
)
def test_a_malformed_line_of_kaggles_copy_is_named(folder, tmp_path, text, replacement, message):
    listing = kaggle(folder, tmp_path) / "list_attr_celeba.csv"
    listing.write_text(listing.read_text().replace(text, replacement))
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_a_byte_order_mark_does_not_count(folder, tmp_path):
    edited(folder, tmp_path, 1, "\ufeff40")
    assert load(tmp_path).fingerprint == load(folder).fingerprint
    (tmp_path / "list_attr_celeba.txt").unlink()
    (tmp_path / "img_align_celeba").unlink()
    listing = kaggle(folder, tmp_path) / "list_attr_celeba.csv"
    listing.write_text("\ufeff" + listing.read_text())
    assert load(tmp_path).fingerprint == load(folder).fingerprint


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (1, "many", r"list_attr_celeba.txt:1: expected the number of images"),
        (1, "41", r"list_attr_celeba.txt:1: says 41 images, but 40 rows follow"),
        (2, "Bald Black_Hair Blond_Hair Brown_Hair Female Young", r"txt:2: there is no attribute .Male.; did you"),
        (7, "000005.jpg 1 -1 1", r"txt:7: expected a file name and 6 values of 1 or -1 .* \(3 values\)"),
        (9, "000007.jpg 1 -1 1 0 1 1", r"txt:9: expected a file name and 6 values of 1 or -1"),
        (12, "nobody.jpg 1 -1 1 1 1 1", r"txt:12: there is no image nobody.jpg in "),
        (20, None, r"txt:1: says 40 images, but 39 rows follow"),
    ],
)  # fmt: skip
def test_a_bad_attribute_file_is_named_with_its_line(folder, tmp_path, line, text, message):
    with pytest.raises(DataError, match=message):
        load(edited(folder, tmp_path, line, text))


def test_missing_files_and_impossible_options_are_named(folder, tmp_path):
    for options, message in (
        ({"crop": 178}, "crop: expected at most 22 pixels, .* got 178; half-size images take 89"),
        ({"attributes": ["male"]}, "no attribute 'male'; did you mean Male"),
        ({"attributes": ["Male", "Male"]}, "attributes: expected at least one name, none of them twice"),
        ({"val_size": 36}, r"val_size: expected 0..35"),
        ({"train_size": 33}, "train_size: expected at most 32"),
    ):
        with pytest.raises(DataError, match=message):
            load(folder, **options)
    with pytest.raises(DataError, match=r"holds no list_attr_celeba.txt"):
        load(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "list_attr_celeba.txt").write_text("1\nMale\n1.jpg 1\n")
    with pytest.raises(DataError, match="no folder img_align_celeba or images"):
        load(tmp_path)


def test_an_image_smaller_than_the_first_is_named_when_it_is_read(tmp_path):
    folder = fake_celeba.write(tmp_path / "mixed")
    data = load(folder)
    Image.new("RGB", (21, 27)).save(data.train.files[-1])
    with pytest.raises(DataError, match=r"jpg: expected at least 22 x 22 pixels for the crop, got 21 x 27"):
        data.train.fetch(torch.tensor([len(data.train) - 1]))
    sound = load(folder, on_bad_image="skip")
    assert len(sound.train) == len(data.train) - 1
    assert sound.train.files == data.train.files[:-1]
    assert sound.train.labels.equal(data.train.labels[:-1])
    assert len(sound.left_out) == 1


def test_only_celeba_takes_attributes_and_a_crop():
    with pytest.raises(DataError, match="digits: crop is for celeba; leave it out"):
        open_data("digits", crop=8)


def test_attributes_must_be_zeros_and_ones(folder):
    data = load(folder)
    data.val.labels[0, 0] = -1
    fields = {name: getattr(data, name) for name in Data.__dataclass_fields__}
    with pytest.raises(
        DataError, match=r"attributes of the val split: expected 0 and 1, \(N, 5\), got \(4, 5\) from -1"
    ):
        Data(**fields)
    assert data.has_attributes
    assert not from_arrays(*[(torch.zeros(20, 1, 4, 4, dtype=torch.uint8), torch.arange(20) % 2)] * 2, test=(
        torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.arange(2))).has_attributes  # fmt: skip


@pytest.mark.skipif(not REAL, reason="set LIT_FAST_TEST_DATA to a folder that holds celeba/")
def test_the_real_half_size_sample():
    if not (Path(REAL) / "celeba").is_dir():
        pytest.skip(f"{REAL} holds no celeba/")
    data = open_data("celeba", data_dir=REAL, crop=89, image_size=64)
    assert (len(data.train), len(data.val), len(data.test)) == (4000, 500, 500)
    images, labels = next(data.eval_batches("test", batch_size=100))
    assert images.std() > 0.3
    assert 0.1 < labels[:, 3].mean() < 0.8  # Male
