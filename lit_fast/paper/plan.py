"""From a study and a budget to single runs, each an experiment of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, ValidationError, model_validator

from lit_fast import recipes
from lit_fast.errors import ConfigError
from lit_fast.paper import studies
from lit_fast.paper.budgets import BUDGETS, Budget
from lit_fast.paper.identity import teacher_alone
from lit_fast.settings.base import AnyExperiment, Strict
from lit_fast.settings.classifier import kind_of, load_any_experiment, read_yaml

__all__ = [
    "Arm",
    "GanScores",
    "Group",
    "Planned",
    "Study",
    "load_study",
    "plan",
]

Settings = dict[str, Any]


class GanScores(Strict):
    """What the paper reports of a generator."""

    inception_score: float
    fid: float


class Arm(Strict):
    """One thing that is compared: settings over the group's, and what the paper reports (test accuracy in %)."""

    name: str
    set: Settings = Field(default_factory=dict)
    at: float | None = None
    paper: float | GanScores | None = None
    paper_deviation: float | None = None


class Group(Strict):
    """Arms that are compared with each other: they share recipe and teacher, of which the paper may report, too."""

    name: str
    recipe: str
    set: Settings = Field(default_factory=dict)
    paper_teacher: GanScores | None = None
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)]


class Study(Strict):
    """A study as its file says it.

    ``axis`` names what the arms' ``at`` is; ``smoke``: digits, or for generators a few faces, will do for a trial.
    """

    title: str
    source: str
    axis: str | None = None
    smoke: bool = True
    groups: Annotated[tuple[Group, ...], Field(min_length=1)]

    @property
    def task(self) -> str:
        """What its recipes train."""
        return _task(self.groups[0].recipe)

    @model_validator(mode="after")
    def _of_one_task(self) -> Study:
        right, expected = _NUMBERS[self.task]
        for group in self.groups:
            if _task(group.recipe) != self.task:
                raise ValueError(
                    f"group {group.name!r} has recipe {group.recipe}, of task {_task(group.recipe)}, the first group's "
                    f"task is {self.task}; make two studies of it"
                )
            for paper in (group.paper_teacher, *(arm.paper for arm in group.arms)):
                if paper is not None and not isinstance(paper, right):
                    raise ValueError(f"group {group.name!r}: the paper's number: expected {expected}, got {paper}")
        return self


# What the paper reports, by task.
_NUMBERS: dict[str, tuple[type, str]] = {
    "classifier": (float, "an accuracy in %"),
    "gan": (GanScores, "{inception_score: ..., fid: ...}"),
}


def _task(recipe: str) -> str:
    try:
        return kind_of(recipes.load(recipe)).TASK
    except KeyError as error:
        raise ValueError(error.args[0]) from error


class Planned(NamedTuple):
    """One run of a study: one student, trained one way, with one seed; then what it is pruned to.

    Attributes:
        group, arm: names.
        at, paper, paper_deviation: of the arm.
        experiment: all of it; its teacher has no checkpoint yet where ``teacher`` says how to make it.
        teacher: the experiment that trains the teacher; None where a checkpoint is given.
    """

    group: str
    arm: Arm
    experiment: AnyExperiment
    teacher: AnyExperiment | None

    @property
    def network(self) -> str:
        return self.experiment.networks[-1]

    @property
    def variant(self) -> str:
        return self.experiment.variants[0]

    @property
    def seed(self) -> int:
        return self.experiment.seeds[0]

    @property
    def sparsities(self) -> tuple[float | None, ...]:
        """Of its results, in their order: None is the student as it was trained."""
        return (None, *self.experiment.sparsities)


def load_study(name: str) -> Study:
    """The study of that name, or of that YAML file.

    Raises:
        ConfigError: there is none, or it is not a study.
    """
    if name.endswith((".yaml", ".yml")):
        tree = read_yaml(Path(name))
    else:
        try:
            tree = studies.load(name)
        except KeyError as error:
            raise ConfigError(error.args[0]) from error
    try:
        return Study.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"study {name}: {error}") from None


def plan(
    study: Study,
    budget: Budget,
    *,
    seeds: int | None = None,
    data_dir: Path | None = None,
    teacher: tuple[str, Path] | None = None,
    overrides: Iterable[str | Mapping[str, Any]] = (),
    only: str | None = None,
) -> list[Planned]:
    """The runs of a study, in the order of its file, a seed at a time.

    Args:
        seeds: number of them; default: the budget's.
        data_dir: of the budget's dataset.
        teacher: network and weights of a given teacher, for the groups whose teacher is of that family.
        overrides: settings over everything.
        only: groups whose teacher is of this family: "resnet", "resnext".

    Raises:
        ConfigError: settings that cannot be, or nothing to run.
    """
    count = budget.seeds if seeds is None else seeds
    if not study.smoke and budget is BUDGETS["smoke"]:
        raise ConfigError(f"{study.title}: there is no budget smoke, for its networks read no digits; choose short")
    if count < 1:
        raise ConfigError(f"seeds: expected at least 1, got {count}")
    last: list[str | Mapping[str, Any]] = [budget.set]
    if data_dir is not None and budget.set.get("data", {}).get("dir", data_dir) is not None:
        last.append({"data": {"dir": data_dir}})
    last += overrides
    found = []
    for seed in range(count):
        for group in study.groups:
            base = _teacher_of(group, last)
            if only is not None and _family(base) != only:
                continue
            found += [run for arm in group.arms for run in _runs(group, arm, seed, budget, base, teacher, last)]
    if not found:
        raise ConfigError(f"nothing to run: no group of the study has a teacher of the family {only}")
    return found


def _teacher_of(group: Group, last: list[str | Mapping[str, Any]]) -> str:
    """The group's network of a teacher; its files are left out, for one of them may come from the caller."""
    files = kind_of(recipes.load(group.recipe)).TEACHER_FILES
    without = [group.set, *last, {"teacher": dict.fromkeys(files)}]
    return load_any_experiment(group.recipe, None, without, own_objects=True).teacher.model


def _runs(
    group: Group,
    arm: Arm,
    seed: int,
    budget: Budget,
    base: str,
    given: tuple[str, Path] | None,
    last: list[str | Mapping[str, Any]],
) -> list[Planned]:
    changed: Settings = {"model": budget.teachers.get(base, base)}
    if given is not None and _family(given[0]) == _family(base):
        changed = {"model": given[0], "checkpoint": given[1]}
    common = [{"teacher": changed}, *last]
    whole = _load(group.recipe, [group.set, arm.set, *common, {"seeds": [seed]}])
    # The teacher is the group's: what an arm sets (a precision, a loss) is not for it.
    trained = None
    if whole.teacher.checkpoint is None:
        trained = teacher_alone(_load(group.recipe, [group.set, *common]))
    if whole.chains:
        return [Planned(group.name, arm, whole, trained)]
    single = [
        whole.model_copy(
            update={"student": whole.student.model_copy(update={"models": (model,)}), "variants": (variant,)}
        )
        for model in whole.student.models
        for variant in whole.variants
    ]
    return [Planned(group.name, arm, experiment, trained) for experiment in single]


def _load(recipe: str, overrides: Iterable[str | Mapping[str, Any]]) -> AnyExperiment:
    return load_any_experiment(recipe, None, overrides)


def _family(model: str) -> str:
    return model.rstrip("0123456789")
