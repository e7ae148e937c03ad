"""The resident loader: what it keeps, when it fits, and what a graph that records its op relies on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_data import coloured, make, texts
from torch import Tensor

from lit_fast.data import Augmentation, DataError, Split, TensorSplit, from_arrays
from lit_fast.data.loaders import choose_loader, dali, memory, open_loader, resident


class Read(Split):
    """Images that are read when they are fetched, as those of files."""

    ahead = True

    def __init__(self, split: TensorSplit) -> None:
        self.split, self.labels = split, split.labels
        self.fetched: list[int] = []

    def fetch(self, indices: Tensor) -> Tensor:
        self.fetched += indices.tolist()
        return self.split.fetch(indices)

    def digest(self) -> bytes:
        return self.split.digest()


def read_data():
    data = coloured()
    return replace(data, **{name: Read(data.split(name)) for name in ("train", "val", "test")})


def free(monkeypatch: pytest.MonkeyPatch, count: int | None) -> None:
    monkeypatch.setattr(resident, "free_bytes", lambda _device: count)


# --- what is kept


def test_images_in_memory_are_used_where_they_are():
    data = make()
    with open_loader(data, "resident") as loader:
        assert loader._stored["train"].images.data_ptr() == data.train.images.data_ptr()


def test_images_that_are_read_are_read_once(monkeypatch):
    monkeypatch.setattr(resident, "_AT_ONCE", 20 * 180)  # several readings
    data = read_data()
    with open_loader(data, "resident") as loader:
        for epoch in range(2):
            list(loader.train_batches(epoch, batch_size=8, seed=0))
        list(loader.eval_batches("val", batch_size=8))
    for name in ("train", "val", "test"):
        assert data.split(name).fetched == list(range(len(data.split(name))))
    assert ", read in " in loader.reason


def test_read_images_make_the_same_batches():
    data, plain = read_data(), coloured()
    with open_loader(data, "resident") as loader:
        for got, right in zip(
            loader.train_batches(2, batch_size=8, seed=1), plain.train_batches(2, batch_size=8, seed=1)
        ):
            assert all(map(torch.equal, got, right))


def test_images_that_are_not_contiguous_make_the_same_batches():
    data = coloured()
    images = data.train.images.to(memory_format=torch.channels_last)
    split = TensorSplit(images, torch.zeros(len(images), dtype=torch.int64), data.train.indices)
    split.labels = data.train.labels
    with open_loader(replace(data, train=split), "resident") as loader:
        for got, right in zip(
            loader.train_batches(0, batch_size=8, seed=1), data.train_batches(0, batch_size=8, seed=1), strict=True
        ):
            assert all(map(torch.equal, got, right))


def test_a_closed_loader_keeps_nothing():
    loader = open_loader(read_data(), "resident")
    loader.close()
    loader.close()
    assert not loader._stored
    assert not hasattr(loader, "training")


# --- when it fits


def test_what_does_not_fit_is_streamed_and_auto_says_so_with_the_sizes(monkeypatch):
    data = read_data()
    needed = 3 * 6 * 10 * (len(data.train) + len(data.val) + len(data.test)) + 5 * 8 * len(data.train)
    free(monkeypatch, 2 * needed - 1)
    with open_loader(data) as loader:
        assert loader.name == "torch"
        assert loader.reason == "29 kB do not fit: a dataset may take half of the 59 kB that are free on cpu"
    free(monkeypatch, 2 * needed)
    with open_loader(data) as loader:
        assert loader.name == "resident"


@pytest.mark.parametrize(
    ("why_not", "name", "reason"),
    [(None, "dali", "are free on cpu; DALI decodes files"), ("no DALI here", "torch", "are free on cpu; no DALI here")],
)
def test_files_that_do_not_fit_are_decoded_by_dali_where_it_is_installed(monkeypatch, why_not, name, reason):
    free(monkeypatch, 1000)
    monkeypatch.setattr(dali, "missing", lambda: why_not)
    data = read_data()
    assert choose_loader(data).name == "torch"  # no files
    data.val.files = [Path("picture.png")]
    choice = choose_loader(data)
    assert choice.name == name
    assert choice.reason.endswith(reason)
    free(monkeypatch, None)
    assert choose_loader(data).name == "resident"


def test_processes_share_the_memory_of_a_computer(monkeypatch):
    free(monkeypatch, 2 * 29460)
    assert choose_loader(read_data()).name == "resident"
    choice = choose_loader(read_data(), processes=2)
    assert choice.name == "torch"
    assert choice.reason.startswith("59 kB for 2 processes do not fit: ")


def test_what_does_not_fit_is_refused_where_it_was_asked_for(monkeypatch):
    free(monkeypatch, 1_000_000_000)
    data = read_data()
    monkeypatch.setattr(type(data.train), "__len__", lambda _split: 10_000_000)
    with pytest.raises(DataError, match=r"loader 'resident': arrays: 5\.8 GB do not fit: .* the 1\.0 GB that are free"):
        open_loader(data, "resident")


def test_images_that_lie_in_memory_already_need_no_more_of_it(monkeypatch):
    data = make()
    free(monkeypatch, 2 * 5 * 8 * len(data.train))  # the tables of an epoch
    with open_loader(data) as loader:
        assert loader.name == "resident"


def test_an_unknown_amount_of_memory_is_taken_for_enough(monkeypatch):
    free(monkeypatch, None)
    with open_loader(read_data()) as loader:
        assert loader.name == "resident"


def test_the_reason_tells_size_and_device():
    with open_loader(make()) as loader:
        assert loader.reason == "14 kB on cpu; the dataset fits"


@pytest.mark.parametrize(
    ("count", "text"), [(460_000, "460 kB"), (3_300_000, "3.3 MB"), (184_320_000, "184 MB"), (10**10, "10.0 GB")]
)
def test_sizes_are_told_in_readable_units(count, text):
    assert resident.shown(count) == text


def test_free_memory_is_what_the_system_gives_or_the_container_leaves(tmp_path: Path, monkeypatch):
    cpu = torch.device("cpu")
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemFree: 5 kB\nMemAvailable:   40 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.free_bytes(cpu) == 40 * 1024
    for name, content in (("max", "30000\n"), ("current", "25000\n"), ("stat", "anon 9\ninactive_file 1000\n")):
        (tmp_path / f"memory.{name}").write_text(content)
    assert memory.free_bytes(cpu) == 30000 - 25000 + 1000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(cpu) == 40 * 1024
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    assert memory.free_bytes(cpu) is None
    assert memory.free_bytes(torch.device("meta")) is None


# --- epochs


def test_beginning_another_epoch_ends_the_first():
    with open_loader(make(), "resident") as loader:
        first = loader.train_batches(0, batch_size=8, seed=0)
        next(first)
        second = loader.train_batches(1, batch_size=8, seed=0)
        with pytest.raises(RuntimeError, match="another epoch was begun"):
            next(first)
        assert all(map(torch.equal, next(second), next(make().train_batches(1, batch_size=8, seed=0))))


def test_evaluation_in_the_middle_of_an_epoch_changes_nothing():
    data = coloured()
    with open_loader(data, "resident") as loader:
        batches = loader.train_batches(0, batch_size=8, seed=0)
        for right in data.train_batches(0, batch_size=8, seed=0):
            assert all(map(torch.equal, next(batches), right))
            next(loader.eval_batches("val", batch_size=4))


# --- one recorded call


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_one_call_repeated_goes_through_the_epochs(dtype):
    """As a graph does that recorded `write` and an addition to the position: no other argument changes."""
    data = coloured()
    with open_loader(data, "resident") as loader:
        feed = loader.training
        images = torch.empty(8, 3, 6, 10, dtype=dtype, memory_format=torch.channels_last)
        labels = torch.empty(8, dtype=torch.int64)
        addresses = None
        for epoch, augment in ((0, True), (1, False), (2, True)):
            feed.begin(data.training_plan(epoch, batch_size=8, seed=3, augment=augment))
            feed.position.fill_(0)
            for right, right_labels in data.train_batches(epoch, batch_size=8, seed=3, augment=augment):
                if len(right) < 8:
                    break
                feed.write(images, labels)
                feed.position.add_(8)
                assert torch.equal(images, right.to(dtype))
                assert torch.equal(labels, right_labels)
            now = [tensor.data_ptr() for tensor in (feed._plan, feed.position, feed._levels[dtype])]
            assert addresses in (None, now)
            addresses = now


def test_texts_are_written_as_they_are():
    data = texts()
    with open_loader(data, "resident") as loader:
        loader.training.begin(data.training_plan(0, batch_size=8, seed=0))
        tokens, labels = torch.empty(8, 12, dtype=torch.int64), torch.empty(8, dtype=torch.int64)
        loader.training.write(tokens, labels)
        right, right_labels = next(data.train_batches(0, batch_size=8, seed=0))
        assert torch.equal(tokens, right)
        assert torch.equal(labels, right_labels)


# --- the distribution of crops and flips


def test_crops_and_flips_of_the_batches_are_distributed_as_torchvisions():
    """Read from the pixels: torchvision's RandomCrop(15, padding=4) draws each of its 9 x 9 places with the same
    probability, integers in both directions, and RandomHorizontalFlip mirrors half of them, whatever the place."""
    count, side = 162 * 200, 15
    image = torch.arange(1, side * side + 1, dtype=torch.uint8).view(1, 1, side, side)
    images = image.expand(count, -1, -1, -1)
    pair = images, torch.zeros(count, dtype=torch.int64)
    options = {"augmentation": Augmentation(pad=4, flip=True), "mean": (0.0,), "std": (1.0,), "num_classes": 2}
    data = from_arrays(pair, test=(images[:1], pair[1][:1]), val_size=0, **options)
    with open_loader(data, "resident") as loader:
        batches = [batch for batch, _ in loader.train_batches(0, batch_size=4096, seed=11)]
    row = (torch.cat(batches)[:, 0, 7] * 255).round().long() - 1  # the middle row holds its place in the image
    middle, left, right = row[:, 7], row[:, 6], row[:, 8]
    places = (middle // side - 3) * 9 + middle % side - 3
    flipped = left > right
    assert torch.equal(torch.where(flipped, left, right), middle + 1)
    counts = torch.bincount(places * 2 + flipped, minlength=162).double()
    assert len(counts) == 162
    chi_squared = float(((counts - 200) ** 2 / 200).sum())
    assert 100 < chi_squared < 240  # 161 degrees of freedom: both bounds lie beyond 1 in 10,000
