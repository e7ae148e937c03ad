"""The network that a command is about: its name, its sizes and what it is fed, from a weight file or from options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from lit_fast.user_functions import is_function

if TYPE_CHECKING:
    from torch import nn

    from lit_fast.models import Network
    from lit_fast.runs.weights import WeightInfo

__all__ = [
    "Domains",
    "ImageSize",
    "InChannels",
    "Length",
    "NumClasses",
    "Sizes",
    "Subject",
    "Width",
    "must_read",
    "network_of",
]

# What a weight file of lit-fast tells of itself goes before these.
NumClasses = Annotated[
    int, typer.Option("--num-classes", metavar="N", min=1, help="Width of the logits, if the weights do not tell.")
]
ImageSize = Annotated[
    int, typer.Option("--image-size", metavar="N", min=4, help="Pixels squared, if the weights do not tell.")
]
InChannels = Annotated[
    int, typer.Option("--in-channels", metavar="N", min=1, help="Of an image, if the weights do not tell.")
]
Length = Annotated[
    int, typer.Option("--length", metavar="N", min=1, help="Tokens of a text, if the weights do not tell.")
]

# Of a StarGAN generator, if the weights do not tell.
Domains = Annotated[int, typer.Option("--domains", metavar="N", min=1, help="Attributes that a generator takes.")]
Width = Annotated[int, typer.Option("--width", metavar="N", min=1, help="First channels of a generator.")]


@dataclass(frozen=True)
class Sizes:
    """What the options say; which of it counts is decided by the network's kind."""

    num_classes: int
    image_size: int
    in_channels: int
    length: int
    domains: int
    width: int


@dataclass(frozen=True)
class Subject:
    """A network and what it is fed.

    Attributes:
        num_classes: of a generator the domains.
        shape: (C, H, W) of an image, or (L,) of a text.
        width: of a generator.
    """

    network: Network
    num_classes: int
    shape: tuple[int, ...]
    width: int = 64

    @classmethod
    def of(cls, network: Network, sizes: Sizes, info: WeightInfo | None = None) -> Subject:
        """As its weight file tells, or else the options."""
        if info is not None and info.has_shape:
            return cls(network, info.num_classes, info.shape, info.width or sizes.width)
        if network.kind == "texts":
            return cls(network, sizes.num_classes, (sizes.length,), sizes.width)
        generates = network.kind == "generator"  # the wanted domains come as planes beside the image's
        channels = 3 + sizes.domains if generates else sizes.in_channels
        classes = sizes.domains if generates else sizes.num_classes
        return cls(network, classes, (channels, sizes.image_size, sizes.image_size), sizes.width)

    @property
    def generates(self) -> bool:
        return self.network.kind == "generator"

    @property
    def fed(self) -> str:
        """What it is fed, in a word."""
        return "images" if len(self.shape) > 1 else "tokens"

    def build(self) -> nn.Module:
        """The network, with fresh weights; or what a function of the user's returns.

        Raises:
            ValueError: it takes images and the data are texts, or the other way round; or as `lit_fast.models.create`.
        """
        from lit_fast.models.own import own_network
        from lit_fast.sections.model import SplitModel

        if is_function(self.network.model):
            own = own_network(self.network.model)
            return own.model if isinstance(own, SplitModel) else own
        if not self.generates:
            _must_take(self.network, len(self.shape) == 1, "the data are")
        return self.network.build(self.num_classes, self.shape, width=self.width)


def network_of(model: str | None, cardinality: int | None, info: WeightInfo | None) -> Network | None:
    """The network that the options name, or else the weight file, one that is built in; None: neither does."""
    from lit_fast.models import Network

    if model:
        named = Network.parse(model)
    elif info is not None and Network(info.model).kind is not None:  # a file does not say what is imported
        named = Network(info.model)
    else:
        return None
    known = info.cardinality if info is not None and info.model == named.model else None
    return Network(named.model, cardinality or named.cardinality or known)


def must_read(network: Network, dataset: str) -> None:
    """Before the dataset is opened with what the network's weights tell: that the network reads its kind."""
    from lit_fast import data

    if dataset in data.names() and not is_function(network.model):
        _must_take(network, data.has_texts(dataset), f"dataset {dataset} has")


def _must_take(network: Network, texts: bool, data: str) -> None:
    if (network.kind == "texts") != texts:
        takes, given = ("images", "texts") if texts else ("texts", "images")
        raise ValueError(f"{network.model} takes {takes}, {data} {given}: choose another network or dataset")
