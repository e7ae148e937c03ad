"""From a Pillow image to uint8 pixels, and from a file to a square of a given size."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from lit_fast.errors import DataError
from lit_fast.files import must_be_regular

_MOST_PIXELS = 178_956_970  # above it Pillow takes an image for an attack; 512 MiB of RGB
_THREADS = min(8, os.cpu_count() or 1)

A = TypeVar("A")
R = TypeVar("R")


def pillow() -> ModuleType:
    """The module `PIL.Image`, imported only where images are decoded.

    Raises:
        DataError: if Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("reading image files needs Pillow, which is not installed; pip install pillow") from error
    return Image


def eight_bit(image: Any, what: str, *, keep_grey: bool) -> Any:
    """A Pillow image in mode RGB, or L where a grey one may stay grey.

    Raises:
        DataError: for more than 8 bits per channel, which Pillow would clip to white; `what` names the image.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise DataError(
            f"{what}: expected 8 bits per channel, got Pillow mode {image.mode!r}; convert the image to 8 bits"
        )
    return image.convert("L" if keep_grey and image.mode in ("1", "L") else "RGB")


def pixels(image: Any) -> Tensor:
    """Pixels of a Pillow image of mode RGB or L as uint8 [C, H, W]."""
    width, height = image.size
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(height, width, len(image.getbands())).permute(2, 0, 1).contiguous()


def check_header(path: Path) -> None:
    """Refuse a file that does not begin like an image, or like one that is too large; cheap, nothing is decoded.

    Raises:
        DataError: naming the file.
    """
    try:
        must_be_regular(path)
        with pillow().open(path) as image:
            _check_size(image, path)
    except DataError:
        raise
    except Exception as error:  # decoders of broken files raise nearly anything
        raise _undecodable(path, error) from error


def _check_size(image: Any, path: Path, shorter: int | None = None) -> None:
    """Refuse an image of too many pixels, as it is or with its shorter side of so many."""
    width, height = image.size
    scale = 1.0 if shorter is None else max(1.0, shorter / max(1, min(width, height)))
    if width * height * scale**2 > _MOST_PIXELS:
        scaled = "" if scale == 1.0 else f", {scale:g} times as wide and high when it is resized"
        raise DataError(f"{path}: expected at most {_MOST_PIXELS:,} pixels, got {width:,} x {height:,}{scaled}")


def read_square(path: Path, size: int, crop: int | None = None) -> Tensor:
    """Decode a file, resize its shorter side to `size` (bilinear, antialiased) and crop the centre.

    With `crop`, the central square of that many pixels is taken first.

    Returns:
        uint8 [3, size, size].

    Raises:
        DataError: naming the file, if it cannot be decoded or is smaller than `crop`.
    """
    try:
        return _square(path, size, crop)
    except DataError as error:
        error.file = path
        raise


def _square(path: Path, size: int, crop: int | None) -> Tensor:
    image_module = pillow()
    try:
        must_be_regular(path)
        with image_module.open(path) as image:
            _check_size(image, path, size if crop is None else None)
            colour = eight_bit(image, str(path), keep_grey=False)
    except DataError:
        raise
    except Exception as error:
        raise _undecodable(path, error) from error
    if crop is not None:
        colour = _central_square(colour, crop, path)
    width, height = colour.size
    short = min(width, height)
    width, height = size * width // short, size * height // short
    left, top = (width - size) // 2, (height - size) // 2
    resized = colour.resize((width, height), image_module.Resampling.BILINEAR)
    return pixels(resized.crop((left, top, left + size, top + size)))


def _central_square(image: Any, side: int, path: Path) -> Any:
    width, height = image.size
    if min(width, height) < side:
        raise DataError(f"{path}: expected at least {side} x {side} pixels for the crop, got {width} x {height}")
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def in_threads(function: Callable[[A], R], arguments: Iterable[A]) -> list[R]:
    """`function` of each argument, in order; for reading and decoding files, which free the interpreter."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="lit_fast-images") as pool:
        return list(pool.map(function, arguments))


def _undecodable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path}: cannot be decoded as an image ({error or type(error).__name__}); replace the file or remove it"
    )
