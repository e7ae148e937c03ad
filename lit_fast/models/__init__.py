"""Built-in models, by function or by name, and loading of published checkpoints."""

from __future__ import annotations

from lit_fast.errors import CheckpointError
from lit_fast.models.checkpoint import load_checkpoint
from lit_fast.models.registry import Network, create, create_generator, names
from lit_fast.models.resnet import ResNet, resnet20, resnet32, resnet44, resnet56, resnet110
from lit_fast.models.resnext import ResNeXt, resnext20, resnext32, resnext44, resnext56, resnext110
from lit_fast.models.stargan import Discriminator, Generator, stargan2, stargan6, with_domain
from lit_fast.models.vdcnn import VDCNN, vdcnn9, vdcnn17, vdcnn29

__all__ = [
    "VDCNN",
    "CheckpointError",
    "Discriminator",
    "Generator",
    "Network",
    "ResNeXt",
    "ResNet",
    "create",
    "create_generator",
    "load_checkpoint",
    "names",
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
