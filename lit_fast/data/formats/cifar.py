"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from the archives as they are published, binary or python version.

The records of both versions are the same: label byte(s), then 3,072 pixel bytes, the red, green and blue planes of a
32 x 32 image in row order. `archive` finds the files, unpacked or inside the .tar.gz; this module knows what is in
them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_fast.data.augment import Augmentation, resize
from lit_fast.data.base import Data, TensorSplit
from lit_fast.data.formats.archive import Archive, Form, find
from lit_fast.data.formats.pickles import read_pickle, uint8_matrix
from lit_fast.data.options import Options
from lit_fast.data.splits import train_val_indices
from lit_fast.errors import DataError

SIDE = 32
PIXELS = 3 * SIDE * SIDE
VAL_SIZE = 5_000

_CLASSES_10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CLASSES_100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


@dataclass(frozen=True)
class Version(Form):
    """A published form of CIFAR and how its files are to be read.

    Binary version: `label_bytes` stand before the pixels of each record, and the last of them is the label. Python
    version: `label_bytes` is 0 and `label_key` names the labels.
    """

    train_records: int  # per file
    test_records: int
    label_bytes: int = 0
    label_key: bytes = b""


@dataclass(frozen=True)
class Family:
    """CIFAR-10 or CIFAR-100: its versions in order of preference, class names, normalisation."""

    versions: tuple[Version, ...]
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_BATCHES_BIN = tuple(f"{name}.bin" for name in _BATCHES)

FAMILIES = {
    "cifar10": Family(
        versions=(
            Version("cifar-10-batches-bin", "cifar-10-binary.tar.gz", 170_052_171, _BATCHES_BIN, ("test_batch.bin",),
                    10_000, 10_000, label_bytes=1),
            Version("cifar-10-batches-py", "cifar-10-python.tar.gz", 170_498_071, _BATCHES, ("test_batch",),
                    10_000, 10_000, label_key=b"labels"),
        ),
        classes=tuple(_CLASSES_10.split()),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": Family(
        versions=(
            Version("cifar-100-binary", "cifar-100-binary.tar.gz", 168_513_733, ("train.bin",), ("test.bin",),
                    50_000, 10_000, label_bytes=2),
            Version("cifar-100-python", "cifar-100-python.tar.gz", 169_001_437, ("train",), ("test",),
                    50_000, 10_000, label_key=b"fine_labels"),
        ),
        classes=tuple(_CLASSES_100.split()),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
}  # fmt: skip


def load(name: str, options: Options) -> Data:
    """Read "cifar10" or "cifar100": the standard test split; validation (default 5,000) is taken from the training set.

    Args:
        name: key of `FAMILIES`.
        options: `data_dir` is the unpacked folder, the archive, or a folder that holds either.

    Raises:
        DataError: if files are missing, truncated or corrupt, naming the file, what was expected and what was found.
    """
    family = FAMILIES[name]
    if options.data_dir is None:
        raise DataError(f"{name}: data_dir is needed: {_wanted(family)}, or a folder that holds one of them")
    archive = find(options.data_dir, family.versions)
    if archive is None:
        raise DataError(
            f"{name}: {options.data_dir} holds no {name} data; expected {_wanted(family)},"
            " or a folder that holds one of them"
        )
    version = family.versions[archive.form]
    classes = len(family.classes)
    train = _read(archive, version, version.train_files, version.train_records, classes)
    test = _read(archive, version, version.test_files, version.test_records, classes)
    size = options.image_size or SIDE
    images, labels = resize(train[0], size), train[1]
    val_size = VAL_SIZE if options.val_size is None else options.val_size
    train_indices, val_indices = train_val_indices(labels, val_size, options.val_seed, options.train_size)
    return Data(
        name=name,
        shape=(3, size, size),
        classes=family.classes,
        mean=options.mean or family.mean,
        std=options.std or family.std,
        augmentation=options.augmentation or Augmentation(pad=size // 8, flip=True),
        train=TensorSplit(images, labels, train_indices),
        val=TensorSplit(images, labels, val_indices),
        test=TensorSplit(resize(test[0], size), test[1]),
    )


def _wanted(family: Family) -> str:
    return " or ".join(f"{version.folder}/ (or {version.tarball})" for version in family.versions)


def _read(
    archive: Archive, version: Version, files: Sequence[str], records: int, classes: int
) -> tuple[Tensor, Tensor]:
    """(uint8 [N, 3, 32, 32], int64 [N]) of the files in order."""
    parse = _binary if version.label_bytes else _python
    parts = [parse(archive.read(name), archive.path(name), version, records) for name in files]
    for name, (_, labels) in zip(files, parts):
        bad = ((labels < 0) | (labels >= classes)).nonzero()
        if len(bad):
            at = int(bad[0])
            raise DataError(
                f"{archive.path(name)}: label {int(labels[at])} of image {at} is outside 0..{classes - 1};"
                " the file is corrupt"
            )
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def _binary(content: bytes, path: str, version: Version, records: int) -> tuple[Tensor, Tensor]:
    record = version.label_bytes + PIXELS
    if len(content) != records * record:
        raise DataError(
            f"{path}: expected {records * record} bytes ({records} records of {record}), got {len(content)};"
            f" the file is truncated or corrupt: unpack {version.tarball} again"
        )
    table = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(records, record)
    labels = table[:, version.label_bytes - 1].to(torch.int64)
    return table[:, version.label_bytes :].reshape(records, 3, SIDE, SIDE), labels


def _python(content: bytes, path: str, version: Version, records: int) -> tuple[Tensor, Tensor]:
    batch = read_pickle(content, path)
    if not isinstance(batch, dict) or b"data" not in batch or version.label_key not in batch:
        keys = sorted(map(repr, batch))[:8] if isinstance(batch, dict) else type(batch).__name__
        raise DataError(f"{path}: expected a dictionary with the keys b'data' and {version.label_key!r}, got {keys}")
    labels = batch[version.label_key]
    kinds = {type(label).__name__ for label in labels} if isinstance(labels, list) else set()
    if kinds != {"int"} or len(labels) != records:
        got = f"{len(labels)} of {', '.join(sorted(kinds))}" if isinstance(labels, list) else type(labels).__name__
        raise DataError(f"{path}: expected {version.label_key!r} to be a list of {records} integers, got {got}")
    images = uint8_matrix(batch[b"data"], (records, PIXELS), path)
    return images.reshape(records, 3, SIDE, SIDE), torch.tensor(labels, dtype=torch.int64)
