"""Amazon Reviews, full (five stars) and polarity (two classes), from the CSV files of Zhang et al. 2015."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lit_fast.data.augment import Augmentation
from lit_fast.data.base import Data, TensorSplit
from lit_fast.data.formats import token_cache
from lit_fast.data.formats.alphabet import byte_tokens
from lit_fast.data.formats.reviews import tokenise
from lit_fast.data.options import Options
from lit_fast.data.splits import kept_and_held_out
from lit_fast.errors import ClassError, DataError

LENGTH = 1014  # Zhang et al. 2015, section 4.1; VDCNN keeps it
_PART = 64 << 20  # bytes of text that are tokenised at a time
_RULES = 1  # to be raised when the same text is to become other tokens: part of a token file's key


@dataclass(frozen=True)
class Family:
    """One of the two datasets: the folder its archive unpacks to, and its classes, which the files count from 1."""

    folder: str
    classes: tuple[str, ...]


FAMILIES = {
    "amazon-full": Family("amazon_review_full_csv", ("1 star", "2 stars", "3 stars", "4 stars", "5 stars")),
    "amazon-polarity": Family("amazon_review_polarity_csv", ("negative", "positive")),
}


class TokenSplit(TensorSplit):
    """Rows of a token file; hashed by the text it was made from, which is known already.

    Args:
        tokens: uint8 [M, L].
        labels: int64 [M].
        key: the token file's, which stands for the contents of `tokens`.
        indices: as for `TensorSplit`.
    """

    def __init__(self, tokens: Tensor, labels: Tensor, key: bytes, indices: Tensor | None = None) -> None:
        super().__init__(tokens, labels, indices)
        self.key = key

    def digest(self) -> bytes:
        return hashlib.sha256(self.key + self.indices.contiguous().numpy().tobytes()).digest()


def load(name: str, options: Options) -> Data:
    """Open "amazon-full" or "amazon-polarity"; each file is tokenised when it is first seen (see `token_cache`).

    A tenth of the training reviews (or `val_size`) is held out for validation.

    Raises:
        DataError: naming the file and line: a missing file, a malformed line, classes that are not this dataset's.
    """
    family = FAMILIES[name]
    for what, value in (
        ("image_size", options.image_size), ("mean", options.mean), ("std", options.std),
        ("augmentation", options.augmentation),
    ):  # fmt: skip
        if value is not None:
            raise DataError(f"{name}: {what} is for images, got {value!r}; leave it out")
    folder = _folder(name, family, options.data_dir)
    length = options.length or LENGTH
    tokens, labels, key = _read(folder / "train.csv", name, options, length)
    test_tokens, test_labels, test_key = _read(folder / "test.csv", name, options, length)
    present = (torch.bincount(labels, minlength=len(family.classes)) > 0).nonzero().flatten() + 1
    if len(present) < len(family.classes):
        raise DataError(
            f"{folder / 'train.csv'}: expected reviews of the classes 1..{len(family.classes)} of {name}, found only "
            f"{', '.join(map(str, present.tolist()))}; {_other(name)}"
        )
    kept, held_out = kept_and_held_out(labels, options, own_val=False)
    return Data(
        name=name,
        shape=(length,),
        classes=family.classes,
        mean=(),
        std=(),
        augmentation=Augmentation(),
        train=TokenSplit(tokens, labels, key, kept),
        val=TokenSplit(tokens, labels, key, held_out),
        test=TokenSplit(test_tokens, test_labels, test_key),
    )


def _folder(name: str, family: Family, data_dir: Path | None) -> Path:
    """The folder that holds train.csv and test.csv."""
    wanted = f"a folder with train.csv and test.csv, such as {family.folder}/, or one that holds it"
    if data_dir is None:
        raise DataError(f"{name}: data_dir is needed: {wanted}")
    if not data_dir.is_dir():
        what = "is not a folder" if data_dir.exists() else "does not exist"
        raise DataError(f"data_dir: {data_dir} {what}; expected {wanted}")
    for place in (data_dir, data_dir / family.folder):
        found = [file for file in ("train.csv", "test.csv") if (place / file).is_file()]
        if len(found) == 2:
            return place
        if found:
            (missing,) = {"train.csv", "test.csv"} - set(found)
            raise DataError(f"{place / missing}: missing; unpack the archive again")
    raise DataError(f"{name}: {data_dir} holds no train.csv and test.csv; expected {wanted}")


def _read(file: Path, name: str, options: Options, length: int) -> tuple[Tensor, Tensor, bytes]:
    """Tokens uint8 [N, length], labels int64 [N] and the key of one file, from its token file, made first if absent."""
    try:
        with file.open("rb") as source:
            if not source.seek(0, 2):
                raise DataError(f"{file}: is empty; unpack the archive again")
            content = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
    classes = len(FAMILIES[name].classes)
    sha = hashlib.sha256(repr((_RULES, byte_tokens(), length, classes)).encode())
    sha.update(content)
    key = sha.digest()
    cached = (options.cache_dir or file.parent) / f"{file.stem}-{name}-{length}-{key.hex()[:16]}.tokens"
    rows = token_cache.read(cached, key, length)
    if rows is None:
        try:
            token_cache.write(cached, key, _parts(content, str(file), length, classes))
        except ClassError as error:
            raise DataError(f"{error}; {_other(name)}") from None
        rows = token_cache.read(cached, key, length)
        if rows is None:
            raise DataError(f"{cached}: does not read back as it was written; check the disk")
    tokens, labels = rows
    return tokens, labels.to(torch.int64), key


def _parts(content: mmap.mmap, path: str, length: int, classes: int) -> Iterator[token_cache.Rows]:
    """Tokens and labels of some 64 MB of lines at a time."""
    start, line = 0, 1
    while start < len(content):
        end = content.rfind(b"\n", start, start + _PART) + 1 or content.find(b"\n", start) + 1 or len(content)
        tokens, labels = tokenise(content[start:end], path, length=length, classes=classes, first_line=line)
        yield tokens, labels
        start, line = end, line + len(labels)


def _other(name: str) -> str:
    (other,) = FAMILIES.keys() - {name}
    return f"is this {other}?"
