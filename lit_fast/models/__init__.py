"""Built-in models, by function or by name, and loading of published checkpoints."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from torch import nn

from lit_fast.errors import CheckpointError
from lit_fast.models.checkpoint import load_checkpoint
from lit_fast.models.resnet import ResNet, resnet20, resnet32, resnet44, resnet56, resnet110
from lit_fast.models.resnext import ResNeXt, resnext20, resnext32, resnext44, resnext56, resnext110
from lit_fast.models.stargan import Discriminator, Generator, stargan2, stargan6, with_domain
from lit_fast.models.vdcnn import VDCNN, vdcnn9, vdcnn17, vdcnn29

_RESNETS: dict[str, Callable[..., nn.Module]] = {
    f.__name__: f for f in (resnet20, resnet32, resnet44, resnet56, resnet110)
}
_RESNEXTS: dict[str, Callable[..., nn.Module]] = {
    f.__name__: f for f in (resnext20, resnext32, resnext44, resnext56, resnext110)
}
_VDCNNS: dict[str, Callable[..., nn.Module]] = {f.__name__: f for f in (vdcnn9, vdcnn17, vdcnn29)}
_GENERATORS: dict[str, Callable[..., Generator]] = {f.__name__: f for f in (stargan2, stargan6)}


def names() -> tuple[str, ...]:
    """The names that ``create`` knows."""
    return (*_RESNETS, *_RESNEXTS, *_VDCNNS)


def reads_text(name: str) -> bool:
    """Whether the model of that name takes tokens int64 [B, L]; the others take images."""
    return name in _VDCNNS


def create(
    name: str, *, num_classes: int = 10, in_channels: int | None = None, cardinality: int | None = None
) -> nn.Module:
    """Build a model by name, with fresh weights.

    Args:
        name: one of ``names()``.
        num_classes: width of the logits.
        in_channels: channels of the images; None means 3. Not for VDCNNs, which read text.
        cardinality: groups of a ResNeXt's 3x3 convolutions; None means 32. Only for ResNeXts.

    Raises:
        ValueError: unknown name, an option that the model does not have, or a count that is not positive.

    Example:
        >>> sum(p.numel() for p in create("resnet20", num_classes=10).parameters())
        269722
    """
    if cardinality is not None and name in (*_RESNETS, *_VDCNNS):
        raise ValueError(f"cardinality={cardinality} given for {name}: only the resnext models have a cardinality")
    if in_channels is not None and name in _VDCNNS:
        raise ValueError(f"in_channels={in_channels} given for {name}, which reads text: images have channels")
    channels = 3 if in_channels is None else in_channels
    if name in _RESNETS:
        return _RESNETS[name](num_classes=num_classes, in_channels=channels)
    if name in _RESNEXTS:
        groups = 32 if cardinality is None else cardinality
        return _RESNEXTS[name](num_classes=num_classes, in_channels=channels, cardinality=groups)
    if name in _VDCNNS:
        return _VDCNNS[name](num_classes=num_classes)
    close = difflib.get_close_matches(str(name), names(), n=2)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise ValueError(f"unknown model {name!r}{hint} Known models: {', '.join(names())}")


def generator_names() -> tuple[str, ...]:
    """The names that ``create_generator`` knows."""
    return tuple(_GENERATORS)


def create_generator(name: str, *, domains: int = 5, width: int = 64) -> Generator:
    """Build an image-to-image generator by name, with fresh weights.

    Args:
        name: one of ``generator_names()``.
        domains: attributes that can be asked for.
        width: channels of the first convolution.

    Raises:
        ValueError: unknown name, or a count that is not positive.
    """
    if name not in _GENERATORS:
        raise ValueError(f"unknown generator {name!r}; known: {', '.join(_GENERATORS)}")
    return _GENERATORS[name](domains=domains, width=width)


__all__ = [
    "VDCNN",
    "CheckpointError",
    "Discriminator",
    "Generator",
    "ResNeXt",
    "ResNet",
    "create",
    "create_generator",
    "generator_names",
    "load_checkpoint",
    "names",
    "reads_text",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnext20",
    "resnext32",
    "resnext44",
    "resnext56",
    "resnext110",
    "stargan2",
    "stargan6",
    "vdcnn9",
    "vdcnn17",
    "vdcnn29",
    "with_domain",
]
