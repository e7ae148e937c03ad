"""Which experiments are one and the same, and which share a teacher."""

from __future__ import annotations

import hashlib
import json
from typing import TypeVar

from lit_fast.settings.base import AnyExperiment
from lit_fast.settings.classifier import load_any_experiment

__all__ = ["digest", "teacher_alone"]

E = TypeVar("E", bound=AnyExperiment)


def teacher_alone(experiment: E) -> E:
    """The experiment with its recipe's settings of students: all who share a teacher agree on what trains it."""
    plain = load_any_experiment(experiment.recipe, None, [{"data": experiment.data.model_dump()}]).model_dump()
    tree = experiment.model_dump()
    for key in experiment.OF_STUDENTS:
        *above, last = key.split(".")
        there, recipe = tree, plain
        for part in above:
            there, recipe = there[part], recipe[part]
        there[last] = recipe[last]
    return type(experiment).model_validate(tree)


def digest(experiment: AnyExperiment) -> str:
    """A short hash of all that decides an experiment's results."""
    identity = experiment.identity()
    identity.pop("step.device", None)  # where it runs
    identity |= experiment.teacher.hashes()
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
