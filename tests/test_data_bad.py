"""Image files that cannot be decoded: named, and stopped at or left out, with every loader; a run loses nothing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from everyday import but_first, exhaustive
from image_files import cut_short, write_folder
from training_helpers import differing, quiet, tiny, weights

from lit_fast.data import Data, DataError, open_data
from lit_fast.data.formats.folder import FolderSplit
from lit_fast.data.loaders import open_loader
from lit_fast.errors import RunFolderError
from lit_fast.report.run import write_report
from lit_fast.training.experiment import run_experiment

pytest.importorskip("PIL.Image", reason="Pillow is not installed")

WITHOUT_DALI = importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None
needs_dali = pytest.mark.skipif(WITHOUT_DALI, reason="NVIDIA DALI is not installed")
LOADERS = ["torch", "resident", pytest.param("dali", marks=needs_dali)]
BAD = ("train/ant/03.jpg", "train/bee/11.jpg", "test/bee/00.jpg")


@pytest.fixture
def root(tmp_path) -> Path:
    return write_folder(tmp_path / "photos", "jpg", train=40, test=4)


@pytest.fixture
def broken(root) -> Path:
    for name in BAD:
        cut_short(root / name)
    return root


def open_photos(root: Path, **options) -> Data:
    return open_data("folder", data_dir=root, **{"image_size": 16, "val_size": 8, **options})


# -- one epoch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOADERS)
def test_a_bad_image_stops_the_epoch_by_name(broken, name):
    data = open_photos(broken)
    message = r"(ant.03|bee.11|bee.00)\.jpg: cannot be decoded as an image .*truncated"
    with pytest.raises(DataError, match=message), open_loader(data, name) as loader:
        list(loader.train_batches(0, batch_size=8, seed=0))


@pytest.mark.parametrize("name", LOADERS)
def test_bad_images_are_left_out_and_counted(broken, name):
    data = open_photos(broken, on_bad_image="skip")
    assert len(data.left_out) == 3
    for file, message in zip(BAD, data.left_out):
        assert str(broken / file) in message
        assert "cannot be decoded as an image" in message
    assert (len(data.train), len(data.val), len(data.test)) == (70, 8, 7)
    with open_loader(data, name) as loader:
        labels = torch.cat([labels for _, labels in loader.train_batches(0, batch_size=8, seed=0)])
        assert torch.equal(labels, torch.cat([b[1] for b in data.train_batches(0, batch_size=8, seed=0)]))
        assert len(torch.cat([labels for _, labels in loader.eval_batches("test", batch_size=4)])) == 7


def test_what_is_left_is_a_folder_without_the_bad_files(broken):
    skipped = open_photos(broken, on_bad_image="skip")
    for name in BAD:
        (broken / name).unlink()
    assert skipped.fingerprint == open_photos(broken).fingerprint
    assert open_photos(broken).left_out == ()


def test_a_file_that_does_not_begin_like_an_image_is_left_out_too(root):
    (root / "train" / "bee" / "00.jpg").write_bytes(b"not an image")
    (root / "train" / "bee" / "01.jpg").write_bytes(b"")
    data = open_photos(root, on_bad_image="skip")
    assert len(data.left_out) == 2
    with pytest.raises(DataError, match=r"bee.0[01]\.jpg: cannot be decoded"):
        open_photos(root)


def test_a_class_of_bad_images_alone_is_named(root):
    for file in (root / "test" / "ant").iterdir():
        cut_short(file)
    with pytest.raises(DataError, match=r"test.ant: none of its images can be decoded"):
        open_photos(root, on_bad_image="skip")


def test_another_word_for_it_is_refused():
    with pytest.raises(DataError, match="on_bad_image: expected 'stop' or 'skip', got 'ignore'"):
        open_data("digits", on_bad_image="ignore")


# -- whole runs ------------------------------------------------------------------------------------------------------


def experiment(root: Path, *overrides: str):
    return tiny(
        "data.name=folder",
        f"data.dir={root}",
        "data.image_size=8",
        "data.val_size=20",
        "data.train_size=null",
        "batch_size=8",
        "epochs=2",
        "teacher.epochs=2",
        "data.loader=torch",
        *overrides,
    )


def test_a_run_leaves_bad_images_out_and_says_so(broken, tmp_path):
    console = quiet()
    run = tmp_path / "run"
    run_experiment(experiment(broken, "data.on_bad_image=skip"), run, console=console)
    assert "images left out: 3, such as" in console.file.getvalue()
    found = json.loads((run / "results.json").read_text())["left_out"]
    assert [name for name in BAD if any(name in message for message in found)] == list(BAD)
    report = write_report(run).markdown.read_text()
    assert "## Images left out: 3" in report
    assert all(name in report for name in BAD)


def test_a_file_that_breaks_during_a_run_costs_no_step(root, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_experiment(experiment(root), whole, console=quiet())
    fetch, calls, kept = FolderSplit.fetch, [], {}

    def breaks(split, indices):
        calls.append(len(indices))
        if len(calls) == 6:  # of the first epoch's eight batches
            path = split.files[int(indices[0])]
            kept[path] = path.read_bytes()
            cut_short(path)
        return fetch(split, indices)

    monkeypatch.setattr(FolderSplit, "fetch", breaks)
    with pytest.raises(DataError, match=r"\.jpg: cannot be decoded as an image"):
        run_experiment(experiment(root), cut, console=quiet())
    monkeypatch.undo()
    (path, content), *more = kept.items()
    assert not more
    path.write_bytes(content)
    seen = []
    plan = Data.training_plan
    monkeypatch.setattr(
        Data, "training_plan", lambda self, *a, **k: seen.append(k["start_step"]) or plan(self, *a, **k)
    )
    run_experiment(experiment(root), cut, resume=True, console=quiet())
    assert seen[0] == 5  # every batch before the bad one was kept
    for name in ("teacher-resnet20", "resnet20-lit-seed0"):
        assert differing(weights(whole, name), weights(cut, name)) == []


@pytest.mark.parametrize(
    "name", [*but_first(["torch", "resident"]), pytest.param("dali", marks=[exhaustive, needs_dali])]
)
def test_a_run_goes_on_with_a_good_file_in_place_of_one_that_was_bad_from_the_beginning(root, tmp_path, name):
    chosen, good = f"data.loader={name}", {root / file: (root / file).read_bytes() for file in BAD}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_experiment(experiment(root, chosen), whole, console=quiet())
    for path in good:
        cut_short(path)
    for count in range(len(good)):  # one after the other is found
        with pytest.raises(DataError, match=r"\.jpg: cannot be decoded as an image") as stopped:
            run_experiment(experiment(root, chosen), cut, resume=count > 0, console=quiet())
        stopped.value.file.write_bytes(good[stopped.value.file])
    run_experiment(experiment(root, chosen), cut, resume=True, console=quiet())
    for run in ("teacher-resnet20", "resnet20-lit-seed0"):
        assert differing(weights(whole, run), weights(cut, run)) == []
    identities = [json.loads((run / "identity.json").read_text()) for run in (whole, cut)]
    assert identities[0].pop("folder") != identities[1].pop("folder")
    assert identities[0] == identities[1]
    assert not (cut / "bad_files.json").exists()


def test_other_files_must_be_as_they_were_and_so_must_one_that_broke_on_the_way(root, tmp_path, monkeypatch):
    bad, other = root / BAD[0], root / "train/ant/05.jpg"
    whole, kept = bad.read_bytes(), other.read_bytes()
    cut_short(bad)
    with pytest.raises(DataError, match=r"ant.03\.jpg: cannot be decoded"):
        run_experiment(experiment(root), tmp_path / "run", console=quiet())
    other.write_bytes(whole)
    bad.write_bytes(whole)
    with pytest.raises(RunFolderError, match="the data have changed"):
        run_experiment(experiment(root), tmp_path / "run", resume=True, console=quiet())
    other.write_bytes(kept)
    data = open_photos(root)
    assert data.fingerprint
    assert data.bad_from_the_beginning(other) == BAD[0].replace("03", "05")
    other.write_bytes(whole)
    assert data.bad_from_the_beginning(other) is None
    assert data.bad_from_the_beginning(root / "elsewhere.jpg") is None
