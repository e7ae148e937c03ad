"""Runs an experiment of either kind: classifiers or generators."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from lit_fast.gan.experiment import run_gan_experiment
from lit_fast.settings.base import AnyExperiment
from lit_fast.settings.classifier import Experiment
from lit_fast.settings.gan import GanExperiment
from lit_fast.training.experiment import run_experiment, train_model

__all__ = ["run_any_experiment", "train_any_teacher"]


def run_any_experiment(experiment: AnyExperiment, run_dir: Path, *, resume: bool, console: Console) -> None:
    """`lit_fast.training.experiment.run_experiment` or `lit_fast.gan.experiment.run_gan_experiment`."""
    if isinstance(experiment, GanExperiment):
        run_gan_experiment(experiment, run_dir, resume=resume, console=console)
    elif isinstance(experiment, Experiment):
        run_experiment(experiment, run_dir, resume=resume, console=console)


def train_any_teacher(experiment: AnyExperiment, run_dir: Path, *, console: Console) -> dict[str, Path]:
    """The teacher alone, resumed; the settings of ``teacher`` that hand it to a student's experiment."""
    if isinstance(experiment, GanExperiment):
        (result,) = run_gan_experiment(experiment, run_dir, resume=True, console=console, teacher_only=True)
        files = zip(experiment.TEACHER_FILES, ("generator", "discriminator"))
    else:
        assert isinstance(experiment, Experiment)
        result = train_model(experiment, run_dir, resume=True, console=console)
        files = zip(experiment.TEACHER_FILES, ("last",))
    return {key: run_dir / str(result["files"][which]) for key, which in files}
