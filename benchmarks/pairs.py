"""The pairs of networks whose step is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

import lit_fast as lf
from lit_fast.bench.ways import Problem


class Pair(NamedTuple):
    """What a step trains: builders of both networks, and the shape of an image."""

    name: str
    teacher: Callable[[], torch.nn.Module]
    student: Callable[[], torch.nn.Module]
    image: tuple[int, ...] = (3, 32, 32)
    classes: int = 10

    def problem(self, batch: int, precision: str, device: str) -> Problem:
        """The pair with random weights and a random batch, always the same."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch, *self.image, generator=generator).to(device)
        labels = torch.randint(0, self.classes, (batch,), generator=generator).to(device)
        torch.manual_seed(0)
        teacher, student = (lf.split(build().to(device)) for build in (self.teacher, self.student))
        return Problem(teacher, student, images, labels, precision, name=self.name)


PAIRS = (
    Pair("resnet110-resnet20", lf.models.resnet110, lf.models.resnet20),
    Pair("resnet56-resnet20", lf.models.resnet56, lf.models.resnet20),
    Pair("resnext110-resnext20", lambda: lf.models.ResNeXt(110), lambda: lf.models.ResNeXt(20)),
)
TINY = Pair("resnet14-resnet8", lambda: lf.models.ResNet(14), lambda: lf.models.ResNet(8), (3, 8, 8))
