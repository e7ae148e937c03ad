"""A whole `lit_fast.distill` that takes a second, alone or as one of the processes that torchrun starts.

    python -m torch.distributed.run --standalone --nproc-per-node 2 tests/parallel_worker.py RUN_DIR [key=value ...]

With FAIL="<rank> <step> <signal>" in the environment, that process sends itself the signal before that step of the
student. With SAVE=1, there is a checkpoint after every step. In float64 and without BatchNorm, so that the number of
processes changes results by rounding alone.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from unittest import mock

import torch
from rich.console import Console
from torch import Tensor, nn

import lit_fast as lf
from lit_fast.cli.errors import explain
from lit_fast.step.lit_step import LITStep
from lit_fast.training import experiment
from lit_fast.training.distill import Distilled

IMAGES, BATCH = 49, 12  # 5 steps per epoch; the last batch has one image
NAME = "net-lit-seed0"


class Net(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.low = nn.Sequential(*[layer for _ in range(blocks) for layer in self.block()])
        self.high = nn.Sequential(*[layer for _ in range(blocks) for layer in self.block()])
        self.last = nn.Linear(8, 5)
        self.double()

    @staticmethod
    def block() -> tuple[nn.Module, nn.Module]:
        return nn.Conv2d(8, 8, 3, padding=1), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.high(self.low(self.first(x.double()))).mean((2, 3)))


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8), torch.arange(count) % 5


def run(run_dir: Path, *overrides: str) -> Distilled:
    """Resumes what it finds in ``run_dir``."""
    data = lf.data.from_arrays(
        images(IMAGES, 0), images(10, 1), test=images(10, 2), augmentation=lf.data.Augmentation(pad=1, flip=True)
    )
    rank = int(os.environ.get("RANK", "0"))
    torch.manual_seed(7)
    teacher = Net(2)
    torch.manual_seed(rank)  # only rank 0's weights count
    settings = (f"batch_size={BATCH}", "epochs=3", "logging.every=1", "logging.tensorboard=false", "step.device=cpu")
    often = ["checkpoint.every_seconds=1e-6"] if "SAVE" in os.environ else []
    with mock.patch.object(experiment, "refuse_chance"):  # a teacher without training will do
        return lf.distill(
            lf.split(teacher, at=["low", "high"]),
            lf.split(Net(1), at=["low", "high"]),
            data,
            recipe="digits",
            run_dir=run_dir,
            resume=run_dir.exists(),
            overrides=[*settings, *often, *overrides],
            console=Console(file=io.StringIO()),
        )


def fail_as_told() -> None:
    rank, step, number = map(int, os.environ["FAIL"].split())
    original, calls = LITStep.__call__, 0

    def failing(self: LITStep, *args: Tensor) -> object:
        nonlocal calls
        calls += 1
        if calls == step and int(os.environ["RANK"]) == rank:
            signal.raise_signal(signal.Signals(number))
        return original(self, *args)

    LITStep.__call__ = failing  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    if "FAIL" in os.environ:
        fail_as_told()
    try:
        run(Path(sys.argv[1]), *sys.argv[2:])
    except Exception as error:
        sys.exit(explain(error))
    print(f"rank {os.environ['RANK']} done")
