"""A small file that asks for much time or memory, or that is none, is refused at once."""

from __future__ import annotations

import os
import pickle
import tarfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from lit_fast import data as lf_data
from lit_fast.cli import app
from lit_fast.data.formats.archive import Form, find
from lit_fast.data.formats.images import check_header, read_square
from lit_fast.data.formats.pickles import read_pickle, uint8_matrix
from lit_fast.errors import ConfigError, DataError
from lit_fast.named_yaml import parse_yaml
from lit_fast.paper.search.run import Space
from lit_fast.settings.classifier import load_experiment


@pytest.fixture(autouse=True)
def _at_once() -> Iterator[None]:
    """Within seconds, on a machine that is busy, and 50 MB."""
    tracemalloc.start()
    began = time.perf_counter()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.perf_counter() - began < 10
    assert peak < 50e6


# -- pickles ---------------------------------------------------------------------------------------------------------


def doubled(count: int) -> bytes:
    """Opcodes of a tuple that holds another twice, which holds another twice ..."""
    steps = (b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(count))
    return b")q\x00" + b"".join(steps)


BIG = (3 << 30).to_bytes(8, "little")
PICKLES = {
    "a key": b"\x80\x02}" + doubled(60) + b"K\x01s.",
    "keys": b"\x80\x02}(" + doubled(60) + b"K\x01u.",
    "a dictionary": b"(" + doubled(60) + b"K\x01d.",
    "a set": b"\x80\x04\x8f(" + doubled(60) + b"\x90.",
    "a frozen set": b"\x80\x04(" + doubled(60) + b"\x91.",
    "bytes": b"\x80\x04\x8e" + BIG + b".",
    "a byte array": b"\x80\x05\x96" + BIG + b".",
    "a text": b"\x80\x04\x8d" + BIG + b".",
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_that_asks_for_much_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="refused as a CIFAR pickle"):
        read_pickle(PICKLES[name], "data_batch_1")


def test_a_place_in_the_memo_takes_no_room() -> None:
    read_pickle(b"\x80\x02Nr\xff\xff\xff\x7f.", "data_batch_1")


@pytest.mark.parametrize("where", ["shape", "type"])
def test_an_array_whose_parts_nest_is_refused(where: str) -> None:
    nested = read_pickle(b"\x80\x02" + doubled(60) + b".", "x")
    import numpy as np

    array = read_pickle(pickle.dumps(np.zeros((2, 3), np.uint8), protocol=2), "x")
    setattr(array, where, nested)
    with pytest.raises(DataError, match=r"expected an array of uint8 \(2, 3\), got"):
        uint8_matrix(array, (2, 3), "x")


def test_a_shape_of_endless_numbers_is_refused() -> None:
    import numpy as np

    array = read_pickle(pickle.dumps(np.zeros((2, 3), np.uint8), protocol=2), "x")
    array.shape = (10**5000, 3)
    with pytest.raises(DataError, match="of a shape that is none"):
        uint8_matrix(array, (2, 3), "x")


# -- YAML ------------------------------------------------------------------------------------------------------------


def laughs(count: int, empty: str = "lol") -> str:
    lines = [f"a0: &a0 [{empty}]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, count)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (laughs(30), "with its aliases written out it has more than 100,000 values"),
        ("a: &a [*a]", "deep"),
        ("[" * 5000, "deep"),
        ("a: " * 50 + "1", "mapping values are not allowed"),
        ("\n".join(" " * i + f"k{i}:" for i in range(200)), "more than 40 deep"),
        ("x" * (5 << 20), "at most 256 KiB of settings"),
        ("epochs: 1\nseed: 2\nepochs: 3", "the key 'epochs' is given twice, in the mapping at line 1"),
        ("data:\n  name: a\n  name: b", "the key 'name' is given twice, in the mapping at line 2"),
    ],
)
def test_settings_are_small_and_say_each_thing_once(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "my.yaml").write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        load_experiment("digits", tmp_path / "my.yaml")
    assert str(tmp_path / "my.yaml") in str(caught.value)


def test_aliases_and_merged_keys_are_still_settings() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]"
    assert parse_yaml(text) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": [{"x": 1, "y": 2}] * 2}


def test_an_override_is_held_to_the_same(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the key 'a' is given twice"):
        load_experiment("digits", None, ["loss={a: 1, a: 2}"])


# -- what is no file -------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("read", [check_header, lambda path: read_square(path, 8)])
def test_a_pipe_is_no_image(pipe: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(DataError, match="is a pipe, not a regular file"):
        read(pipe)


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--checkpoint", "{}"],
        ["export", "--checkpoint", "{}", "--to", "onnx", "--out", "x.onnx"],
        ["inspect", "--teacher", "resnet20", "--student", "resnet20", "--teacher-checkpoint", "{}"],
        ["distill", "--config", "{}"],
        ["distill", "--teacher-checkpoint", "{}", "--run-dir", "{}.run"],
        ["reproduce", "{}.yaml"],
        ["report", "{}.run"],
    ],
)
def test_a_pipe_is_no_file_of_any_command(pipe: Path, command: list[str]) -> None:
    for name in (f"{pipe}.yaml", f"{pipe}.run/results.json"):
        Path(name).parent.mkdir(exist_ok=True)
        os.mkfifo(name)
    result = CliRunner().invoke(app, [part.replace("{}", str(pipe)) for part in command])
    assert result.exit_code == 2
    assert str(pipe) in result.output
    assert "Traceback" not in result.output


# -- images ----------------------------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(1, 100_000_000), (100_000_000, 1), (60_000, 60_000), (2, 80_000_000)])
def test_an_image_of_odd_size_is_refused_before_it_is_decoded(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(width, height))
    with pytest.raises(DataError, match=r"x\.png") as caught:
        read_square(path, 32)
    assert "pixels" in str(caught.value) or "decoded" in str(caught.value)


def test_a_long_image_is_still_read(tmp_path: Path) -> None:
    Image.new("RGB", (8, 4000), (255, 0, 0)).save(tmp_path / "x.png")
    assert read_square(tmp_path / "x.png", 8)[0].eq(255).all()


# -- archives --------------------------------------------------------------------------------------------------------

FORM = Form("cifar", "cifar.tar.gz", 1000, ("train",), ("test",))


def archive(path: Path, members: dict[str, tuple[int, bytes]]) -> None:
    """Of zeros: (size, type)."""
    import gzip

    with gzip.open(path, "wb", compresslevel=1) as file:
        for name, (size, kind) in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.type = size, kind
            file.write(member.tobuf(tarfile.GNU_FORMAT))
            file.write(bytes(1024))


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
@pytest.mark.parametrize("name", ["cifar/train", "other"])
def test_an_archive_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, name: str, kind: bytes) -> None:
    archive(tmp_path / "cifar.tar.gz", {name: (3 << 30, kind)})
    with pytest.raises(DataError, match=r"cifar\.tar\.gz.*(unpacks to more than 400,000,000 bytes|download it again)"):
        find(tmp_path, [FORM])


def test_a_file_of_gigabytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar").mkdir()
    with (tmp_path / "cifar" / "train").open("wb") as file:
        file.truncate(3 << 30)
    found = find(tmp_path, [FORM])
    with pytest.raises(DataError, match="train: expected at most 400,000,000 bytes, got 3,221,225,472"):
        found.read("train")


# -- a search --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", [float("inf"), float("nan"), 1e300, 0.0, -1.0])
def test_a_search_has_ends(odd: float) -> None:
    with pytest.raises(ConfigError, match="tau: expected values > 0"):
        Space(tau=(1.0, odd)).check()
    if odd < 0 or odd != 0:
        with pytest.raises(ConfigError, match=r"alpha: expected 0\.\.1"):
            Space(alpha=(0.5, odd)).check()


def test_labels_of_three_billion_take_no_memory() -> None:
    images, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2, 3_000_000_000])
    with pytest.raises(DataError, match="3000000000"):
        lf_data.from_arrays((images, labels), test=(images, labels), val_size=1)
