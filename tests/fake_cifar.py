"""Small CIFAR archives in every published form, for tests.

The pickles of the python version are written both as Python 2 wrote the published ones and as NumPy writes them today.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from lit_fast.data.formats import cifar

TRAIN = {"cifar10": 40, "cifar100": 200}  # records per training file
TEST = {"cifar10": 20, "cifar100": 100}
FORMS = [
    ("cifar10", "cifar-10-batches-bin"),
    ("cifar10", "cifar-10-batches-py"),
    ("cifar100", "cifar-100-binary"),
    ("cifar100", "cifar-100-python"),
]


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the readers expect as few records per file as `write` makes."""
    for name, family in cifar.FAMILIES.items():
        versions = tuple(
            dataclasses.replace(version, train_records=TRAIN[name], test_records=TEST[name])
            for version in family.versions
        )
        monkeypatch.setitem(cifar.FAMILIES, name, dataclasses.replace(family, versions=versions))


def version_of(name: str, folder: str) -> cifar.Version:
    return next(version for version in cifar.FAMILIES[name].versions if version.folder == folder)


def records(name: str, file: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [count, 3072], labels [count]): the same for both versions of a dataset; every class appears."""
    generator = np.random.default_rng([len(name), file])
    classes = len(cifar.FAMILIES[name].classes)
    return generator.integers(0, 256, (count, 3072), dtype=np.uint8), np.arange(count) % classes


def write(root: Path, name: str, folder: str, *, python2: bool = False) -> Path:
    """Write a whole dataset below `root`; returns its folder."""
    version = version_of(name, folder)
    target = root / folder
    target.mkdir(parents=True)
    files = [(f, TRAIN[name]) for f in version.train_files] + [(f, TEST[name]) for f in version.test_files]
    for number, (file, count) in enumerate(files):
        pixels, labels = records(name, number, count)
        if version.label_bytes:
            coarse = np.full((count, version.label_bytes - 1), 7, dtype=np.uint8)
            table = np.concatenate([coarse, labels[:, None].astype(np.uint8), pixels], axis=1)
            (target / file).write_bytes(table.tobytes())
        else:
            key = version.label_key
            content = {b"data": pixels, key: labels.tolist(), b"batch_label": b"fake", b"filenames": [b"a.png"] * count}
            (target / file).write_bytes(
                python2_pickle(pixels, labels.tolist(), key) if python2 else pickle.dumps(content, protocol=2)
            )
    return target


def pack(folder: Path, tarball: Path) -> Path:
    """The folder as the .tar.gz it is published in."""
    with tarfile.open(tarball, "w:gz", compresslevel=1) as tar:
        tar.add(folder, arcname=folder.name)
    return tarball


def python2_pickle(pixels: np.ndarray, labels: list[int], key: bytes, *, column_major: bool = False) -> bytes:
    """What Python 2's cPickle wrote at protocol 2 for {"data": uint8 array, key: list}."""
    out = io.BytesIO()

    def string(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    out.write(b"\x80\x02}(" + string(b"data"))
    out.write(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R")
    out.write(b"(K\x01" + integer(pixels.shape[0]) + integer(pixels.shape[1]) + b"\x86")
    out.write(b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R")
    out.write(b"(K\x03" + string(b"|") + b"NNN" + integer(-1) + integer(-1) + b"K\x00tb")
    out.write((b"\x88" if column_major else b"\x89") + string(pixels.tobytes("F" if column_major else "C")) + b"tb")
    out.write(string(key) + b"](" + b"".join(map(integer, labels)) + b"e")
    out.write(b"u.")
    return out.getvalue()
