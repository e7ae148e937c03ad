"""The optimizer of a classifier's training as settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor

from lit_fast.settings.base import Positive, Strict

__all__ = ["OptimizerConfig"]

_Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
_FUSED = ("cuda",)  # devices where an update is one kernel, which a captured step needs


class OptimizerConfig(Strict):
    """SGD or AdamW; the learning rate belongs to the phase. Only the keys of the one that is chosen are written."""

    OF: ClassVar[dict[str, tuple[str, ...]]] = {"sgd": ("momentum", "nesterov"), "adamw": ("name", "betas", "eps")}

    name: Literal["sgd", "adamw"] = "sgd"
    momentum: _Decay = 0.9
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    nesterov: bool = False
    betas: tuple[_Decay, _Decay] = (0.9, 0.999)
    eps: Positive = 1e-8
    clip_grad_norm: Positive | None = None

    @model_validator(mode="after")
    def _of_the_one(self) -> OptimizerConfig:
        others = [key for name, keys in self.OF.items() if name != self.name for key in keys if key != "name"]
        wrong = [key for key in others if key in self.model_fields_set]
        if wrong:
            raise ValueError(
                f"{', '.join(wrong)}: {self.name} has none; leave it out, or choose another optimizer.name"
            )
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov needs momentum > 0")
        return self

    @model_serializer(mode="wrap")
    def _used(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = handler(self)
        written = ("weight_decay", *self.OF[self.name], *(() if self.clip_grad_norm is None else ("clip_grad_norm",)))
        return {key: value for key, value in tree.items() if key in written}

    def build(self, parameters: Iterable[Tensor], device: torch.device) -> torch.optim.Optimizer:
        """With a learning rate that is set before every step; on CUDA such that it can be captured."""
        fused = device.type in _FUSED
        if self.name == "sgd":
            return torch.optim.SGD(
                parameters,
                lr=1.0,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                nesterov=self.nesterov,
                fused=fused,
            )
        return torch.optim.AdamW(
            parameters,
            lr=1.0,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=fused,
            capturable=fused,
        )
