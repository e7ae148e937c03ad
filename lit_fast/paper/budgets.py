"""How much a study trains: the budgets by name, of classifiers and of generators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from lit_fast.settings.base import Strict

__all__ = ["BUDGETS", "GAN_BUDGETS", "Budget", "budgets"]


class Budget(Strict):
    """How much is trained.

    Attributes:
        about: for ``--help`` and the report.
        seeds: number of them, from 0.
        set: settings over every run's.
        teachers: networks that take the place of the studies' teachers.
    """

    about: str
    seeds: int
    set: dict[str, Any] = Field(default_factory=dict)
    teachers: dict[str, str] = Field(default_factory=dict)


_SLOW = {name: {"lr": 0.02} for name in ("scratch", "kd", "lit")}  # 0.1 does not settle on so few images
BUDGETS = {
    "smoke": Budget(
        about="small digits, two epochs: shows that everything runs, says nothing about the method",
        seeds=1,
        set={
            "data": {"name": "digits", "dir": None, "image_size": 8, "val_size": 200, "train_size": 600},
            "epochs": 2,
            "teacher": {"epochs": 6},
            "phases": {**_SLOW, "finetune": {"lr": 0.002}},
            "logging": {"tensorboard": False},
        },
        teachers={"resnet110": "resnet32", "resnext110": "resnext20"},
    ),
    "cpu": Budget(
        about="10,000 training examples, 8 epochs, batches of 64, two seeds: hours on a CPU",
        seeds=2,
        set={"data": {"train_size": 10_000}, "epochs": 8, "batch_size": 64},
    ),
    "short": Budget(about="the recipe's schedules shortened to 20 epochs, one seed", seeds=1, set={"epochs": 20}),
    "paper": Budget(about="the full recipes, three seeds", seeds=3),
}

GAN_BUDGETS = {
    "smoke": Budget(
        about="faces of 16 x 16 pixels, a thirty-second of the channels, eight steps: shows that everything runs, says"
        " nothing about the method",
        seeds=1,
        set={
            "data": {"image_size": 16, "val_size": 8, "train_size": 64},
            "width": 2,
            "n_critic": 2,
            "epochs": 2,
            "samples": {"images": 2},
            "logging": {"tensorboard": False},
        },
    ),
    "cpu": Budget(
        about="half-size faces at 32 x 32 pixels, an eighth of the channels, 10 epochs for the teacher and 6 for a"
        " student, higher learning rates, two seeds: half an hour on a core",
        seeds=2,
        set={
            "data": {"crop": 89, "image_size": 32},
            "width": 8,
            "n_critic": 3,
            "epochs": 6,
            "teacher": {"epochs": 10},
            "phases": {"scratch": {"lr": 0.0005}, "lit": {"lr": 0.001}, "finetune": {"lr": 0.0001}},
        },
    ),
    "short": Budget(about="the recipe's schedules shortened to 2 epochs, one seed", seeds=1, set={"epochs": 2}),
    "paper": Budget(about="the full recipe, three seeds", seeds=3),
}


def budgets(task: str) -> Mapping[str, Budget]:
    """The budgets of a task."""
    return {"classifier": BUDGETS, "gan": GAN_BUDGETS}[task]
