"""CIFAR-10 in two parts of less than 62 MB without loss, for machines that take only so much at a time; and back.

    python -m benchmarks.gpu.pack CIFAR OUT      OUT/part1: test and half of the training images; OUT/part2: the rest
    python -m benchmarks.gpu.pack --seal FOLDER  the manifest of a folder that holds such sheets already

A part has sheets of 1,000 images in their original order, 40 a row, as lossless WebP (train_00.webp, test_00.webp and
so on), the labels of the whole dataset (labels.npz), and a manifest with a digest of the pixels of each sheet.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lit_fast.data import open_data
from lit_fast.files import write_json

PER_SHEET, PER_ROW, SIDE = 1000, 40, 32
MANIFEST, LABELS = "manifest.json", "labels.npz"
SPLITS = ("train", "test")
LIMIT = 62_000_000  # bytes of a part


class PackError(ValueError):
    """A part that cannot be read: the message names the file, what was expected and how to mend it."""


class Images(NamedTuple):
    """Images of one split in their original order: uint8 [N, 3, 32, 32], and their labels, uint8 [N]."""

    pixels: np.ndarray
    labels: np.ndarray


class Unpacked(NamedTuple):
    """What the parts hold; `whole` counts the training images of the dataset, whether they are there or not."""

    train: Images
    test: Images
    whole: int
    checked: bool  # against manifests


def pack(splits: Mapping[str, Images], out: Path, *, per_sheet: int = PER_SHEET) -> list[Path]:
    """Write ``out/part1`` and ``out/part2``; returns them.

    Raises:
        PackError: Pillow cannot write WebP, or a part is larger than `LIMIT`.
    """
    _needs_webp()
    half = (-(-len(splits["train"].labels) // per_sheet) + 1) // 2
    sheets = [
        (f"{split}_{number:02d}", splits[split].pixels[first : first + per_sheet], split == "train" and number >= half)
        for split in SPLITS
        for number, first in enumerate(range(0, len(splits[split].labels), per_sheet))
    ]
    parts = [out / "part1", out / "part2"]
    for part in parts:
        part.mkdir(parents=True, exist_ok=True)
        np.savez(part / LABELS, **{split: splits[split].labels.astype(np.uint8) for split in SPLITS})
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda sheet: _write(parts[sheet[2]] / f"{sheet[0]}.webp", sheet[1]), sheets))
    for part in parts:
        seal(part, per_sheet=per_sheet)
        size = sum(file.stat().st_size for file in part.iterdir())
        if size > LIMIT:
            raise PackError(f"{part}: {size:,} bytes, expected at most {LIMIT:,}; move some of its sheets elsewhere")
    return parts


def seal(part: Path, *, per_sheet: int = PER_SHEET) -> None:
    """Write the manifest of the sheets in a folder, from what they hold now."""
    labels = _labels(part)
    digests = {}
    for name, pixels in _decoded(part, labels, per_sheet):
        digests[name] = hashlib.sha256(pixels.tobytes()).hexdigest()
    write_json(part / MANIFEST, {"per_sheet": per_sheet, "sha256": digests})


def unpack(folders: Sequence[Path]) -> Unpacked:
    """Read the parts in the folders, or in folders ``part1`` and ``part2`` there; training images as far as they go.

    Raises:
        PackError: a sheet is missing between two others, or does not hold what was packed; the test images are missing.
    """
    _needs_webp()
    parts = [part for folder in folders for part in (folder, folder / "part1", folder / "part2") if is_part(part)]
    if not parts:
        raise PackError(f"{', '.join(map(str, folders))}: expected sheets and {LABELS}, as `benchmarks.gpu.pack` makes")
    labels = _labels(parts[0])
    sheets: dict[str, np.ndarray] = {}
    checked = True
    for part in parts:
        manifest = _manifest(part)
        per_sheet = manifest.get("per_sheet", PER_SHEET)
        checked = checked and bool(manifest)
        for name, pixels in _decoded(part, labels, per_sheet):
            expected = manifest.get("sha256", {}).get(name)
            if manifest and hashlib.sha256(pixels.tobytes()).hexdigest() != expected:
                raise PackError(f"{part / name}.webp does not hold the pixels that were packed; copy the part again")
            sheets[name] = pixels
    test = _joined("test", sheets, labels["test"])
    if len(test.labels) < len(labels["test"]) or "train_00" not in sheets:
        raise PackError(
            f"{', '.join(map(str, parts))}: {len(test.labels):,} of {len(labels['test']):,} test images and "
            f"{sum(name.startswith('train') for name in sheets)} sheets of training images; part1, which has all test "
            "images and the first sheets, is needed"
        )
    train = _joined("train", sheets, labels["train"])
    return Unpacked(train, test, len(labels["train"]), checked)


def is_part(folder: Path) -> bool:
    """Whether the folder holds sheets and labels."""
    return (folder / LABELS).is_file() and any(folder.glob("t*_*.webp"))


def _joined(split: str, sheets: Mapping[str, np.ndarray], labels: np.ndarray) -> Images:
    names = sorted(name for name in sheets if name.startswith(split))
    expected = [f"{split}_{number:02d}" for number in range(len(names))]
    if names != expected:
        missing = min(set(expected) - set(names))
        raise PackError(f"sheet {missing}.webp is missing, while {names[-1]}.webp is there; copy it, too")
    if not names:
        return Images(np.empty((0, 3, SIDE, SIDE), np.uint8), labels[:0])
    pixels = np.concatenate([sheets[name] for name in names])
    return Images(pixels, labels[: len(pixels)])


def _decoded(part: Path, labels: Mapping[str, np.ndarray], per_sheet: int) -> Iterator[tuple[str, np.ndarray]]:
    """Name and pixels uint8 [n, 3, 32, 32] of every sheet of a part; Pillow decodes in several threads at once."""
    files = sorted(file for split in SPLITS for file in part.glob(f"{split}_*.webp"))

    def read(file: Path) -> tuple[str, np.ndarray]:
        split, _, number = file.stem.partition("_")
        count = min(per_sheet, len(labels[split]) - per_sheet * int(number))
        return file.stem, _read(file, count)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(read, files)


def _write(file: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    rows = -(-len(pixels) // PER_ROW)
    grid = np.zeros((rows * PER_ROW, SIDE, SIDE, 3), np.uint8)
    grid[: len(pixels)] = pixels.transpose(0, 2, 3, 1)
    sheet = grid.reshape(rows, PER_ROW, SIDE, SIDE, 3).swapaxes(1, 2).reshape(rows * SIDE, PER_ROW * SIDE, 3)
    # Method 6 is 25 times slower and saves 1.5 %.
    Image.fromarray(sheet).save(file, "WEBP", lossless=True, exact=True, method=4, quality=80)


def _read(file: Path, count: int) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as image:
            sheet = np.asarray(image.convert("RGB"))
    except OSError as error:
        raise PackError(f"{file} cannot be decoded ({error}); copy the part again") from error
    rows = -(-count // PER_ROW)
    if sheet.shape != (rows * SIDE, PER_ROW * SIDE, 3):
        raise PackError(f"{file}: expected {count} images of {SIDE}x{SIDE}, {PER_ROW} a row, got {sheet.shape[:2]}")
    grid = sheet.reshape(rows, SIDE, PER_ROW, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
    return np.ascontiguousarray(grid[:count].transpose(0, 3, 1, 2))


def _labels(part: Path) -> dict[str, np.ndarray]:
    with np.load(part / LABELS) as content:
        return {split: content[split] for split in SPLITS}


def _manifest(part: Path) -> dict[str, Any]:
    file = part / MANIFEST
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _needs_webp() -> None:
    try:
        from PIL import features

        usable = features.check("webp")
    except ImportError:
        usable = False
    if not usable:
        raise PackError("Pillow with WebP is needed, and not installed here; give CIFAR-10 as it is published instead")


def published(folder: Path) -> dict[str, Images]:
    """CIFAR-10 as it is published, in its original order."""
    data = open_data("cifar10", data_dir=folder, val_size=0)
    found = {}
    for split in SPLITS:
        images = data.split(split)
        pixels = images.fetch(torch.arange(len(images))).numpy()
        found[split] = Images(pixels, images.labels.numpy().astype(np.uint8))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.pack", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="CIFAR", help="cifar-10-batches-bin or -py, or what holds it")
    parser.add_argument("out", type=Path, nargs="?", help="gets part1 and part2")
    parser.add_argument("--seal", action="store_true", help="write the manifest of the sheets in this folder")
    options = parser.parse_args()
    if options.seal:
        seal(options.folder)
    elif options.out is None:
        parser.error("OUT is needed")
    else:
        for part in pack(published(options.folder), options.out):
            size = sum(file.stat().st_size for file in part.iterdir())
            print(f"{part}: {len(list(part.glob('*.webp')))} sheets, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
