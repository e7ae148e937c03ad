"""The tensors that a training step changes: put back in place, seeded, watched for being replaced.

A captured step writes to addresses. So what warm-up steps did is undone by copying into the same tensors, never by
assigning others, and tensors that were assigned (``Optimizer.load_state_dict`` does that) are copied into the ones
that were captured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "LearningRates",
    "OptimizerTensors",
    "Snapshot",
    "addresses",
    "forget_half_step",
    "prepare_momentum",
    "scaler_tensors",
]


def prepare_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give fused SGD momentum buffers that it can use: zeros where there are none, else in the parameter's layout.

    It would create them uninitialised and fill them where the gradients are finite: a first step that overflows (usual
    in fp16) would leave what happened to be in memory. With dampening, the first gradient is damped like the others.
    And it goes through parameter and buffer in the order of their memory, so a buffer from a checkpoint in another
    layout (NCHW, where the parameter is channels_last) would be mixed up.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        if not group["fused"] or group["momentum"] == 0:
            continue
        for p in group["params"]:
            buffer = optimizer.state[p].get("momentum_buffer") if p.requires_grad else p
            if buffer is None:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
            elif buffer.stride() != p.stride():
                optimizer.state[p]["momentum_buffer"] = torch.empty_like(p).copy_(buffer)


def forget_half_step(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> None:
    """What a step leaves in optimizer and scaler when it breaks off between unscaling and the scaler's update."""
    for name in ("grad_scale", "found_inf"):
        vars(optimizer).pop(name, None)
    if scaler is not None and scaler.is_enabled():
        scaler._per_optimizer_states.clear()


def scaler_tensors(scaler: torch.amp.GradScaler | None) -> list[Tensor]:
    """The scale and its growth tracker; the scaler makes them at the first ``scale``."""
    if scaler is None or not scaler.is_enabled():
        return []
    return [tensor for tensor in (scaler._scale, scaler._growth_tracker) if tensor is not None]


def addresses(modules: Sequence[nn.Module]) -> Iterator[tuple[dict[str, Any], str]]:
    """Where the parameters and buffers of ``modules`` are held: (dictionary, name) of each."""
    for module in modules:
        for child in module.modules():
            for held in (child._parameters, child._buffers):
                yield from ((held, name) for name, tensor in held.items() if tensor is not None)


class Snapshot:
    """A copy of all that a step changes, to be put back in place.

    Args:
        tensors: parameters, buffers and the scaler's tensors.
        optimizer: its state; what does not exist yet is zero in every optimizer that can be captured.
        device: whose random generator, beside the CPU's, is kept.
    """

    def __init__(self, tensors: Sequence[Tensor], optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._optimizer, self._device = optimizer, device
        self._tensors = [(tensor, tensor.detach().clone()) for tensor in tensors]
        self._state = {id(tensor): tensor.clone() for _, _, tensor in _state_of(optimizer)}
        self._rng = torch.get_rng_state()
        self._device_rng = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @torch.no_grad()
    def restore(self) -> None:
        for tensor, saved in self._tensors:
            tensor.copy_(saved)
        for _, _, tensor in _state_of(self._optimizer):
            if id(tensor) in self._state:
                tensor.copy_(self._state[id(tensor)])
            else:
                tensor.zero_()
        torch.set_rng_state(self._rng)
        if self._device_rng is not None:
            torch.cuda.set_rng_state(self._device_rng, self._device)


class OptimizerTensors:
    """The state tensors of an optimizer as they are now; ``keep`` keeps their addresses."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._held = list(_state_of(optimizer))

    def keep(self, optimizer: torch.optim.Optimizer) -> None:
        """Copy what was assigned since then into these tensors, and give them back to the optimizer."""
        for p, name, tensor in self._held:
            now = optimizer.state[p].get(name)
            if now is tensor:
                continue
            if now is None:
                tensor.zero_()
            else:
                tensor.copy_(now)
            optimizer.state[p][name] = tensor


def _state_of(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, str, Tensor]]:
    """(parameter, name, tensor) of an optimizer's state."""
    for p, state in optimizer.state.items():
        yield from ((p, name, value) for name, value in state.items() if isinstance(value, Tensor))


class LearningRates:
    """The learning rate of each parameter group as a float32 tensor, 0-d, at a fixed address.

    Schedules go on writing numbers (or tensors) to ``group["lr"]``; ``write`` brings them to the device.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self._tensors = [torch.zeros((), device=device) for _ in range(count)]
        self._written: list[float | None] = [None] * count

    def write(self, optimizer: torch.optim.Optimizer) -> None:
        for i, (tensor, group) in enumerate(zip(self._tensors, optimizer.param_groups)):
            lr = group["lr"]
            if isinstance(lr, Tensor):
                tensor.copy_(lr, non_blocking=True)
                self._written[i] = None
            elif lr != self._written[i]:
                tensor.fill_(lr)
                self._written[i] = lr

    @contextmanager
    def used_by(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """The optimizer reads the tensors inside."""
        groups = optimizer.param_groups
        own = [group["lr"] for group in groups]
        try:
            for group, tensor in zip(groups, self._tensors):
                group["lr"] = tensor
            yield
        finally:
            for group, lr in zip(groups, own):
                group["lr"] = lr
