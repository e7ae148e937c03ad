"""What a run trains, and by what: the part in which classifiers and generators differ (`lit_fast.training.run`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lit_fast.data.base import Batch
from lit_fast.data.loaders import Loader
from lit_fast.settings.schedule import Phase
from lit_fast.step.parallel import Workers
from lit_fast.training.run_state import Position, Step

__all__ = ["Rows", "RunSpec", "Task"]

Rows = Mapping[str, Tensor]  # kind of update -> its loss parts, 1-d, detached; only the updates that were made


@dataclass(frozen=True)
class RunSpec:
    """What one run trains: its name, its variant, its seed and the phases it goes through.

    With a ``sparsity`` it is the fine-tuning of a student that was trained and pruned (`lit_fast.training.pruning`).
    """

    name: str
    variant: str
    seed: int
    phases: tuple[Phase, ...]
    sparsity: float | None = None

    @property
    def epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases)


class Task(ABC):
    """The networks of one run, their steps, and what is seen of them; `Run` does the rest.

    Args:
        spec: the run.
        settings: the experiment.
        loader: of the dataset, train and validation splits of which are used; left open.
        networks: those that are trained, by name. Of the first, the weights that were best are kept (``best_by``).
        workers: the processes that train this run together; rank 0 evaluates and writes.
    """

    best_by: str | None = None  # the number of the history whose highest value tells the best weights

    def __init__(
        self, spec: RunSpec, settings: Any, loader: Loader, networks: Mapping[str, nn.Module], workers: Workers
    ) -> None:
        self.spec, self.settings, self.workers = spec, settings, workers
        self.loader, self.data = loader, loader.data
        self.networks = networks
        self.device = next(next(iter(networks.values())).parameters()).device

    # -- the course of a run -----------------------------------------------------------------------------------------

    @abstractmethod
    def prepare(self) -> None:
        """Give the networks what they start with; a checkpoint is read after this."""

    def begin(self) -> None:
        """The run begins, or goes on."""
        return

    @abstractmethod
    def enter(self, phase: Phase) -> Step:
        """Freeze what the phase freezes and build its step."""

    def engine(self) -> str | None:
        """How the step computes, to be told once; ``None`` where there is nothing to tell."""
        return None

    def batches(self, epoch: int, start_step: int = 0, shard: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """The training batches of an epoch from a step on: of each batch this shard."""
        return self.loader.train_batches(epoch, **self.batch_options(start_step), shard=shard)

    def batch_options(self, start_step: int) -> dict[str, Any]:
        """What training batches are made by."""
        settings = self.settings
        return {
            "batch_size": settings.batch_size,
            "seed": self.spec.seed,
            "start_step": start_step,
            "augment": settings.data.augment,
        }

    @abstractmethod
    def steps(self, at: Position) -> Iterator[Callable[[], Rows] | None]:
        """What is left of the epoch that ``at`` is in: a call for each step; ``None`` for one that is left out."""

    def end_phase(self, phase: Phase, epochs: int) -> None:
        """The phase has ended, after ``epochs`` in all; its step is still there. Every process is called."""
        return

    # -- what is seen of it ------------------------------------------------------------------------------------------

    def look_is_due(self, total_steps: int) -> bool:
        """Whether `look` is called after this step; it is after every epoch."""
        return False

    def look(self) -> dict[str, Any] | None:
        """What the sections look like now; ``None`` where nobody looks. Every process is called."""
        return None

    @abstractmethod
    def named(self, kind: str, row: list[float]) -> dict[str, Any]:
        """The parts of a kind of update by name, as they are logged."""

    @abstractmethod
    def describe(self, parts: Mapping[str, Any]) -> str:
        """Named loss parts on one line."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """What the history keeps of an epoch, on the validation split."""

    @abstractmethod
    def describe_epoch(self, entry: Mapping[str, Any]) -> str:
        """The losses and scores of an epoch of the history on one line."""

    def draw(self, folder: Path, epoch: int) -> None:
        """Write pictures of an epoch to the run's folder."""
        return

    def advice(self, phase: Phase) -> list[str]:
        """What may help against a loss that is not finite, beside a smaller rate and more precision."""
        return []
