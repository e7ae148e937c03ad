"""Trains a student for each candidate; the validation split decides, the test split is never used."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from lit_fast.errors import ConfigError, NonFiniteLoss
from lit_fast.files import make_folder, refuse_odd, write_json
from lit_fast.paper.identity import digest, teacher_alone
from lit_fast.runs.environment import describe_environment, resolve_device
from lit_fast.settings.classifier import Experiment
from lit_fast.training.experiment import run_experiment, train_model

__all__ = ["Found", "Space", "joint", "sequential"]

NAMES = ("tau", "alpha", "beta")


class Space(NamedTuple):
    """What is tried: for the sequential search these values, for the joint one all between least and largest."""

    tau: Sequence[float] = (1.0, 2.0, 4.0, 6.0, 8.0, 10.0)
    alpha: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98)
    beta: Sequence[float] = (0.02, 0.25, 0.5, 0.75)

    def check(self) -> None:
        """Raises ConfigError for values that a loss cannot have."""
        for name, values in zip(NAMES, self):
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"{name}: expected different values, got {list(values)}")
            most = 1e6 if name == "tau" else 1.0  # Optuna draws without end between infinite bounds
            wrong = [v for v in values if not 0 <= v <= most or (name == "tau" and v == 0)]
            if wrong:
                raise ConfigError(f"{name}: expected {'values > 0' if name == 'tau' else '0..1'}, got {wrong}")


class Found(NamedTuple):
    """What a search ended with, and the JSON file of all that was tried."""

    best: dict[str, float]
    accuracy: float
    path: Path


class _Trials:
    """Candidates by their settings: each is trained once, whatever asks for it, and again only if interrupted."""

    def __init__(self, experiment: Experiment, folder: Path, mode: str, console: Console) -> None:
        if experiment.student.sequence or len(experiment.student.models) != 1:
            raise ConfigError("a search trains one student: give one, and student.sequence=false")
        if experiment.pruning.sparsities:
            raise ConfigError("a search prunes nothing: leave out pruning.sparsities")
        self.folder, self.console = folder, console
        self.path = folder / f"{mode}.json"
        self.rows: list[dict[str, Any]] = []
        self._head = {
            "mode": mode,
            "experiment": experiment.model_dump(mode="json"),
            "environment": describe_environment(resolve_device(experiment.step.device)),
        }
        folder.mkdir(parents=True, exist_ok=True)
        self._base = self._with_teacher(experiment)

    def _with_teacher(self, experiment: Experiment) -> Experiment:
        """The experiment with a trained teacher's weights."""
        if experiment.teacher.checkpoint is not None:
            return experiment
        alone = teacher_alone(experiment)
        folder = make_folder(self.folder / "teachers") / digest(alone)
        result = train_model(alone, folder, resume=True, console=self.console, score_test=False)
        weights = {"checkpoint": folder / str(result["files"]["last"])}
        return experiment.model_copy(update={"teacher": experiment.teacher.model_copy(update=weights)})

    def accuracy(self, stage: str, variant: str, values: dict[str, float]) -> float:
        """Best validation accuracy in %, mean over the seeds; of a run that diverges, 0."""
        loss = self._base.loss.model_copy(update=values)
        experiment = self._base.model_copy(update={"loss": loss, "variants": (variant,)})
        own = make_folder(self.folder / "runs") / digest(experiment)
        shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
        self.console.print(f"{stage}: {variant}, {shown}", highlight=False, markup=False)
        try:
            results = run_experiment(experiment, own, resume=True, console=self.console, score_test=False)
            scores = [float(r["accuracy"]["val_best"]) for r in results if r["role"] == "student"]
        except NonFiniteLoss:
            scores = [0.0]
        mean = statistics.fmean(scores)
        self.rows.append({"stage": stage, "variant": variant, **values, "val_accuracy": mean, "seeds": scores})
        self.write()
        return mean

    def write(self, **result: Any) -> None:
        write_json(self.path, {**self._head, **result, "trials": self.rows})


def sequential(experiment: Experiment, folder: Path, space: Space, *, console: Console | None = None) -> Found:
    """The paper's policy (section 3): tau by KD, then alpha by KD at that tau, then beta by LIT at both.

    Candidates that have been trained are not trained again, so an interrupted search goes on where it was.

    Args:
        experiment: one student; its loss gives alpha for the first stage, its seeds are averaged over.
        folder: where all is written.
        space: the values.

    Raises:
        ConfigError: values or an experiment that cannot be searched. Interrupted, ValueError, OSError: as training.
    """
    space.check()
    trials = _Trials(experiment, folder, "sequential", console or Console())
    best: dict[str, float] = {"alpha": experiment.loss.alpha}
    accuracy = 0.0
    for name, variant, values in zip(NAMES, ("kd", "kd", "lit"), space):
        scored = [(trials.accuracy(name, variant, {**best, name: value}), value) for value in values]
        accuracy, best[name] = max(scored, key=lambda pair: pair[0])  # of equals the first
    trials.write(best=best, val_accuracy=accuracy)
    return Found(best, accuracy, trials.path)


def joint(experiment: Experiment, folder: Path, space: Space, *, count: int, console: Console | None = None) -> Found:
    """All three at once, by LIT: Optuna's tree-structured Parzen estimator proposes, within the space's bounds.

    The study is kept in ``folder/optuna.log``; a call goes on until there are ``count`` trials.

    Args, errors: as `sequential`.

    Raises:
        ImportError: Optuna is not installed.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    space.check()
    if count < 1:
        raise ConfigError(f"trials: expected at least 1, got {count}")
    trials = _Trials(experiment, folder, "joint", console or Console())
    refuse_odd(folder / "optuna.log")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(folder / "optuna.log")))
    study = optuna.create_study(study_name="lit", storage=storage, load_if_exists=True, direction="maximize")
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))  # a later call must not draw the same again
    done = study.get_trials(states=(TrialState.COMPLETE,))
    known = [trial.params for trial in done]
    for stopped in study.get_trials(states=(TrialState.RUNNING, TrialState.FAIL)):  # of earlier calls: go on with these
        if len(stopped.params) == len(NAMES) and stopped.params not in known:
            study.enqueue_trial(stopped.params)
            known.append(stopped.params)
    trials.rows += [{"stage": "joint", "variant": "lit", **t.params, "val_accuracy": t.value} for t in done]
    bounds = dict(zip(NAMES, ((min(values), max(values)) for values in space)))

    def objective(trial: optuna.Trial) -> float:
        values = {name: trial.suggest_float(name, *bounds[name], log=name == "tau") for name in NAMES}
        return trials.accuracy(f"trial {trial.number + 1}", "lit", values)

    study.optimize(objective, n_trials=max(0, count - len(trials.rows)))
    best = {name: float(study.best_params[name]) for name in NAMES}
    trials.write(best=best, val_accuracy=study.best_value)
    return Found(best, float(study.best_value), trials.path)


def settings_of(best: dict[str, float]) -> Iterable[str]:
    """As options of `lit-fast distill`."""
    return (f"--set loss.{name}={value:.4g}" for name, value in sorted(best.items()))
