"""Find a published dataset in a folder or in its .tar.gz, and read members by name."""

import gzip
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_fast.errors import DataError
from lit_fast.files import must_be_regular

_MOST_BYTES = 400_000_000  # twice what a dataset of a form unpacks to


@dataclass(frozen=True)
class Form:
    """One form a dataset is published in: folder and archive names, the archive's size in bytes, the files needed."""

    folder: str
    tarball: str
    tarball_bytes: int
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        return self.train_files + self.test_files


@dataclass(frozen=True)
class Archive:
    """Where the files of a dataset lie: an unpacked folder, or the contents of a tar file.

    `form` is the position of the matched form in the list given to `find`.
    """

    form: int
    location: Path
    members: dict[str, bytes] | None = None  # None: `location` is a folder

    def path(self, name: str) -> str:
        """The file as messages name it."""
        return str(self.location / name)

    def read(self, name: str) -> bytes:
        """Contents of a file.

        Raises:
            DataError: if the file is missing or cannot be read.
        """
        if self.members is not None:
            if name not in self.members:
                raise DataError(f"{self.path(name)}: missing from the archive; download it again")
            return self.members[name]
        try:
            path = self.location / name
            must_be_regular(path)
            if path.stat().st_size > _MOST_BYTES:
                raise DataError(f"{path}: expected at most {_MOST_BYTES:,} bytes, got {path.stat().st_size:,}")
            return path.read_bytes()
        except FileNotFoundError:
            raise DataError(f"{self.path(name)}: missing; unpack the archive again") from None
        except OSError as error:
            raise DataError(f"{self.path(name)}: cannot be read ({error.strerror or error})") from error


def find(data_dir: Path, forms: Sequence[Form]) -> Archive | None:
    """Look for one of several published forms of a dataset.

    Unpacked folders win over archives, because a .tar.gz is decompressed at every start (a few seconds for CIFAR).

    Args:
        data_dir: the unpacked folder itself, an archive itself, or a folder that holds one.
        forms: what the dataset is published as, in order of preference.

    Returns:
        The first match, or None.

    Raises:
        DataError: if `data_dir` does not exist or a matching archive cannot be read.
    """
    if not data_dir.exists():
        raise DataError(f"data_dir: {data_dir} does not exist")
    if data_dir.is_file():
        for position, form in enumerate(forms):
            if data_dir.name == form.tarball:
                return Archive(position, data_dir, _untar(data_dir, form))
        return None
    for position, form in enumerate(forms):
        for place in (data_dir / form.folder, data_dir):
            # Any one of the files identifies the folder; a missing other one is then reported by name.
            if place.is_dir() and (place.name == form.folder or any((place / name).is_file() for name in form.files)):
                return Archive(position, place)
    for position, form in enumerate(forms):
        if (data_dir / form.tarball).is_file():
            return Archive(position, data_dir / form.tarball, _untar(data_dir / form.tarball, form))
    return None


class _Limited(gzip.GzipFile):
    """A .gz of which no more is unpacked than a dataset can have, whatever the lengths in it say."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0 or self.tell() + size > _MOST_BYTES + tarfile.RECORDSIZE:
            raise tarfile.ReadError(f"it unpacks to more than {_MOST_BYTES:,} bytes")
        return super().read(size)


def _untar(path: Path, form: Form) -> dict[str, bytes]:
    """Contents of the wanted files; nothing is written to disk, so member paths and links can do no harm."""
    wanted = {f"{form.folder}/{name}": name for name in form.files}
    members: dict[str, bytes] = {}
    try:
        must_be_regular(path)
        with _Limited(path) as content, tarfile.open(fileobj=content, mode="r:") as tar:
            total = 0
            for member in tar:
                total += member.size  # of others too: they are unpacked on the way to the next
                if total > _MOST_BYTES:
                    raise DataError(
                        f"{path}: unpacks to more than {_MOST_BYTES:,} bytes, which {form.folder} has not; download it"
                        " again"
                    )
                name = wanted.get(member.name.removeprefix("./"))
                if name is not None and member.isfile():
                    stream = tar.extractfile(member)
                    if stream is not None:
                        members[name] = stream.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(
            f"{path}: cannot be read as a .tar.gz archive ({error}); expected {form.tarball_bytes} bytes as published,"
            f" got {path.stat().st_size}; download it again"
        ) from error
    return members
