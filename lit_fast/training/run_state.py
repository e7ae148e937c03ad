"""Where a run stands, and its way to a checkpoint and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lit_fast.runs.checkpoint import Checkpoint, CheckpointStore
from lit_fast.step.parallel import Workers
from lit_fast.training.tally import LossTally

__all__ = ["Position", "RunState", "Step", "load_into", "weights_of"]


class Step(Protocol):
    """What trains in a phase: everything of it that a checkpoint keeps, by name."""

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]: ...

    @property
    def scalers(self) -> Mapping[str, torch.amp.GradScaler]: ...


@dataclass
class Position:
    """Everything of a run's state that is not a tensor of a network or an optimizer."""

    phase: int = 0
    epoch: int = 0  # of the phase
    step: int = 0  # of the epoch
    total_epochs: int = 0
    total_steps: int = 0
    images: int = 0
    seconds: float = 0.0  # of training: evaluation, pictures and checkpoints are not counted
    tally: dict[str, Any] = field(default_factory=dict)  # of this epoch, see `LossTally.sums`
    best_score: float = -1.0
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


class RunState:
    """The state of one run, with its checkpoints under ``folder``.

    Args:
        folder: of the run.
        networks: those that are trained, by name, on one device.
        workers: rank 0 writes, and reads for all.
        of: the run, as its checkpoints say (`RunFolder.of`).

    Attributes:
        position: one object from first to last; a restored checkpoint is written into it.
        tally: loss parts of the epoch so far.
        best: the weights of the first network that were best on validation; ``None`` before there are any.
    """

    def __init__(self, folder: Path, networks: Mapping[str, nn.Module], workers: Workers, of: str) -> None:
        self.position = Position()
        self.tally = LossTally()
        self.best: dict[str, Tensor] | None = None
        self.store = CheckpointStore(folder / "checkpoints", of)
        self._networks, self._workers = networks, workers
        self._main = next(iter(networks.values()))
        self._device = next(self._main.parameters()).device

    def keep_best(self) -> None:
        """The weights are the best so far."""
        self.best = weights_of(self._main)

    def save(self, step: Step | None) -> None:
        """Write a checkpoint; ``step`` is that of the phase, ``None`` between two phases.

        Raises:
            StoreError: see `CheckpointStore.save`.
        """
        if not self._workers.leads:
            return
        tensors = {
            f"{role}.{name}": tensor
            for role, network in self._networks.items()
            for name, tensor in network.state_dict().items()
        }
        self.position.tally = self.tally.sums
        state = {
            "position": asdict(self.position),
            "step": None if step is None else _state_of(step),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None,
        }
        self.store.save(Checkpoint(self.position.total_steps, tensors, self.best, state))

    def restore(self) -> dict[str, Any] | None:
        """Go back to the newest checkpoint, if there is one; returns what the phase's step is owed (`load_into`)."""
        checkpoint = self._workers.first(self.store.load)
        if checkpoint is None:
            for network in self._networks.values():
                self._workers.equalise(network)
            return None
        for role, network in self._networks.items():
            network.load_state_dict(_under(f"{role}.", checkpoint.model))
        self.best = checkpoint.best
        state = checkpoint.state
        for name, value in state["position"].items():
            setattr(self.position, name, value)
        self.tally = LossTally(self.position.tally)
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self._device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self._device)
        owed: dict[str, Any] | None = state["step"]
        return owed


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the state_dict, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def _state_of(step: Step) -> dict[str, Any]:
    return {
        "optimizers": {name: optimizer.state_dict() for name, optimizer in step.optimizers.items()},
        "scalers": {name: scaler.state_dict() for name, scaler in step.scalers.items()},
    }


def load_into(step: Step, state: Mapping[str, Any]) -> None:
    """Give a phase's step the optimizers and scalers of a checkpoint."""
    for name, optimizer in step.optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    for name, scaler in step.scalers.items():
        scaler.load_state_dict(state["scalers"][name])


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
