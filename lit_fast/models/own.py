"""Networks of a user's own: made by a function, cut by settings, known again by their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lit_fast.errors import ConfigError, SplitError
from lit_fast.sections.cutting import split
from lit_fast.sections.inputs import Inputs, replaced
from lit_fast.sections.model import SplitModel
from lit_fast.user_functions import made

__all__ = ["cut", "digest", "own_network", "structure"]


def own_network(name: str) -> nn.Module | SplitModel:
    """What the function ``module:function`` returns.

    Raises:
        ConfigError: it is no network.
    """
    network = made(name)
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"{name}: expected the function to return an nn.Module, or one that lf.split has cut, got "
            f"{type(network).__name__}"
        )
    return network


def cut(
    network: nn.Module | SplitModel,
    name: str,
    cuts: Mapping[str, Any],
    example: Inputs,
    *,
    alone: Mapping[str, Any] = {},
) -> SplitModel:
    """The network split as the settings say, or as it is where it is split already.

    Args:
        name: for messages.
        cuts: the keywords of `lit_fast.split`.
        example: a batch of it.
        alone: those of them that are for this network alone: one that is split already cannot have them.

    Raises:
        SplitError: it cannot be cut so, or is cut already.
    """
    if isinstance(network, SplitModel):
        if alone:
            raise SplitError(f"{name}: it is split already; leave out {', '.join(alone)}, or give its .model")
        return network
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    there = replaced(example, lambda value: value.to(device) if isinstance(value, torch.Tensor) else value)
    try:
        return split(network, example=there, **cuts)
    except SplitError as error:
        raise SplitError(f"{name}: {error}") from error


def structure(model: nn.Module) -> str:
    """A hash of the names, shapes and dtypes of a network's tensors."""
    shapes = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in model.state_dict().items()]
    return hashlib.sha256(repr(shapes).encode()).hexdigest()


def digest(model: nn.Module) -> str:
    """A hash of them and their values."""
    sha = hashlib.sha256(structure(model).encode())
    for tensor in model.state_dict().values():
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
