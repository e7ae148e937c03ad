"""The loader "dali", on the CPU and for real: the batches of `Data`, exact resume, clean ends, errors with names."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from everyday import but_first
from image_files import cut_short, picture, write_folder
from PIL import Image
from small_data import coloured, make, texts

from lit_fast.data import Augmentation, Data, DataError, Split, open_data
from lit_fast.data.loaders import open_loader

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed: pip install '.[dali]'")

from lit_fast.data.loaders.dali import DaliLoader

ARRAYS = {"grey": make, "coloured": coloured, "texts": texts}
LEVELS = 2  # of 255: where files are resized, Pillow rounds after each direction, DALI once
# At the edge of a shrunk image DALI repeats the last pixel and Pillow does without: of the noise's 255 levels, the part
# of the filter that lies outside. From 60 to 40 pixels the outermost pixel has 1/9 of it there, in both directions.
EDGE = 255 * 2 / 9
MEAN, STD = (0.0,) * 3, (1 / 255,) * 3  # batches in levels


def same(got, expected, levels: int = 0) -> None:
    got, expected = list(got), list(expected)
    assert len(got) == len(expected)
    for (inputs, labels), (right_inputs, right_labels) in zip(got, expected):
        assert inputs.dtype is right_inputs.dtype
        assert inputs.shape == right_inputs.shape
        if levels:
            assert float((inputs - right_inputs).abs().max()) <= levels + 1e-3
        else:
            assert torch.equal(inputs, right_inputs)
        assert torch.equal(labels, right_labels)


def photos(root, **options) -> Data:
    options = {"image_size": 24, "val_size": 4, "mean": MEAN, "std": STD, **options}
    return open_data("folder", data_dir=root, **options)


# -- the batches of the loader "torch" -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize(
    "request_",
    [{}, {"start_step": 2}, {"augment": False}, {"shard": (1, 2), "start_step": 1}, {"shard": (2, 3)}],
    ids=str,
)
def test_training_batches_of_arrays_and_texts_are_those_of_the_data_bit_by_bit(kind, request_):
    data = ARRAYS[kind]()
    with open_loader(data, "dali") as loader:
        for epoch in (0, 3):
            arguments = {"batch_size": 8, "seed": 5, **request_}
            same(loader.train_batches(epoch, **arguments), data.train_batches(epoch, **arguments))


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(pad=3), Augmentation(flip=True)], ids=str)
def test_each_augmentation_alone_is_the_same(augmentation):
    data = make(augmentation=augmentation)
    with open_loader(data, "dali") as loader:
        same(loader.train_batches(1, batch_size=16, seed=2), data.train_batches(1, batch_size=16, seed=2))


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_evaluation_batches_of_arrays_and_texts_are_those_of_the_data_bit_by_bit(kind, split):
    data = ARRAYS[kind]()
    with open_loader(data, "dali") as loader:
        for batch_size in (8, 3):
            same(loader.eval_batches(split, batch_size=batch_size), data.eval_batches(split, batch_size=batch_size))


@pytest.mark.parametrize("suffix", ["png", "bmp", "jpg"])
@pytest.mark.parametrize("augment", [False, True])
def test_files_of_the_right_size_have_the_pixels_that_pillow_finds(tmp_path, suffix, augment):
    data = photos(write_folder(tmp_path, suffix, side=24))
    with open_loader(data, "dali") as loader:
        arguments = {"batch_size": 8, "seed": 1, "augment": augment}
        # JPEG decoders may differ by a level per channel; PNG and BMP leave no choice.
        levels = 1 if suffix == "jpg" else 0
        same(loader.train_batches(0, **arguments), data.train_batches(0, **arguments), levels)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("size", [24, 70], ids=["smaller", "larger"])
def test_resized_files_differ_by_two_levels_at_most(tmp_path, suffix, size):
    data = photos(write_folder(tmp_path, suffix), image_size=size)
    with open_loader(data, "dali") as loader:
        arguments = {"batch_size": 8, "seed": 1, "shard": (1, 2)}
        same(loader.train_batches(2, **arguments), data.train_batches(2, **arguments), LEVELS)
        same(loader.eval_batches("val", batch_size=3), data.eval_batches("val", batch_size=3), LEVELS)


def test_pure_noise_differs_by_two_levels_inside_and_by_the_filter_at_the_edge(tmp_path):
    root = write_folder(tmp_path, "png")
    for path in (root / "test").rglob("*.png"):
        noise = torch.randint(0, 256, (60, 60, 3), generator=torch.Generator().manual_seed(len(path.name)))
        Image.fromarray(noise.to(torch.uint8).numpy()).save(path)
    data = photos(root, image_size=40)
    with open_loader(data, "dali") as loader:
        got = next(loader.eval_batches("test", batch_size=6))[0]
    difference = (got - next(data.eval_batches("test", batch_size=6))[0]).abs()
    assert float(difference[:, :, 1:-1, 1:-1].max()) <= LEVELS
    assert float(difference.max()) <= EDGE


def test_the_central_square_is_cropped_before_the_resize(tmp_path):
    data = photos(write_folder(tmp_path, "png"))
    whole = next(data.eval_batches("test", batch_size=6))[0]
    data.test.crop = 30
    with open_loader(data, "dali") as loader:
        cropped = list(loader.eval_batches("test", batch_size=6))
    same(cropped, data.eval_batches("test", batch_size=6), LEVELS)
    assert float((cropped[0][0] - whole).abs().max()) > 50


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    root = write_folder(tmp_path, "png", side=24)
    for path in (root / "test").rglob("*.png"):
        picture(3, width=24, height=24).convert(mode).save(path)
    data = photos(root)
    with open_loader(data, "dali") as loader:
        same(loader.eval_batches("test", batch_size=6), data.eval_batches("test", batch_size=6))


def test_photos_are_not_turned_by_their_exif_orientation(tmp_path):
    root = write_folder(tmp_path, "jpg")
    exif = picture(0, width=8, height=8).getexif()
    exif[0x0112] = 6  # turned by a quarter
    for path in (root / "test").rglob("*.jpg"):
        picture(5, width=40, height=30).save(path, quality=95, exif=exif)
    data = photos(root)
    with open_loader(data, "dali") as loader:
        same(loader.eval_batches("test", batch_size=6), data.eval_batches("test", batch_size=6), LEVELS)


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_files_that_dali_cannot_decode_alike_are_decoded_by_pillow(tmp_path, suffix):
    data = photos(write_folder(tmp_path, suffix))
    with open_loader(data, "dali") as loader:
        same(loader.train_batches(0, batch_size=8, seed=0), data.train_batches(0, batch_size=8, seed=0))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "AVIF"])
def test_how_a_file_begins_decides_and_not_its_name(tmp_path, kind):
    if kind not in Image.registered_extensions().values():
        pytest.skip(f"this Pillow writes no {kind}")
    root = write_folder(tmp_path, "jpg")
    with (root / "train" / "ant" / "03.jpg").open("wb") as file:
        picture(3, width=30, height=30).save(file, kind)
    data = photos(root)
    with open_loader(data, "dali") as loader:
        same(loader.train_batches(0, batch_size=8, seed=0), data.train_batches(0, batch_size=8, seed=0))


def test_a_file_that_only_dali_cannot_decode_is_named(tmp_path, monkeypatch):
    from lit_fast.data.loaders import dali

    data = photos(write_folder(tmp_path, "jpg"))
    bad = data.train.files[17]
    picture(3, width=30, height=30).save(bad.with_suffix(".gif"))
    bad.with_suffix(".gif").rename(bad)
    monkeypatch.setattr(dali, "_DECODED", (*dali._DECODED, b"GIF8"))
    with (
        open_loader(data, "dali") as loader,
        pytest.raises(DataError, match=rf"^{bad}: DALI, nvidia.*, cannot decode it, though Pillow can: save it again"),
    ):
        list(loader.train_batches(0, batch_size=4, seed=0))


def test_batches_are_copies_that_later_batches_leave_alone():
    data = coloured()
    with open_loader(data, "dali") as loader:
        kept = list(loader.train_batches(0, batch_size=4, seed=0))
        for _ in loader.train_batches(1, batch_size=4, seed=0):
            pass
    same(kept, data.train_batches(0, batch_size=4, seed=0))


def test_images_come_channels_last_where_that_is_wanted():
    with open_loader(coloured(), "dali", channels_last=True) as loader:
        images, _ = next(loader.train_batches(0, batch_size=8, seed=0))
        assert images.is_contiguous(memory_format=torch.channels_last)


# -- resuming --------------------------------------------------------------------------------------------------------


def test_an_interrupted_sequence_goes_on_bit_by_bit_in_a_new_loader(tmp_path):
    data = photos(write_folder(tmp_path, "jpg"))
    with open_loader(data, "dali") as loader:
        whole = [batch for epoch in (0, 1) for batch in loader.train_batches(epoch, batch_size=8, seed=7)]
    steps = data.steps_per_epoch(8)
    for stop in range(1, 2 * steps):
        with open_loader(data, "dali") as first:
            before = []
            for epoch in range(-(-stop // steps)):
                batches = first.train_batches(epoch, batch_size=8, seed=7)
                before += [next(batches) for _ in range(min(steps, stop - epoch * steps))]
        with open_loader(data, "dali") as second:
            epoch, step = divmod(stop, steps)
            after = list(second.train_batches(epoch, batch_size=8, seed=7, start_step=step))
            after += [b for e in range(epoch + 1, 2) for b in second.train_batches(e, batch_size=8, seed=7)]
        same(before + after, whole)


def test_an_epoch_left_in_the_middle_leaves_nothing_to_the_next():
    data = make()
    with open_loader(data, "dali") as loader:
        for _ in range(3):
            next(loader.train_batches(0, batch_size=8, seed=1))
            same(loader.train_batches(1, batch_size=8, seed=1), data.train_batches(1, batch_size=8, seed=1))


def test_an_epoch_left_in_the_middle_leaves_no_thread(tmp_path):
    data = photos(write_folder(tmp_path, "jpg"))
    loader = open_loader(data, "dali")
    batches = loader.train_batches(0, batch_size=8, seed=1)
    next(batches)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("lit_fast-fetch")]
    del batches
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lit_fast-fetch")]


def test_two_sequences_can_be_gone_through_in_turns():
    data = make()
    with open_loader(data, "dali") as loader:
        turns = zip(loader.train_batches(0, batch_size=8, seed=1), loader.train_batches(1, batch_size=8, seed=1))
        one, other = zip(*turns)
    same(one, data.train_batches(0, batch_size=8, seed=1))
    same(other, data.train_batches(1, batch_size=8, seed=1))


def test_a_pipeline_is_used_for_epoch_after_epoch(monkeypatch):
    from lit_fast.data.loaders import dali_graph

    built = []
    build = dali_graph.build
    monkeypatch.setattr(dali_graph, "build", lambda *given: built.append(given) or build(*given))
    with open_loader(make(), "dali") as loader:
        for epoch in range(3):
            assert len(list(loader.train_batches(epoch, batch_size=8, seed=1))) == 13
    assert len(built) == 1


def test_the_shards_of_all_processes_are_the_whole(tmp_path):
    data = photos(write_folder(tmp_path, "png"))  # 36 images: the last batch has one
    with open_loader(data, "dali") as loader:
        shards = [list(loader.train_batches(0, batch_size=7, seed=0, shard=(rank, 3))) for rank in range(3)]
        together = [tuple(torch.cat(parts) for parts in zip(*ranks)) for ranks in zip(*shards)]
        same(together, loader.train_batches(0, batch_size=7, seed=0))


# -- ends and errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", but_first(["pass", "loader.close()", "raise SystemExit(0)", "del loader"]))
def test_a_process_ends_silently_with_pipelines_at_work(end, tmp_path):
    write_folder(tmp_path, "jpg")
    program = f"""
        from lit_fast.data import open_data
        from lit_fast.data.loaders import open_loader
        data = open_data("folder", data_dir={str(tmp_path)!r}, image_size=24)
        loader = open_loader(data, "dali")
        batches = loader.train_batches(0, batch_size=4, seed=0)
        next(batches)
        list(loader.eval_batches("val", batch_size=2))
        {end}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_file_that_is_cut_short_is_named_with_the_operator(tmp_path):
    data = photos(write_folder(tmp_path, "jpg"))
    bad = data.train.files[17]
    cut_short(bad)
    with open_loader(data, "dali") as loader:
        with pytest.raises(
            DataError, match=rf"{bad}: cannot be decoded .*truncated.*nvidia\.dali\.fn\.decoders\.image"
        ):
            list(loader.train_batches(0, batch_size=4, seed=0))
        assert len(list(loader.eval_batches("test", batch_size=4))) == 2  # the loader can still be used


def test_batches_before_the_broken_one_come_as_they_should(tmp_path):
    data = photos(write_folder(tmp_path, "png"))
    order = data.training_plan(0, batch_size=4, seed=0).tables.order
    right = list(data.train_batches(0, batch_size=4, seed=0))
    cut_short(data.train.files[order[21]])  # in the sixth batch
    got = []
    with open_loader(data, "dali") as loader, pytest.raises(DataError, match="cannot be decoded"):
        got.extend(loader.train_batches(0, batch_size=4, seed=0))
    assert 5 - 2 <= len(got) <= 5  # DALI works two batches ahead
    same(got, right[: len(got)], LEVELS)


def test_a_missing_and_an_empty_file_are_named(tmp_path):
    data = photos(write_folder(tmp_path, "jpg"))
    missing, empty = data.train.files[3], data.test.files[2]
    missing.unlink()
    empty.write_bytes(b"")
    with open_loader(data, "dali") as loader:
        with pytest.raises(DataError, match=f"{missing}: cannot be read .No such file"):
            list(loader.train_batches(0, batch_size=4, seed=0))
        with pytest.raises(DataError, match=f"{empty}: cannot be decoded as an image .it is empty"):
            list(loader.eval_batches("test", batch_size=4))


def test_an_image_smaller_than_the_crop_is_named(tmp_path):
    data = photos(write_folder(tmp_path, "png", side=24))
    data.test.crop = 60
    with (
        open_loader(data, "dali") as loader,
        pytest.raises(DataError, match=r"00\.png: expected at least 60 x 60 pixels"),
    ):
        list(loader.eval_batches("test", batch_size=4))


def test_an_error_of_a_split_comes_through_as_it_is():
    class Broken(Split):
        labels = torch.zeros(6, dtype=torch.int64)

        def fetch(self, indices):
            raise DataError("item 3: has no image")

        def digest(self):
            return b""

    data = make()
    object.__setattr__(data, "test", Broken())
    with open_loader(data, "dali") as loader, pytest.raises(DataError, match="item 3: has no image"):
        list(loader.eval_batches("test", batch_size=4))


def test_impossible_requests_are_refused_at_the_call():
    with open_loader(make(), "dali") as loader:
        for call in (
            lambda: loader.train_batches(0, batch_size=0, seed=0),
            lambda: loader.train_batches(0, batch_size=50, seed=0, start_step=4),
            lambda: loader.eval_batches("training", batch_size=4),
        ):
            with pytest.raises(DataError):
                call()


def test_without_dali_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(DataError, match=r"loader 'dali': NVIDIA DALI.*pip install '.\[dali\]'"):
        DaliLoader(make())


def test_dali_is_not_imported_before_it_is_asked_for():
    program = "import sys, lit_fast.data.loaders; sys.exit(any(m.startswith('nvidia') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
