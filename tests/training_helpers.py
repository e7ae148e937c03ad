"""A whole experiment that takes a second: digits at 8x8, ResNet-20 as its own teacher; and what stops one."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from lit_fast.runs.checkpoint import Checkpoint, CheckpointStore
from lit_fast.settings.classifier import Experiment, load_experiment
from lit_fast.step.lit_step import LITStep

TINY = (
    "data.image_size=8",
    "data.train_size=96",
    "data.val_size=60",
    "teacher.model=resnet20",
    "batch_size=32",
    "epochs=3",
    "logging.every=2",
    "logging.sections_every=4",
    "logging.tensorboard=false",
    "variants=[lit]",
)


def tiny(*overrides: str | dict[str, Any]) -> Experiment:
    return load_experiment("digits", None, [*TINY, *overrides])


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def weights(run_dir: Path, name: str, which: str = "last") -> dict[str, Tensor]:
    return load_file(run_dir / "runs" / name / f"{which}.safetensors")


def checkpoint(run_dir: Path, name: str) -> Checkpoint | None:
    """The one that a resumed run would go on from."""
    begun_as = json.loads((run_dir / "identity.json").read_text())["folder"]
    return CheckpointStore(run_dir / "runs" / name / "checkpoints", f"{begun_as} {name}").load()


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that are not bit-identical."""
    assert a.keys() == b.keys()
    return [name for name in a if not a[name].equal(b[name])]


def without_times(history: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in history]


def before_step(patch: pytest.MonkeyPatch, number: int, act: Callable[[], None], method: str = "__call__") -> None:
    """Call ``act`` before the student's step of that number, from 1. ``method``: what does a step."""
    original, done = getattr(LITStep, method), 0

    def counting(self: LITStep, *args: object) -> object:
        nonlocal done
        if self.teacher is not None:  # not the training of the teacher itself
            done += 1
            if done == number:
                act()
        return original(self, *args)

    patch.setattr(LITStep, method, counting)


def interrupt() -> None:
    """What Ctrl-C does."""
    os.kill(os.getpid(), signal.SIGINT)
