"""Folders of images: layout, decoding, splits, and errors that name the file."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_fast.data import IMAGENET_MEAN, Augmentation, Data, DataError, open_data

image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


def write_image(path: Path, *, shade: int = 100, size: tuple[int, int] = (10, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = shade if mode in ("L", "P", "I;16") else (shade, 50, 0, 128)[: len(mode)]
    image_module.new(mode, size, colour).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, count in (("train", 20), ("test", 3)):
        for shade, name in ((200, "bee"), (40, "ant")):
            for i in range(count):
                write_image(tmp_path / split / name / f"{i:02}.png", shade=shade + i)
    return tmp_path


def open_folder(root: Path, **options) -> Data:
    return open_data("folder", data_dir=root, **{"image_size": 8, **options})


def red(data: Data, split: str) -> list[int]:
    chosen = data.split(split)
    return chosen.fetch(torch.arange(len(chosen)))[:, 0, 4, 4].tolist()


def test_classes_and_images_come_in_sorted_order(root):
    data = open_folder(root, val_size=0)
    assert data.classes == ("ant", "bee")
    assert data.shape == (3, 8, 8)
    assert red(data, "train") == [*range(40, 60), *range(200, 220)]
    assert data.train.labels.tolist() == [0] * 20 + [1] * 20
    assert data.mean == IMAGENET_MEAN
    assert data.augmentation == Augmentation(pad=1, flip=True)


def test_a_tenth_validates_unless_there_is_a_folder_for_it(root):
    data = open_folder(root)
    assert (len(data.train), len(data.val), len(data.test)) == (36, 4, 6)
    assert not set(red(data, "train")) & set(red(data, "val"))
    assert data.val.labels.tolist() == [0, 0, 1, 1]
    for name in ("ant", "bee"):
        write_image(root / "val" / name / "a.png", shade=7)
    data = open_folder(root, train_size=10)
    assert red(data, "val") == [7, 7]
    assert len(data.train) == 10
    with pytest.raises(DataError, match="val_size: there is a validation split already"):
        open_folder(root, val_size=4)


def test_batches_are_those_of_the_fetched_images(root):
    data = open_folder(root, val_size=0, mean=(0.0,) * 3, std=(1.0,) * 3)
    images, labels = zip(*data.train_batches(0, batch_size=16, seed=0, augment=False))
    shades = (torch.cat(images)[:, 0, 4, 4] * 255).round().int()
    assert sorted(shades.tolist()) == [*range(40, 60), *range(200, 220)]
    assert torch.equal(torch.cat(labels), (shades >= 200).long())


def test_the_shorter_side_is_resized_and_the_centre_cropped(root):
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, 16:32] = 255
    image_module.fromarray(pixels).save(root / "test" / "ant" / "00.png")
    image = open_folder(root).test.fetch(torch.tensor([0]))[0]
    assert image.shape == (3, 8, 8)
    assert int(image[:, :, 1:7].min()) == 255


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("P", "png"), ("RGBA", "png"), ("RGB", "bmp"), ("L", "jpg")]
)
def test_every_kind_of_image_becomes_rgb(root, mode, suffix):
    write_image(root / "test" / "ant" / f"!first.{suffix}", mode=mode, size=(8, 8))
    image = open_folder(root).test.fetch(torch.tensor([0]))
    assert image.shape == (1, 3, 8, 8)
    assert image.dtype is torch.uint8


def test_sixteen_bit_images_are_refused_rather_than_clipped(root):
    write_image(root / "test" / "ant" / "!deep.png", shade=5000, mode="I;16")
    with pytest.raises(DataError, match=r"!deep\.png: expected 8 bits per channel"):
        open_folder(root).test.fetch(torch.tensor([0]))


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_the_validation_split_has_the_names_that_people_give_it(root, name):
    for class_name in ("ant", "bee"):
        write_image(root / name / class_name / "a.png", shade=7)
    assert red(open_folder(root), "val") == [7, 7]


def test_the_folder_that_holds_the_only_one_with_train_is_taken(root, tmp_path_factory):
    outer = tmp_path_factory.mktemp("unpacked")
    root.rename(outer / "photos-1.0")
    (outer / "__MACOSX").mkdir()
    data = open_folder(outer)
    assert data.fingerprint == open_folder(outer / "photos-1.0").fingerprint
    (outer / "other" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="train: missing"):
        open_folder(outer)


def test_images_that_lie_deeper_are_named(root):
    for path in list((root / "train" / "ant").iterdir()):
        (root / "train" / "ant" / "2020").mkdir(exist_ok=True)
        path.rename(root / "train" / "ant" / "2020" / path.name)
    with pytest.raises(DataError, match=r"train.ant: holds no images; .* there are some in .*train.ant.2020: move"):
        open_folder(root)


def test_files_that_are_not_images_by_name_and_hidden_ones_are_left_out(root):
    for name in ("notes.txt", ".hidden.png"):
        (root / "train" / "ant" / name).write_text("x")
    (root / "train" / ".cache").mkdir()
    assert len(open_folder(root, val_size=0).train) == 40


def test_a_file_that_is_no_image_is_named_when_the_folder_is_opened(root):
    (root / "train" / "bee" / "broken.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"bee.broken\.png: cannot be decoded as an image"):
        open_folder(root)


def test_a_truncated_image_is_named_when_it_is_read(root):
    path = root / "test" / "ant" / "00.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    image_module.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    data = open_folder(root)
    with pytest.raises(DataError, match=r"ant.00\.png: cannot be decoded as an image \(.*truncated"):
        next(data.eval_batches("test", batch_size=4))


@pytest.mark.parametrize("missing", ["train", "test"])
def test_a_missing_split_folder_is_named(root, missing):
    (root / missing).rename(root / "elsewhere")
    with pytest.raises(DataError, match=f"{missing}: missing; expected a folder with one folder of images per class"):
        open_folder(root)


def test_an_empty_class_is_named(root):
    for file in (root / "test" / "bee").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"test.bee: holds no images; expected files ending in \.bmp"):
        open_folder(root)


def test_a_split_without_classes_is_named(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="train: holds no class folders"):
        open_folder(tmp_path)


def test_splits_with_other_classes_are_refused_with_the_difference(root):
    (root / "test" / "bee").rename(root / "test" / "wasp")
    with pytest.raises(DataError, match="missing here: bee; only here: wasp"):
        open_folder(root)


def test_what_a_folder_needs_is_said(root):
    with pytest.raises(DataError, match="folder: data_dir is needed"):
        open_data("folder", image_size=8)
    with pytest.raises(DataError, match="folder: image_size is needed"):
        open_data("folder", data_dir=root)


def test_without_pillow_the_error_says_how_to_get_it(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"Pillow.*pip install pillow"):
        open_folder(root)


def test_the_fingerprint_follows_names_and_contents_but_not_the_place(root, tmp_path_factory):
    first = open_folder(root).fingerprint
    moved = tmp_path_factory.mktemp("moved") / "pictures"
    root.rename(moved)
    assert open_folder(moved).fingerprint == first
    write_image(moved / "train" / "ant" / "03.png", shade=99)
    changed = open_folder(moved).fingerprint
    (moved / "test" / "bee" / "02.png").rename(moved / "test" / "bee" / "zz.png")
    assert len({first, changed, open_folder(moved).fingerprint}) == 3


@pytest.mark.parametrize("test", ["missing", "empty", "flat"])
def test_with_a_validation_folder_the_test_folder_may_be_missing_or_without_classes(root: Path, test: str) -> None:
    (root / "test").rename(root / "val")
    if test != "missing":
        (root / "test").mkdir()
    if test == "flat":
        write_image(root / "test" / "0001.png")
    data = open_folder(root)
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [40, 6, 0]
    assert list(data.eval_batches("test", batch_size=2)) == []


def test_a_run_without_a_test_split_says_what_is_scored(root: Path, tmp_path: Path) -> None:
    from torch import nn
    from training_helpers import quiet

    import lit_fast as lf

    def net() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

    (root / "test").rename(root / "val")
    console, run = quiet(), tmp_path / "run"
    overrides = ["epochs=1", "batch_size=20", "at=['0', '3']", "logging.tensorboard=false", "step.device=cpu"]
    done = lf.distill(
        net(), net(), open_folder(root), recipe="digits", run_dir=run, overrides=overrides, console=console
    )
    assert "no test split: what is reported is of the validation split" in console.file.getvalue()
    assert [result["accuracy"]["test_last"] for result in done.results] == [None, None]
    report = (run / "report.md").read_text()
    assert "both on the validation split: no test split was used" in report
    assert "val %" in report
    assert "test %" not in report.split("## Runs")[0]
