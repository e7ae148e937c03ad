"""Figures are drawn only where a test looks at one, for each takes most of a second; else a pixel takes its place."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_fast import figure
from lit_fast.files import atomic_write

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


def pixel(path: Path, write: Callable[[Path], object]) -> None:
    """In the place of ``atomic_write`` of a figure."""
    atomic_write(path, lambda part: part.write_bytes(PIXEL))


@contextmanager
def drawing() -> Iterator[None]:
    """Figures are drawn here."""
    before, figure.atomic_write = figure.atomic_write, atomic_write
    yield
    figure.atomic_write = before
