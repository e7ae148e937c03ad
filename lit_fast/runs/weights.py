"""Weight files: safetensors that say which network they are of and how its input was normalised."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from lit_fast.data import IMAGENET_MEAN, IMAGENET_STD, Data
from lit_fast.errors import CheckpointError
from lit_fast.files import atomic_write, must_be_regular
from lit_fast.models.registry import Network
from lit_fast.models.saved import read_torch
from lit_fast.runs.stored import checked

__all__ = ["WeightInfo", "normalization_of", "read_info", "save_weights"]


@dataclass(frozen=True)
class WeightInfo:
    """What a weight file is of: enough to rebuild the network and to feed it.

    A network of texts has a ``length``, in tokens, and neither channels nor an image size nor a normalisation.
    """

    model: str
    num_classes: int
    in_channels: int | None
    image_size: int | None
    dataset: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    cardinality: int | None = None
    length: int | None = None
    width: int | None = None  # of a generator or discriminator, whose `num_classes` are its domains

    @classmethod
    def of(cls, data: Data, model: str, cardinality: int | None = None) -> WeightInfo:
        """Of a classifier that was trained on ``data``."""
        images = len(data.shape) == 3
        return cls(
            model=model,
            num_classes=data.num_classes,
            in_channels=data.shape[0] if images else None,
            image_size=data.shape[1] if images else None,
            length=data.shape[0] if data.is_text else None,
            dataset=data.name,
            mean=tuple(data.mean),
            std=tuple(data.std),
            cardinality=cardinality,
        )

    @property
    def has_shape(self) -> bool:
        """Whether it was trained on images or texts: other inputs have no shape that a file keeps."""
        return self.length is not None or self.in_channels is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image, or (L,) of a text."""
        if self.length is not None:
            return (self.length,)
        if self.in_channels is None or self.image_size is None:
            raise CheckpointError(f"the weights of {self.model} do not tell what it is fed")
        return (self.in_channels, self.image_size, self.image_size)


def save_weights(path: Path, tensors: Mapping[str, Tensor], info: WeightInfo) -> None:
    """Write ``tensors`` to ``path`` atomically, with ``info`` as the file's metadata."""
    metadata = {key: json.dumps(value) for key, value in asdict(info).items()} | {"format": "pt"}
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic_write(path, lambda p: save_file(dense, p, metadata=metadata))


def read_info(path: Path) -> WeightInfo | None:
    """The metadata of a weight file written here; ``None`` for any other file.

    Raises:
        CheckpointError: a value is none that is written here; names file and key.
    """
    try:
        must_be_regular(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        fields: dict[str, Any] = {k: json.loads(v) for k, v in metadata.items() if k != "format"}
    except (SafetensorError, OSError, ValueError, RecursionError):
        return None
    if not {"model", "num_classes", "dataset", "mean", "std"} <= fields.keys():
        return None
    checked(fields, _Metadata, f"{path}: metadata", CheckpointError)
    kind = Network(fields["model"]).kind
    needed = ("num_classes", "length") if kind == "texts" else ("num_classes", "in_channels", "image_size")
    for key in needed if kind is not None else ():
        if fields.get(key) is None:
            raise CheckpointError(f"{path}: metadata: {key}: expected a number for {fields['model']}, got null")
    if len(fields["mean"]) != len(fields["std"]):
        raise CheckpointError(f"{path}: metadata: expected as many values in mean as in std")
    known: dict[str, Any] = {key: _thaw(fields[key]) for key in _Metadata.__annotations__ if key in fields}
    return WeightInfo(**known)


class _Metadata(TypedDict):
    """What `WeightInfo` becomes in a file."""

    model: Annotated[str, Field(max_length=300)]
    num_classes: Annotated[int, Field(ge=0, le=10**6)] | None
    in_channels: Annotated[int, Field(ge=1, le=10**4)] | None
    image_size: Annotated[int, Field(ge=1, le=10**4)] | None
    dataset: Annotated[str, Field(max_length=1000)]
    mean: list[Annotated[float, Field(ge=-1e6, le=1e6)]]
    std: list[Annotated[float, Field(gt=0, le=1e6)]]
    cardinality: NotRequired[Annotated[int, Field(ge=1, le=1024)] | None]
    length: NotRequired[Annotated[int, Field(ge=1, le=10**6)] | None]
    width: NotRequired[Annotated[int, Field(ge=1, le=10**4)] | None]


def _thaw(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def normalization_of(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """``(mean, std)`` that the network of a checkpoint was trained with, or ``None`` if the file does not tell.

    Our own files carry it. The widely published CIFAR ResNets (``{"state_dict": ..., "best_prec1": ...}`` with
    ``module.`` keys) do not, but were all trained with the per-channel values of ImageNet.
    """
    info = read_info(path)
    if info is not None:
        return (info.mean, info.std) if info.length is None else None
    if not path.is_file():
        return None
    try:
        content = read_torch(path, "meta")
    except Exception:  # not a checkpoint at all: loading the weights reports it by name
        return None
    if isinstance(content, dict) and {"state_dict", "best_prec1"} <= content.keys():
        return IMAGENET_MEAN, IMAGENET_STD
    return None
