"""Read what other programs save: files of `torch.save`, safetensors and .npz, without running what is in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_fast.errors import CheckpointError

__all__ = ["NumpyValue", "read_saved", "read_torch"]

_OURS_TO_MEND = "save model.state_dict() with torch.save or as .safetensors"
_NOT_WEIGHTS = {
    b"version https://git-lfs": "it is a pointer of Git LFS, not the file itself: git lfs pull fetches it",
    b"<": "it is a web page, not the file itself: download it again",
}


class NumpyValue:
    """Stands for a NumPy number, array or dtype beside the weights: keeps nothing, calls nothing of NumPy."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _stands_for(path: str) -> type[NumpyValue]:
    """torch.load knows an allowed class by its module and name."""
    module, _, name = path.rpartition(".")
    return type(name, (NumpyValue,), {"__module__": module})


_NUMPY: list[Any] = [
    _stands_for(path)
    for path in (
        "numpy.dtype",
        "numpy.ndarray",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
    )
]


def read_torch(file: Path, device: str = "cpu") -> Any:
    """What `torch.save` wrote, with stand-ins for the values of NumPy, its tensors on ``device``.

    Raises:
        Exception: nearly any, by kind of damage, or an object that could run code.
    """
    with torch.serialization.safe_globals(_NUMPY), file.open("rb") as opened:  # a path's suffix would count
        return torch.load(opened, map_location=device, weights_only=True)


def read_saved(file: Path) -> Any:
    """The content of a file of weights, told by how it begins, not by its name.

    Raises:
        CheckpointError: it cannot be read; the message names the object that is refused.
    """
    with file.open("rb") as opened:
        head = opened.read(64)
    for beginning, why in _NOT_WEIGHTS.items():
        if head.startswith(beginning):
            raise CheckpointError(f"{file}: cannot be read as a file of weights: {why}")
    if head[:2] == b"PK" and file.suffix == ".npz":
        return _read_npz(file)
    of_torch = head[:2] in (b"PK", b"\x80\x02")  # a zip file, or the pickle of versions before 1.6
    if head[8:9] == b"{" or (file.suffix == ".safetensors" and not of_torch):
        return _read_safetensors(file)
    try:
        return read_torch(file)
    except Exception as error:
        raise CheckpointError(f"{file}: cannot be read as a file of weights ({_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = str(error).strip()
    refused = re.search(r"GLOBAL (\S+) was not an allowed|got <class '([^']+)'>|Unsupported class (\S+)", text)
    if refused is not None:
        name = next(group for group in refused.groups() if group)
        return (
            f"it holds a Python object, {name}). Objects are not loaded because they could run code: leave it out "
            f"where the file is written, or {_OURS_TO_MEND}"
        )
    first = re.sub(r"\x1b\[\d*m", "", text.splitlines()[0]) if text else type(error).__name__
    return (
        f"{first}). It may be cut short, or hold Python objects, which are not loaded because they could run code: "
        f"{_OURS_TO_MEND}"
    )


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file, device="cpu")
    except SafetensorError as error:
        raise CheckpointError(f"{file}: not a whole safetensors file ({error}); copy or download it again") from error


def _read_npz(file: Path) -> dict[str, Tensor]:
    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except Exception as error:  # damage, arrays of objects, or of what torch has no numbers for
        raise CheckpointError(f"{file}: not a whole .npz file of numbers ({error}); write it again") from error
