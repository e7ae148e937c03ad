"""Where a run stands, and its way to a checkpoint and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_fast.parallel import Workers
from lit_fast.projector import Projectors
from lit_fast.sections import SplitModel
from lit_fast.step import LITStep
from lit_fast.training.checkpoint import Checkpoint, CheckpointStore
from lit_fast.training.tally import LossTally

__all__ = ["Position", "RunState", "load_into"]


@dataclass
class Position:
    """Everything of a run's state that is not a tensor of the model or the optimizer."""

    phase: int = 0
    epoch: int = 0  # of the phase
    step: int = 0  # of the epoch
    total_epochs: int = 0
    total_steps: int = 0
    images: int = 0
    seconds: float = 0.0  # of training: evaluation and checkpoints are not counted
    sums: list[float] = field(default_factory=list)  # the tally of this epoch
    sums_images: int = 0
    best_accuracy: float = -1.0
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


class RunState:
    """The state of one run, with its checkpoints under ``folder``.

    Args:
        folder: of the run.
        student, projector: what is trained.
        workers: rank 0 writes, and reads for all.

    Attributes:
        position: one object from first to last; a restored checkpoint is written into it.
        tally: loss parts of the epoch so far.
        best: the weights that were best on validation; ``None`` before the first epoch has ended.
    """

    def __init__(self, folder: Path, student: SplitModel, projector: Projectors | None, workers: Workers) -> None:
        self.position = Position()
        self.tally = LossTally([], 0)
        self.best: dict[str, Tensor] | None = None
        self.store = CheckpointStore(folder / "checkpoints")
        self._student, self._projector, self._workers = student, projector, workers
        self._device = next(student.parameters()).device

    def weights(self) -> dict[str, Tensor]:
        """A copy of the student's state_dict, on the CPU."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self._student.model.state_dict().items()}

    def save(self, step: LITStep | None) -> None:
        """Write a checkpoint; ``step`` is that of the phase, ``None`` between two phases.

        Raises:
            StoreError: see `CheckpointStore.save`.
        """
        if not self._workers.leads:
            return
        tensors = {f"student.{name}": tensor for name, tensor in self._student.model.state_dict().items()}
        if self._projector is not None:
            tensors |= {f"projector.{name}": tensor for name, tensor in self._projector.state_dict().items()}
        self.position.sums, self.position.sums_images = self.tally.sums, self.tally.images
        state = {
            "position": asdict(self.position),
            "optimizer": None if step is None else step.optimizer.state_dict(),
            "scaler": None if step is None or step.scaler is None else step.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None,
        }
        self.store.save(Checkpoint(self.position.total_steps, tensors, self.best, state))

    def restore(self) -> dict[str, Any] | None:
        """Go back to the newest checkpoint, if there is one; returns what the phase's step is owed (`load_into`)."""
        checkpoint = self._workers.first(self.store.load)
        if checkpoint is None:
            self._workers.equalise(self._student.model)
            if self._projector is not None:
                self._workers.equalise(self._projector)
            return None
        self._student.model.load_state_dict(_under("student.", checkpoint.model))
        if self._projector is not None:
            self._projector.load_state_dict(_under("projector.", checkpoint.model))
        self.best = checkpoint.best
        state = checkpoint.state
        for name, value in state["position"].items():
            setattr(self.position, name, value)
        self.tally = LossTally(self.position.sums, self.position.sums_images)
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self._device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self._device)
        return state


def load_into(step: LITStep, state: Mapping[str, Any]) -> None:
    """Give a phase's step the optimizer and scaler of a checkpoint; nothing where it was made between two phases."""
    if state["optimizer"] is None:
        return
    step.optimizer.load_state_dict(state["optimizer"])
    if step.scaler is not None:
        step.scaler.load_state_dict(state["scaler"])


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
