"""A whole StarGAN experiment that takes seconds: 16x16 pictures, two channels wide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from lit_fast.settings.classifier import load_any_experiment
from lit_fast.settings.gan import GanExperiment

TINY = (
    "data.crop=22",
    "data.image_size=16",
    "data.val_size=4",
    "width=2",
    "batch_size=8",
    "n_critic=2",
    "epochs=2",
    "logging.every=2",
    "logging.tensorboard=false",
    "samples.images=2",
)


def tiny_gan(folder: Path, *overrides: str | dict[str, Any]) -> GanExperiment:
    experiment = load_any_experiment("stargan-celeba", None, [{"data": {"dir": str(folder)}}, *TINY, *overrides])
    assert isinstance(experiment, GanExperiment)
    return experiment


def networks(run_dir: Path, name: str) -> dict[str, Tensor]:
    """Every tensor of both networks of a run."""
    folder = run_dir / "runs" / name
    return {
        f"{which}.{key}": tensor
        for which in ("generator", "discriminator")
        for key, tensor in load_file(folder / f"{which}.safetensors").items()
    }
