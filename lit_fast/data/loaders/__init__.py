"""Loaders: ways to bring the same batches to the step, the fastest that a dataset and a machine allow."""

from __future__ import annotations

import torch

from lit_fast.data.base import Data
from lit_fast.data.errors import DataError
from lit_fast.data.loaders.base import Loader
from lit_fast.data.loaders.resident import ResidentLoader, misfit
from lit_fast.data.loaders.streaming import StreamingLoader

__all__ = ["NAMES", "Loader", "open_loader"]

NAMES = ("auto", "resident", "dali", "torch")


def open_loader(
    data: Data, name: str = "auto", *, device: torch.device | str = "cpu", channels_last: bool = False
) -> Loader:
    """Open a loader by name.

    Args:
        data: the dataset.
        name: "resident" keeps the whole dataset on the device; "torch" streams it; "auto" takes the first where the
            dataset fits, else the other, and says why in the loader's `reason`.
        device: where the batches lie.
        channels_last: give images in this memory format.

    Raises:
        DataError: there is no such loader, or it cannot be had here.

    Example:
        >>> from lit_fast.data import open_data
        >>> with open_loader(open_data("digits"), "torch") as loader:
        ...     images, labels = next(loader.train_batches(0, batch_size=64, seed=0))
        >>> loader.name, tuple(images.shape)
        ('torch', (64, 1, 16, 16))
    """
    if name not in NAMES:
        raise DataError(f"there is no loader {name!r}; choose from {', '.join(NAMES)}")
    if name == "dali":
        raise DataError(f"loader {name!r} is not part of this installation; use 'torch' or 'auto'")
    target = torch.device(device)
    too_large = None if name == "torch" else misfit(data, target)
    if name == "torch" or (name == "auto" and too_large is not None):
        return StreamingLoader(data, device=target, channels_last=channels_last, reason=too_large or "requested")
    if too_large is not None:
        raise DataError(f"loader 'resident': {data.name}: {too_large}; use 'torch', or 'auto' to fall back to it")
    reason = "requested" if name == "resident" else "the dataset fits"
    return ResidentLoader(data, device=target, channels_last=channels_last, reason=reason)
