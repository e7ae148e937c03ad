"""Loaders: ways to bring the same batches to the step, the fastest that a dataset and a machine allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from lit_fast.data.base import Data
from lit_fast.data.loaders.base import Loader
from lit_fast.data.loaders.streaming import StreamingLoader
from lit_fast.errors import DataError

__all__ = ["NAMES", "Choice", "Loader", "LoaderName", "choose_loader", "open_loader"]

LoaderName = Literal["auto", "resident", "dali", "torch"]
NAMES: tuple[LoaderName, ...] = get_args(LoaderName)


@dataclass(frozen=True)
class Choice:
    """A loader by `name`, not "auto", and the `reason` for it in one line."""

    name: str
    reason: str


def choose_loader(data: Data, name: str = "auto", *, device: torch.device | str = "cpu", processes: int = 1) -> Choice:
    """What `open_loader` would open, without reading any data.

    Arguments and errors are as there, and `processes` is how many share each batch, each with a loader of its own: on
    CPUs they share the memory, too.
    """
    if name not in NAMES:
        raise DataError(f"there is no loader {name!r}; choose from {', '.join(NAMES)}")
    if name == "torch":
        return Choice("torch", "requested")
    if data.collated:
        if name != "auto":
            raise DataError(f"loader {name!r}: {data.name}: its items go to the networks as they are; use 'torch'")
        return Choice("torch", "items go to the networks as they are")
    from lit_fast.data.loaders.dali import missing
    from lit_fast.data.loaders.resident import misfit

    if name == "dali":
        why = missing()
        if why is not None:
            raise DataError(f"loader 'dali': {why}; or use 'torch' or 'auto'")
        return Choice("dali", "requested")
    too_large = misfit(data, torch.device(device), processes)
    if too_large is None:
        return Choice("resident", "requested" if name == "resident" else "the dataset fits")
    if name == "resident":
        raise DataError(f"loader 'resident': {data.name}: {too_large}; use 'torch', or 'auto' to fall back to it")
    if not data.has_files:
        return Choice("torch", too_large)
    why = missing()
    return Choice("dali", f"{too_large}; DALI decodes files") if why is None else Choice("torch", f"{too_large}; {why}")


def open_loader(
    data: Data, name: str | Choice = "auto", *, device: torch.device | str = "cpu", channels_last: bool = False
) -> Loader:
    """Open a loader by name.

    Args:
        data: the dataset.
        name: "resident" keeps the whole dataset on the device; "torch" streams it; "dali" leaves decoding and
            augmentation to NVIDIA DALI; "auto" takes "resident" where the dataset fits, else "dali" for files if it is
            installed, else "torch", and says why in the loader's `reason`. Or what `choose_loader` chose.
        device: where the batches lie.
        channels_last: give images in this memory format.

    Raises:
        DataError: there is no such loader, it cannot be had here, or a file cannot be decoded.

    Example:
        >>> from lit_fast.data import open_data
        >>> with open_loader(open_data("digits"), "torch") as loader:
        ...     images, labels = next(loader.train_batches(0, batch_size=64, seed=0))
        >>> loader.name, tuple(images.shape)
        ('torch', (64, 1, 16, 16))
    """
    choice = name if isinstance(name, Choice) else choose_loader(data, name, device=device)
    if choice.name == "resident":
        from lit_fast.data.loaders.resident import ResidentLoader

        return ResidentLoader(data, device=device, channels_last=channels_last, reason=choice.reason)
    if choice.name == "dali":
        from lit_fast.data.loaders.dali import DaliLoader

        return DaliLoader(data, device=device, channels_last=channels_last, reason=choice.reason)
    return StreamingLoader(data, device=device, channels_last=channels_last, reason=choice.reason)
