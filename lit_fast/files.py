"""Files that are there whole or not at all: written beside, flushed to the disk, then renamed into place."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["atomic_write", "fsync_path", "hashes", "write_json"]


def fsync_path(path: Path) -> None:
    """Flush a file's (or folder's) content to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write(path: Path, write: Callable[[Path], Any]) -> None:
    """Call ``write(temporary_path)``, then move the result to ``path``; on an error ``path`` is as it was."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())  # some writers make their files private
        fsync_path(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def _umask() -> int:
    mask = os.umask(0)  # can only be read by setting it
    os.umask(mask)
    return mask


def write_json(path: Path, tree: Any) -> None:
    """Write ``tree`` as indented JSON, atomically."""
    atomic_write(path, lambda p: p.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8"))


def hashes(files: Mapping[str, Path | None]) -> dict[str, str]:
    """SHA-256 of each file that is given."""
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if path is not None}
