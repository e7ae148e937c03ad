"""Files that are there whole or not at all: written beside, flushed to the disk, then renamed into place.

No link is followed and nothing but a regular file is written over: a folder may come from somebody else.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = [
    "OF_THE_DISK",
    "as_json",
    "atomic_write",
    "fsync_path",
    "make_folder",
    "must_be_regular",
    "refuse_odd",
    "remove_leftovers",
    "sha256",
    "system_error",
    "write_json",
]

OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def fsync_path(path: Path) -> None:
    """Flush a file's (or folder's) content to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write(path: Path, write: Callable[[Path], Any]) -> None:
    """Call ``write(temporary_path)``, then move the result to ``path``; on an error ``path`` is as it was.

    Raises:
        OSError: it cannot be written, such as to a full disk; or ``path`` is no regular file: a link, a device.
        Exception: what ``write`` raises for other reasons.
    """
    refuse_odd(path)
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.tmp")
    try:
        # Nobody can have put a link there: the name cannot be guessed, and what exists is an error.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            write(temporary)
            temporary.chmod(0o666 & ~_umask())  # some writers make their files private
            fsync_path(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_path(path.parent)
    except Exception as error:
        code = system_error(error)
        of_temporary = isinstance(error, OSError) and error.filename == str(temporary)
        if code is None or not (of_temporary or code in OF_THE_DISK):
            raise
        raise OSError(code, os.strerror(code), str(path)) from error


def remove_leftovers(folder: Path) -> None:
    """Remove what `atomic_write` leaves in a folder when its process is killed; nobody else writes there now."""
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.[0-9a-f]{16}\.tmp", path.name):
            path.unlink(missing_ok=True)


def refuse_odd(path: Path) -> None:
    """Before a file is written.

    Raises:
        OSError: what is there is no regular file.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise FileExistsError(errno.EEXIST, f"is {_kind(mode)}; only a regular file is written over", str(path))


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "no regular file")


def must_be_regular(path: Path) -> None:
    """Before a file is read: a pipe would keep its reader waiting, a device has no end. Links are followed.

    Raises:
        OSError: there is no such file, or it is something else.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"is {_kind(mode)}, not a regular file", str(path))


def make_folder(path: Path) -> Path:
    """``path``, made if absent; its parent must be there.

    Raises:
        OSError: the parent is gone, or something else has the name: a file, or a link, which could lead anywhere.
    """
    try:
        path.mkdir()
    except FileExistsError:
        mode = path.lstat().st_mode
        if not stat.S_ISDIR(mode):
            raise FileExistsError(errno.EEXIST, f"is {_kind(mode)}, not a folder", str(path)) from None
    return path


def system_error(error: BaseException) -> int | None:
    """The operating system's number of an error, such as that of a full disk, also where a library hides it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen.errno
        told = re.search(r"\(os error (\d+)\)", str(seen))  # Rust's words, of safetensors
        if told is not None:
            return int(told[1])
        seen = seen.__cause__ or seen.__context__
    return None


def _umask() -> int:
    mask = os.umask(0)  # can only be read by setting it
    os.umask(mask)
    return mask


def as_json(tree: Any) -> bytes:
    """``tree`` as indented JSON."""
    return (json.dumps(tree, indent=1) + "\n").encode()


def write_json(path: Path, tree: Any) -> None:
    """Write ``tree`` as indented JSON, atomically."""
    atomic_write(path, lambda p: p.write_bytes(as_json(tree)))


def sha256(path: Path) -> str:
    """Of a file's content, which may be larger than the memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
