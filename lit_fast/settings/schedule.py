"""A phase of training and its learning rate: a pure function of the step, so that resuming needs no state of it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Phase(BaseModel):
    """``epochs`` at learning rate ``lr``, multiplied by ``gamma`` at each milestone (in epochs, fractions allowed).

    Step by step, it also rises from 0 in a straight line over the first ``warmup`` epochs, and falls in one towards 0
    over the last ``linear`` epochs.

    Source: paper, appendix A ("milestones ... decaying the learning rate by a factor of 10"; of StarGAN: "decayed to 0
    over the last 10 epochs").
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    lr: Annotated[float, Field(gt=0.0)]
    epochs: Annotated[int, Field(ge=1)]
    milestones: tuple[Annotated[float, Field(ge=0.0)], ...] = ()
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    warmup: Annotated[float, Field(ge=0.0)] = 0.0
    linear: Annotated[float, Field(ge=0.0)] = 0.0
    name: str = ""

    @model_validator(mode="after")
    def _milestones_rise(self) -> Phase:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise, got {list(self.milestones)}")
        if self.milestones and self.milestones[-1] > self.epochs:
            raise ValueError(f"milestone {self.milestones[-1]:g} lies after the phase's {self.epochs} epochs")
        for key in ("warmup", "linear"):
            if getattr(self, key) > self.epochs:
                raise ValueError(f"{key}: {getattr(self, key):g} epochs are more than the phase's {self.epochs}")
        return self

    def named(self, name: str) -> Phase:
        return self.model_copy(update={"name": name})

    def scaled_to(self, epochs: int) -> Phase:
        """The same schedule over ``epochs``: milestones move in proportion, learning rates stay."""
        factor = epochs / self.epochs
        ramps = {"warmup": self.warmup * factor, "linear": self.linear * factor}
        milestones = tuple(m * factor for m in self.milestones)
        return self.model_copy(update={"epochs": epochs, "milestones": milestones, **ramps})

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of step ``step`` (0-based, counted from the start of the phase)."""
        passed = sum(step >= round(m * steps_per_epoch) for m in self.milestones)
        left = self.epochs * steps_per_epoch - step  # at least 1: the last step's rate is not 0
        falling = min(1.0, left / (self.linear * steps_per_epoch)) if self.linear else 1.0
        rising = min(1.0, (step + 1) / (self.warmup * steps_per_epoch)) if self.warmup else 1.0
        return self.lr * self.gamma**passed * rising * falling
