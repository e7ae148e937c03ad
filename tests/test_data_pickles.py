"""A downloaded pickle must not be able to run anything."""

from __future__ import annotations

import os
import pickle
import subprocess

import fake_cifar
import numpy as np
import pytest
import torch

from lit_fast.data import DataError, open_data
from lit_fast.data.formats.pickles import read_pickle, uint8_matrix


class Call:
    """Pickles to a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("wrap", [lambda bomb: bomb, lambda bomb: {b"data": bomb, b"labels": [0]}])
def test_a_malicious_pickle_is_refused_and_nothing_runs(tmp_path, protocol, wrap):
    target = tmp_path / "ran"
    content = pickle.dumps(wrap(Call(os.mkdir, str(target))), protocol=protocol)
    with pytest.raises(DataError, match=r"evil: refused .*it names \w+\.mkdir, which no CIFAR file needs"):
        read_pickle(content, "evil")
    assert not target.exists()


@pytest.mark.parametrize(
    "bomb",
    [
        Call(eval, "1"),
        Call(subprocess.Popen, ["true"]),
        Call(getattr, "text", "upper"),
        Call(np.load, "x"),
        Call(np.frombuffer, b"x"),
    ],
)
def test_only_what_arrays_need_may_be_named(bomb):
    with pytest.raises(DataError, match="which no CIFAR file needs"):
        read_pickle(pickle.dumps(bomb), "evil")


def test_dotted_names_do_not_lead_out_of_what_is_allowed():
    content = b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93."
    with pytest.raises(DataError, match=r"names numpy\.ndarray\.dump"):
        read_pickle(content, "evil")


def test_other_codecs_are_refused():
    content = pickle.dumps(Call(__import__("_codecs").encode, "x", "rot13"), protocol=2)
    with pytest.raises(DataError, match="encodes text as 'rot13'"):
        read_pickle(content, "evil")


def test_opening_a_dataset_with_a_malicious_batch_names_the_file(tmp_path, monkeypatch):
    fake_cifar.shrink(monkeypatch)
    folder = fake_cifar.write(tmp_path, "cifar10", "cifar-10-batches-py")
    (folder / "data_batch_4").write_bytes(pickle.dumps({b"data": Call(os.mkdir, str(tmp_path / "ran"))}))
    with pytest.raises(DataError, match="data_batch_4: refused"):
        open_data("cifar10", data_dir=tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x02}(", b"<html></html>", b"\x80\x02K\x01Rb."])
def test_malformed_pickles_are_refused_by_name(content):
    with pytest.raises(DataError, match=f"batch: refused as a CIFAR pickle of {len(content)} bytes"):
        read_pickle(content, "batch")


def test_every_truncation_of_a_batch_is_refused():
    pixels, labels = fake_cifar.records("cifar10", 0, 2)
    content = fake_cifar.python2_pickle(pixels, labels.tolist(), b"labels")
    assert set(read_pickle(content, "batch")) == {b"data", b"labels"}
    for length in [*range(0, 150), *range(150, len(content), 997), len(content) - 1]:
        with pytest.raises(DataError, match="batch: refused"):
            read_pickle(content[:length], "batch")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_every_protocol_and_order_are_read(protocol, order):
    array = np.asarray(np.arange(12, dtype=np.uint8).reshape(3, 4), order=order)
    value = read_pickle(pickle.dumps(array, protocol=protocol), "batch")
    assert torch.equal(uint8_matrix(value, (3, 4), "batch"), torch.arange(12, dtype=torch.uint8).view(3, 4))


def test_an_array_whose_bytes_do_not_fill_its_shape_is_refused():
    pixels = np.zeros((2, 3072), np.uint8)
    content = fake_cifar.python2_pickle(pixels, [0, 0], b"labels").replace(b"\x02\x00\x00\x00", b"\x03\x00\x00\x00", 1)
    value = read_pickle(content, "batch")[b"data"]
    with pytest.raises(DataError, match="batch: expected 9216 bytes of pixels, got 6144"):
        uint8_matrix(value, (3, 3072), "batch")
