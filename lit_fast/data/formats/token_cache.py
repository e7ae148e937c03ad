"""Rows of tokens kept in a file, so that a text is tokenised once; read by mapping the file into memory.

The file holds the tokens [N, length], the labels [N], each one byte, then N (8 bytes, little-endian) and the key's
hash (32 bytes), which tell a whole file of this key from any other. It is written beside its place and renamed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from lit_fast.errors import DataError

_COUNT = 8
_HASH = 32

Rows = tuple[Tensor, Tensor]  # tokens uint8 [N, length], labels uint8 [N]


def read(path: Path, key: bytes, length: int) -> Rows | None:
    """Tokens and labels, mapped; ``None`` if there is no whole file of this key (32 bytes)."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - _COUNT - _HASH))
            tail = file.read()
    except OSError:
        return None
    count = int.from_bytes(tail[:_COUNT], "little")
    if tail[_COUNT:] != key or size != count * (length + 1) + _COUNT + _HASH or not count:
        return None
    content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    return content[: count * length].view(count, length), content[count * length : count * (length + 1)]


def write(path: Path, key: bytes, parts: Iterable[Rows]) -> None:
    """Write the file from parts of it in order, whole or not at all; holds one part at a time, and the labels.

    Raises:
        DataError: the file cannot be written.
    """
    beside = path.with_name(f"{path.name}.{secrets.token_hex(8)}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        labels = bytearray()
        with beside.open("xb") as file:
            for tokens, part_labels in parts:
                file.write(tokens.contiguous().numpy().data)
                labels += part_labels.numpy().tobytes()
            file.write(labels + len(labels).to_bytes(_COUNT, "little") + key)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise DataError(
            f"{path}: the tokens cannot be kept there ({error.strerror or error}); name a folder that can be written "
            "and has room: cache_dir (data.cache_dir)"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # renamed, or its folder is none
            beside.unlink()
