"""Amazon Reviews: the splits, the token file beside the data, and every way in which files can be wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from small_reviews import line, write

from lit_fast.data import DataError, open_data
from lit_fast.data.formats import amazon, reviews
from lit_fast.data.loaders import open_loader

LENGTH = 60
REAL = os.environ.get("LIT_FAST_TEST_DATA", "")


def open_small(folder: Path, name: str = "amazon-polarity", **options):
    return open_data(name, data_dir=folder, **{"length": LENGTH, **options})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "reviews")


def token_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tokens"))


# -- the dataset -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "classes"), [("amazon-polarity", 2), ("amazon-full", 5)])
def test_three_splits_of_texts(tmp_path, name, classes):
    data = open_small(write(tmp_path, classes), name)
    assert (len(data.train), len(data.val), len(data.test)) == (108, 12, 40)
    assert (data.shape, data.mean, data.std, data.num_classes) == ((LENGTH,), (), (), classes)
    assert not set(data.train.indices.tolist()) & set(data.val.indices.tolist())
    texts, labels = next(data.train_batches(0, batch_size=16, seed=0))
    assert (texts.dtype, texts.shape, labels.dtype) == (torch.int64, (16, LENGTH), torch.int64)
    assert int(texts.min()) >= 0
    assert int(texts.max()) <= 68


def test_rows_are_those_of_the_file(folder):
    data = open_small(folder)
    raw = (folder / "test.csv").read_bytes()
    tokens, labels = reviews.tokenise(raw, "test.csv", length=LENGTH, classes=2)
    assert torch.equal(data.test.fetch(torch.arange(40)), tokens)
    assert torch.equal(data.test.labels, labels.long())


def test_1014_tokens_unless_said_otherwise(folder):
    assert open_small(folder, length=None).shape == (1014,)


def test_the_folder_may_be_the_one_above(tmp_path):
    write(tmp_path / "amazon_review_polarity_csv")
    assert open_small(tmp_path).fingerprint == open_small(tmp_path / "amazon_review_polarity_csv").fingerprint


def test_train_size_and_val_size_keep_the_classes_in_proportion(folder):
    data = open_small(folder, val_size=20, train_size=50)
    for split, count in ((data.train, 50), (data.val, 20)):
        assert torch.bincount(split.labels).tolist() == [count // 2, count // 2]
    assert open_small(folder, val_size=20, train_size=50, val_seed=1).fingerprint != data.fingerprint


def test_all_loaders_give_the_same_batches(folder):
    data = open_small(folder)
    with open_loader(data, "torch") as streaming, open_loader(data, "resident") as resident:
        pairs = zip(
            streaming.train_batches(1, batch_size=16, seed=0, start_step=2),
            resident.train_batches(1, batch_size=16, seed=0, start_step=2),
            strict=True,
        )
        for (texts, labels), (own_texts, own_labels) in pairs:
            assert torch.equal(texts, own_texts)
            assert torch.equal(labels, own_labels)


# -- the token file ----------------------------------------------------------------------------------------------------


def test_files_are_tokenised_once(folder, monkeypatch):
    first = open_small(folder)
    before = [(path, path.stat().st_mtime_ns) for path in token_files(folder)]
    assert len(before) == 2
    monkeypatch.setattr(amazon, "tokenise", lambda *_, **__: pytest.fail("tokenised again"))
    again = open_small(folder)
    assert again.fingerprint == first.fingerprint
    assert torch.equal(again.train.fetch(torch.arange(9)), first.train.fetch(torch.arange(9)))
    assert [(path, path.stat().st_mtime_ns) for path in token_files(folder)] == before


def test_parts_of_a_large_file_are_the_whole(folder, monkeypatch):
    whole = open_small(folder).train.fetch(torch.arange(108))
    for path in token_files(folder):
        path.unlink()
    monkeypatch.setattr(amazon, "_PART", 1000)  # the file has some 13,000 bytes
    assert torch.equal(open_small(folder).train.fetch(torch.arange(108)), whole)
    monkeypatch.setattr(amazon, "_PART", 10)  # shorter than a line
    (folder / "train.csv").write_text((folder / "train.csv").read_text() + "bad\n")
    with pytest.raises(DataError, match=r"train.csv: line 121: field 1 is not quoted"):
        open_small(folder)


def test_another_text_or_length_has_another_token_file(folder):
    first = open_small(folder)
    assert open_small(folder, length=61).shape == (61,)
    text = (folder / "test.csv").read_text(encoding="utf-8").replace("book", "cook")
    (folder / "test.csv").write_text(text, encoding="utf-8")
    assert open_small(folder).fingerprint != first.fingerprint
    assert len(token_files(folder)) == 5


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b + b"x"])
def test_a_damaged_token_file_is_made_anew(folder, damage):
    first = open_small(folder).train.fetch(torch.arange(9))
    for path in token_files(folder):
        path.write_bytes(damage(path.read_bytes()))
    assert torch.equal(open_small(folder).train.fetch(torch.arange(9)), first)


def test_a_malformed_line_leaves_no_token_file(folder):
    with (folder / "train.csv").open("a") as file:
        file.write('"1","cut off\n')
    with pytest.raises(DataError, match=r"train.csv: line 121: field 2 has no closing quote"):
        open_small(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["test.csv", "train.csv"]


def test_cache_dir_takes_the_token_files(folder, tmp_path):
    open_small(folder, cache_dir=tmp_path / "deep" / "cache")
    assert not token_files(folder)
    assert len(token_files(tmp_path / "deep" / "cache")) == 2


def test_a_folder_that_cannot_be_written_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"tokens cannot be kept there .* cache_dir \(data.cache_dir\)"):
        open_small(folder, cache_dir=tmp_path / "file")


# -- what is wrong -----------------------------------------------------------------------------------------------------


def test_data_dir_is_needed():
    with pytest.raises(DataError, match="amazon-full: data_dir is needed: a folder with"):
        open_data("amazon-full")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda f: f / "nowhere", "nowhere does not exist; expected a folder with train.csv and test.csv"),
        (lambda f: f / "train.csv", "train.csv is not a folder"),
        (lambda f: f.parent / "other", "other holds no train.csv and test.csv"),
        (lambda f: (f / "train.csv").unlink() or f, "train.csv: missing; unpack the archive again"),
        (lambda f: (f / "test.csv").unlink() or f, "test.csv: missing"),
        (lambda f: (f / "test.csv").write_text("") or f, "test.csv: is empty"),
    ],
)
def test_missing_and_empty_files_are_named(folder, prepare, message):
    (folder.parent / "other").mkdir()
    with pytest.raises(DataError, match=message):
        open_small(prepare(folder))


def test_five_classes_are_not_polarity(tmp_path):
    with pytest.raises(DataError, match=r"train.csv: line 3: class 3 is outside 1..2; is this amazon-full\?"):
        open_small(write(tmp_path, classes=5))


def test_class_0_is_of_no_dataset(folder):
    (folder / "test.csv").write_text('"0","a","b"\n')
    with pytest.raises(DataError, match=r"test.csv: line 1: class 0 is outside 1..2$"):
        open_small(folder)


def test_two_classes_are_not_full(folder):
    with pytest.raises(DataError, match=r"1..5 of amazon-full, found only 1, 2; is this amazon-polarity\?"):
        open_small(folder, "amazon-full")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length: expected an integer >= 1, got 0"),
        ({"image_size": 32}, "amazon-polarity: image_size is for images, got 32; leave it out"),
        ({"mean": (0.5,)}, "mean is for images"),
        ({"val_size": 120}, "val_size: expected 0..119"),
        ({"train_size": 109}, "train_size: expected 1..108"),
    ],
)
def test_options_that_cannot_be_are_refused(folder, options, message):
    with pytest.raises(DataError, match=message):
        open_small(folder, **options)


@pytest.mark.parametrize("option", [{"length": 60}, {"cache_dir": "x"}])
def test_images_have_no_length(option):
    with pytest.raises(DataError, match=f"digits: {next(iter(option))} is for reviews; leave it out"):
        open_data("digits", **option)


def test_a_row_of_one_megabyte_is_one_row(tmp_path):
    for name in ("train", "test"):
        rows = [line(1, "t", "long " * 200_000), line(2, "", "short")] * 3
        (tmp_path / f"{name}.csv").write_text("\n".join(rows))  # without a last line break
    assert open_small(tmp_path, val_size=2).test.labels.tolist() == [0, 1, 0, 1, 0, 1]


# -- real reviews ------------------------------------------------------------------------------------------------------


def test_real_reviews():
    if not REAL:
        pytest.skip("set LIT_FAST_TEST_DATA to a folder that holds amazon_review_polarity_csv/")
    try:
        data = open_data("amazon-polarity", data_dir=REAL, length=128)
    except DataError as error:
        if "holds no" in str(error):
            pytest.skip(str(error))
        raise
    assert len(data.train) + len(data.val) == 29_284
    assert len(data.test) == 4_576
    unknown = (data.train.images == 1).sum() / (data.train.images != 0).sum()
    assert unknown < 0.001
