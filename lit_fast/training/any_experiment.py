"""Runs an experiment of either kind: classifiers or generators."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from lit_fast.training.config import AnyExperiment, Experiment
from lit_fast.training.experiment import run_experiment
from lit_fast.training.gan.config import GanExperiment
from lit_fast.training.gan.experiment import run_gan_experiment

__all__ = ["run_any_experiment"]


def run_any_experiment(experiment: AnyExperiment, run_dir: Path, *, resume: bool, console: Console) -> None:
    """`lit_fast.training.experiment.run_experiment` or `lit_fast.training.gan.experiment.run_gan_experiment`."""
    if isinstance(experiment, GanExperiment):
        run_gan_experiment(experiment, run_dir, resume=resume, console=console)
    elif isinstance(experiment, Experiment):
        run_experiment(experiment, run_dir, resume=resume, console=console)
