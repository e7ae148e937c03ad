"""The built-in networks by name: what kind each is, how it is built, and how reports print it."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Literal, NamedTuple, cast

from torch import nn

from lit_fast.errors import choose_from
from lit_fast.models.resnet import resnet20, resnet32, resnet44, resnet56, resnet110
from lit_fast.models.resnext import resnext20, resnext32, resnext44, resnext56, resnext110
from lit_fast.models.stargan import Generator, stargan2, stargan6
from lit_fast.models.vdcnn import vdcnn9, vdcnn17, vdcnn29

__all__ = ["Kind", "Network", "create", "create_generator", "names"]

Kind = Literal["images", "texts", "generator"]  # a classifier of either, or an image-to-image generator
Builder = Callable[..., nn.Module]

_RESNETS: tuple[Builder, ...] = (resnet20, resnet32, resnet44, resnet56, resnet110)
_RESNEXTS: tuple[Builder, ...] = (resnext20, resnext32, resnext44, resnext56, resnext110)
_BUILDERS: dict[Kind, dict[str, Builder]] = {
    "images": {build.__name__: build for build in (*_RESNETS, *_RESNEXTS)},
    "texts": {build.__name__: build for build in (vdcnn9, vdcnn17, vdcnn29)},
    "generator": {build.__name__: build for build in (stargan2, stargan6)},
}


class Network(NamedTuple):
    """A built-in network by its name; of a ResNeXt, ``cardinality`` None is 32. ``str`` is its label."""

    model: str
    cardinality: int | None = None

    @classmethod
    def parse(cls, label: str) -> Network:
        """Of a label as reports print it: ``resnext20-c16``, or ``resnet20`` alone."""
        model, dash, cardinality = label.rpartition("-c")
        return cls(model, int(cardinality)) if dash and cardinality.isdecimal() else cls(label)

    def __str__(self) -> str:
        return self.model if self.cardinality is None else f"{self.model}-c{self.cardinality}"

    @property
    def kind(self) -> Kind | None:
        """Texts are tokens int64 [B, L]; None: it is no built-in network."""
        return next((kind for kind, builders in _BUILDERS.items() if self.model in builders), None)

    def build(self, num_classes: int, shape: tuple[int, ...], *, width: int = 64) -> nn.Module:
        """With fresh weights.

        Args:
            num_classes: of a generator the domains.
            shape: of what it is fed: (C, H, W) or (L,).
            width: channels of a generator's first convolution.

        Raises:
            ValueError: as ``create``.
        """
        if self.kind == "generator":
            return create_generator(self.model, domains=num_classes, width=width)
        channels = None if len(shape) == 1 else shape[0]
        return create(self.model, num_classes=num_classes, in_channels=channels, cardinality=self.cardinality)


def names(*kinds: Kind) -> tuple[str, ...]:
    """Of the networks of these kinds; of none given, the classifiers, which ``create`` knows."""
    return tuple(name for kind in kinds or ("images", "texts") for name in _BUILDERS[kind])


def create(
    name: str, *, num_classes: int = 10, in_channels: int | None = None, cardinality: int | None = None
) -> nn.Module:
    """Build a classifier by name, with fresh weights.

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
    builders = _BUILDERS["images"] | _BUILDERS["texts"]
    if name not in builders:
        close = difflib.get_close_matches(str(name), names(), n=2)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"unknown model {name!r}{hint} Known models: {', '.join(names())}")
    build, options = builders[name], {"num_classes": num_classes}
    if build in _RESNEXTS:
        options["cardinality"] = 32 if cardinality is None else cardinality
    elif cardinality is not None:
        raise ValueError(f"cardinality={cardinality} given for {name}: only the resnext models have a cardinality")
    if name in _BUILDERS["images"]:
        options["in_channels"] = 3 if in_channels is None else in_channels
    elif in_channels is not None:
        raise ValueError(f"in_channels={in_channels} given for {name}, which reads text: images have channels")
    return build(**options)


def create_generator(name: str, *, domains: int = 5, width: int = 64) -> Generator:
    """Build an image-to-image generator by name, with fresh weights.

    Args:
        name: one of ``names("generator")``.
        domains: attributes that can be asked for.
        width: channels of the first convolution.

    Raises:
        ValueError: unknown name, or a count that is not positive.
    """
    builders = _BUILDERS["generator"]
    if name not in builders:
        raise ValueError(f"unknown generator {name!r}{choose_from(name, builders)}")
    return cast(Generator, builders[name](domains=domains, width=width))
