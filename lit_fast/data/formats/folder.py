"""Folders of image files: root/train/<class>/*, root/test/<class>/*, and root/val/<class>/* where there is one.

The latter may also be called valid or validation, and `root` may be the only folder in the one that is named. With it,
test/ may be missing or hold no classes, as ImageNet's does: the test split is then empty."""

import hashlib
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from lit_fast.data.augment import Augmentation
from lit_fast.data.base import Data, Split
from lit_fast.data.formats.images import check_header, in_threads, pillow, read_square
from lit_fast.data.options import IMAGENET_MEAN, IMAGENET_STD, Options
from lit_fast.data.splits import kept_and_held_out
from lit_fast.errors import DataError
from lit_fast.files import must_be_regular

_VAL = ("val", "valid", "validation")  # what people call it
EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class FolderSplit(Split):
    """Image files decoded when they are fetched, by several threads (Pillow decodes without the GIL).

    Args:
        root: the files' names are taken relative to it in the fingerprint, so that a folder may be moved.
        files: paths, one per image.
        labels: int64 [N].
        size: images become RGB squares of this many pixels.
        crop: pixels of the central square that is taken first; None: the largest there is.
    """

    ahead = True

    def __init__(self, root: Path, files: list[Path], labels: Tensor, size: int, crop: int | None = None) -> None:
        self.root = root
        self.files = files
        self.labels = labels
        self.size = size
        self.crop = crop
        self._hashes: list[bytes] = []  # of the files' contents, once they have been read for the digest

    def subset(self, indices: Tensor) -> "FolderSplit":
        """The images at `indices`, as a split of its own."""
        files = [self.files[i] for i in indices.tolist()]
        return FolderSplit(self.root, files, self.labels[indices], self.size, self.crop)

    def fetch(self, indices: Tensor) -> Tensor:
        squares = in_threads(lambda i: read_square(self.files[i], self.size, self.crop), indices.tolist())
        return torch.stack(squares) if squares else torch.empty((0, 3, self.size, self.size), dtype=torch.uint8)

    def digest(self, without: Collection[str] = ()) -> bytes:
        """Names and full contents of the files, but for the contents of some names; reads every file once."""
        sha = hashlib.sha256()
        self._hashes = self._hashes or in_threads(_file_hash, self.files)
        for path, content in zip(self.files, self._hashes):
            name = self.name(path)
            sha.update(name.encode(errors="surrogateescape") + b"\0" + (b"" if name in without else content))
        return sha.digest()

    def name(self, path: Path) -> str:
        """What the fingerprint calls a file."""
        return path.relative_to(self.root).as_posix()

    def is_as_it_was(self, path: Path) -> bool:
        """Whether a file has the content that it had when the digest was made."""
        return bool(self._hashes) and _file_hash(path) == self._hashes[self.files.index(path)]


def load(options: Options) -> Data:
    """Open a folder of images; without val/ a tenth of the training images (or `val_size`) is held out.

    Every file's header is read at once; its pixels are decoded when they are needed. With ``on_bad_image="skip"`` every
    file is decoded once now, and those that cannot be are left out. Default normalisation: ImageNet's.

    Raises:
        DataError: naming the folder or file: missing or empty folders, classes that differ between the splits, files
            that are not images, Pillow missing.
    """
    if options.data_dir is None:
        raise DataError("folder: data_dir is needed: a folder with train/<class>/* and test/<class>/*")
    if options.image_size is None:
        raise DataError(
            "folder: image_size is needed: the pixels of a side that images are resized to, such as 32 or 224"
        )
    pillow()
    root = _holder_of_train(options.data_dir)
    classes = _classes(root / "train")
    val = next((name for name in _VAL if (root / name).is_dir()), None)
    # ImageNet's test images come without classes, in one folder or not at all.
    tested = val is None or _has_classes(root / "test")
    names = ("train", *([] if val is None else [val]), *(["test"] if tested else []))
    splits = {name: _scan(root, name, classes, options.image_size) for name in names}
    left_out: list[str] = []
    if options.on_bad_image == "skip":
        for name, split in splits.items():
            splits[name], bad = sound(split)
            left_out += bad
            _check_classes(root / name, splits[name].labels, classes)
    else:
        in_threads(check_header, [file for split in splits.values() for file in split.files])
    train = splits["train"]
    kept, held_out = kept_and_held_out(train.labels, options, own_val=val is not None)
    return Data(
        name="folder",
        shape=(3, options.image_size, options.image_size),
        classes=classes,
        mean=options.mean or IMAGENET_MEAN,
        std=options.std or IMAGENET_STD,
        augmentation=options.augmentation or Augmentation(pad=options.image_size // 8, flip=True),
        train=train.subset(kept),
        val=train.subset(held_out) if val is None else splits[val],
        test=splits["test"] if tested else train.subset(torch.empty(0, dtype=torch.int64)),
        left_out=tuple(left_out),
    )


def sound(split: FolderSplit) -> tuple[FolderSplit, list[str]]:
    """The images of a split that can be decoded, and for each of the others its file and why it cannot.

    Decodes every file once. Which images are left out so depends on the files alone: on any process, before any batch.
    """

    def problem(at: int) -> str | None:
        try:
            read_square(split.files[at], split.size, split.crop)
        except DataError as error:
            return str(error)
        return None

    problems = in_threads(problem, range(len(split)))
    good = [at for at, found in enumerate(problems) if found is None]
    return split.subset(torch.tensor(good, dtype=torch.int64)), [found for found in problems if found is not None]


def _holder_of_train(folder: Path) -> Path:
    """The folder itself, or the only one in it that holds train/, as archives often unpack."""
    if (folder / "train").is_dir() or not folder.is_dir():
        return folder
    holders = [entry for entry in folder.iterdir() if (entry / "train").is_dir()]
    return holders[0] if len(holders) == 1 else folder


def _has_classes(folder: Path) -> bool:
    return folder.is_dir() and any(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir())


def _classes(folder: Path) -> tuple[str, ...]:
    """Names of the class folders, sorted; hidden ones do not count."""
    if not folder.is_dir():
        raise DataError(f"{folder}: missing; expected a folder with one folder of images per class")
    classes = tuple(
        sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    )
    if not classes:
        raise DataError(f"{folder}: holds no class folders; expected one folder of images per class")
    return classes


def _scan(root: Path, name: str, classes: tuple[str, ...], size: int) -> FolderSplit:
    found = _classes(root / name)
    if found != classes:
        missing = ", ".join(sorted(set(classes) - set(found))) or "none"
        extra = ", ".join(sorted(set(found) - set(classes))) or "none"
        raise DataError(
            f"{root / name}: expected the classes of {root / 'train'}; missing here: {missing}; only here: {extra}"
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        folder = root / name / class_name
        images = sorted(f for f in folder.iterdir() if f.suffix.lower() in EXTENSIONS and not f.name.startswith("."))
        if not images:
            raise DataError(
                f"{folder}: holds no images; expected files ending in {', '.join(EXTENSIONS)}{_deeper(folder)}"
            )
        files += images
        labels += [label] * len(images)
    return FolderSplit(root, files, torch.tensor(labels, dtype=torch.int64), size)


def _deeper(folder: Path) -> str:
    """Where images of a class lie in folders of their own, what to do."""
    deeper = next((file.parent for file in sorted(folder.rglob("*")) if file.suffix.lower() in EXTENSIONS), None)
    return "" if deeper is None else f"; there are some in {deeper}: move them up, or name a data_dir that fits"


def _check_classes(folder: Path, labels: Tensor, classes: tuple[str, ...]) -> None:
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    for name, count in zip(classes, counts):
        if not count:
            raise DataError(f"{folder / name}: none of its images can be decoded; replace them or remove the class")


def _file_hash(path: Path) -> bytes:
    must_be_regular(path)
    return hashlib.sha256(path.read_bytes()).digest()
