"""Which experiments are one and the same, and which share a teacher."""

from __future__ import annotations

import hashlib
import json
from typing import TypeVar, cast

from lit_fast.training.config import AnyExperiment, Experiment, load_any_experiment
from lit_fast.training.gan.config import GanExperiment

__all__ = ["digest", "teacher_alone"]

AnExperiment = TypeVar("AnExperiment", bound=Experiment | GanExperiment)

# Settings that a teacher's training does not read.
_OF_STUDENTS: dict[type[AnyExperiment], tuple[str, ...]] = {
    Experiment: ("student", "variants", "seeds", "loss", "pruning", "phases.kd", "phases.lit", "phases.finetune"),
    GanExperiment: (
        "student", "variants", "seeds", "loss.ir", "discriminator_in_finetune", "phases.lit", "phases.finetune",
    ),
}  # fmt: skip


def teacher_alone(experiment: AnExperiment) -> AnExperiment:
    """The experiment with its recipe's settings of students: all who share a teacher agree on what trains it."""
    plain = load_any_experiment(experiment.recipe, None, [{"data": experiment.data.model_dump()}]).model_dump()
    tree = experiment.model_dump()
    for key in _OF_STUDENTS[type(experiment)]:
        *above, last = key.split(".")
        there, recipe = tree, plain
        for part in above:
            there, recipe = there[part], recipe[part]
        there[last] = recipe[last]
    return cast(AnExperiment, type(experiment).model_validate(tree))


def digest(experiment: Experiment | GanExperiment) -> str:
    """A short hash of all that decides an experiment's results."""
    identity = experiment.identity()
    identity.pop("step.device", None)  # where it runs
    identity |= experiment.teacher.hashes()
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
