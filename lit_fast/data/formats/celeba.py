"""CelebA as published: a folder of aligned faces and ``list_attr_celeba.txt``; labels are attributes, several per face.

Of the images in the file's order, shuffled as StarGAN's code shuffles them, the first 2,000 are the test split
(Choi et al. 2018, section 5.1), the others are trained on, less a validation part.
"""

import difflib
import os
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lit_fast.data.augment import Augmentation
from lit_fast.data.base import Data
from lit_fast.data.formats.folder import FolderSplit, sound
from lit_fast.data.formats.images import pillow
from lit_fast.data.options import Options
from lit_fast.data.tables import generator
from lit_fast.errors import DataError
from lit_fast.files import must_be_regular

ATTRIBUTES = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young")  # StarGAN's, and the LIT paper's figure 9
CROP, SIZE = 178, 128  # pixels: the width of an aligned image; StarGAN's training size
TEST_SIZE, VAL_SIZE = 2000, 2000
_SMALL = 20_000  # a file of fewer rows is a sample: then a tenth is tested on
_SHUFFLE_SEED = 1234
_LIST = "list_attr_celeba.txt"
_TABLE = "list_attr_celeba.csv"  # Kaggle's copy: commas, no count, and the images one folder deeper
_IMAGE_FOLDERS = ("img_align_celeba", "images")


@dataclass(frozen=True)
class Faces:
    """Rows of an attribute file: `names` of image files, their `lines` in it, and `values` float32 [N, A], 0 or 1."""

    names: list[str]
    lines: list[int]
    values: Tensor


def load(options: Options) -> Data:
    """Open CelebA.

    Default normalisation: mean and deviation 0.5, which is -1..1, the range of the generator's output.

    Raises:
        DataError: naming file and line: missing files, malformed rows, counts that differ, unknown attributes, or
            images smaller than the crop.
    """
    if options.data_dir is None:
        raise DataError(f"celeba: data_dir is needed: a folder with {_LIST} and {_IMAGE_FOLDERS[0]}/")
    pillow()
    listing, folder = _find(options.data_dir)
    attributes = ATTRIBUTES if options.attributes is None else options.attributes
    crop = CROP if options.crop is None else options.crop
    size = SIZE if options.image_size is None else options.image_size
    faces = read_attributes(listing, attributes)
    _check_images(listing, folder, faces, crop)
    everything = FolderSplit(folder, [folder / name for name in faces.names], faces.values, size, crop)
    splits = [everything.subset(rows) for rows in _split(len(faces.names), options)]
    left_out: list[str] = []
    if options.on_bad_image == "skip":
        for place, split in enumerate(splits):
            splits[place], problems = sound(split)
            left_out += problems
    return Data(
        name="celeba",
        shape=(3, size, size),
        classes=attributes,
        mean=options.mean or (0.5, 0.5, 0.5),
        std=options.std or (0.5, 0.5, 0.5),
        augmentation=options.augmentation or Augmentation(flip=True),
        train=splits[0],
        val=splits[1],
        test=splits[2],
        left_out=tuple(left_out),
    )


def read_attributes(path: Path, attributes: tuple[str, ...]) -> Faces:
    """Read the wanted columns of an attribute file: a count, the names, then ``file.jpg -1 1 ...`` for every image.

    Kaggle's has commas and no count: ``image_id`` and the names, then ``file.jpg,-1,1,...``.

    Raises:
        DataError: naming the file and the line.
    """
    try:
        rows = path.read_text(encoding="utf-8-sig").splitlines()  # with or without a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    commas = path.name == _TABLE
    at = 1 if commas else 2  # the line of the attributes' names
    if not commas and (len(rows) < 3 or not rows[0].strip().isdecimal()):
        raise DataError(f"{path}:1: expected the number of images, then a line of attribute names, then one per image")
    if commas and (len(rows) < 2 or not rows[0].startswith("image_id,")):
        raise DataError(f"{path}:1: expected image_id and attribute names, with commas, then a line per image")
    known = rows[0].split(",")[1:] if commas else rows[1].split()
    columns = [_column(f"{path}:{at}", known, name) for name in attributes]
    names, lines, values = [], [], []
    for number, row in enumerate(rows[at:], start=at + 1):
        if not row.strip():
            continue
        name, *fields = row.split("," if commas else None)
        if len(fields) != len(known) or not set(fields) <= {"1", "-1"}:
            raise DataError(
                f"{path}:{number}: expected a file name and {len(known)} values of 1 or -1 (one per attribute of line "
                f"{at}), got {row[:60]!r} ({len(fields)} values)"
            )
        names.append(name)
        lines.append(number)
        values.append([fields[column] == "1" for column in columns])
    if not commas and len(names) != int(rows[0]):
        raise DataError(
            f"{path}:1: says {int(rows[0])} images, but {len(names)} rows follow; the file may be cut short"
        )
    return Faces(names, lines, torch.tensor(values, dtype=torch.float32))


def _column(line: str, known: list[str], name: str) -> int:
    if name in known:
        return known.index(name)
    close = difflib.get_close_matches(name, known, n=2)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"
    raise DataError(f"{line}: there is no attribute {name!r}; {hint}")


def _find(root: Path) -> tuple[Path, Path]:
    """The attribute file and the folder of images, in `root` or in its folder ``celeba``."""
    if not root.is_dir():
        raise DataError(f"data_dir: {root} is not a folder")
    for place in (root, root / "celeba"):
        listing = next((place / name for name in (_LIST, _TABLE) if (place / name).is_file()), None)
        if listing is not None:
            for name in _IMAGE_FOLDERS:
                for folder in (place / name / name, place / name):
                    if folder.is_dir():
                        return listing, folder
            raise DataError(
                f"{place}: holds {listing.name} but no folder {' or '.join(_IMAGE_FOLDERS)} with the images"
            )
    raise DataError(f"{root}: holds no {_LIST} or {_TABLE}, neither itself nor in a folder celeba")


def _check_images(listing: Path, folder: Path, faces: Faces, crop: int) -> None:
    there = {entry.name for entry in os.scandir(folder)}
    for name, line in zip(faces.names, faces.lines):
        if name not in there:
            raise DataError(f"{listing}:{line}: there is no image {name} in {folder}")
    first = folder / faces.names[0]
    try:
        must_be_regular(first)
        with pillow().open(first) as image:
            short = min(image.size)
    except OSError as error:
        raise DataError(f"{first}: cannot be read as an image ({error})") from error
    if short < crop:
        raise DataError(
            f"crop: expected at most {short} pixels, the shorter side of {first}, got {crop}; half-size images take 89"
        )


def _split(count: int, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of train, val and test; test is the same whatever the options are."""
    shuffled = list(range(count))
    random.Random(_SHUFFLE_SEED).shuffle(shuffled)
    test_size = TEST_SIZE if count >= _SMALL else count // 10
    rest = torch.tensor(shuffled[test_size:], dtype=torch.int64)
    val_size = min(VAL_SIZE, count // 10) if options.val_size is None else options.val_size
    if not 0 <= val_size < len(rest):
        raise DataError(f"val_size: expected 0..{len(rest) - 1} (images that are not test), got {val_size}")
    rest = rest[torch.randperm(len(rest), generator=generator("celeba", options.val_seed))]
    train_size = len(rest) - val_size if options.train_size is None else options.train_size
    if train_size > len(rest) - val_size:
        raise DataError(f"train_size: expected at most {len(rest) - val_size}, got {train_size}")
    val, train = rest[:val_size], rest[val_size : val_size + train_size]
    return train.sort().values, val.sort().values, torch.tensor(sorted(shuffled[:test_size]), dtype=torch.int64)
