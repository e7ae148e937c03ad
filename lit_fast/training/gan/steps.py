"""One batch of each kind of phase: adversarial (teacher, scratch, fine-tune), and LIT on the bottleneck."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from lit_fast.losses import LITLoss
from lit_fast.models.stargan import Discriminator, with_domain
from lit_fast.sections import SplitModel
from lit_fast.step import PRECISIONS, LITStep
from lit_fast.training.gan.config import GanExperiment
from lit_fast.training.gan.draws import Draws
from lit_fast.training.gan.losses import attribute_loss, gradient_penalty

__all__ = ["PARTS", "AdversarialStep", "BottleneckStep", "Step", "restore", "state_of"]

# The loss parts of each kind of update, in the order of their rows.
PARTS = {
    "critic": ("real", "fake", "penalty", "attributes"),
    "generator": ("fake", "attributes", "reconstruction"),
    "lit": ("ir",),
}
Rows = dict[str, Tensor]  # kind of update -> its loss parts, 1-d, detached; only the updates that were made


class Step(Protocol):
    """What a phase does with a batch."""

    optimizers: Mapping[str, torch.optim.Optimizer]
    scalers: Mapping[str, torch.amp.GradScaler]

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws, index: int) -> Rows:
        """Train on one batch, the phase's ``index``-th."""


class AdversarialStep:
    """WGAN-GP: the discriminator on every batch, the generator on every ``n_critic``-th.

    A discriminator that stays fixed costs no batch: the generator then trains on every one.

    Args:
        generator, discriminator: on one device, in train mode.
        settings: weights of the losses, betas, precision, n_critic.
        fixed: train the generator alone.
    """

    def __init__(
        self, generator: SplitModel, discriminator: Discriminator, settings: GanExperiment, *, fixed: bool = False
    ) -> None:
        self.generator, self.discriminator, self.weights = generator, discriminator, settings.loss
        self.n_critic = 1 if fixed else settings.n_critic
        self.fixed = fixed
        device = next(discriminator.parameters()).device
        networks: dict[str, torch.nn.Module] = {"generator": generator, "discriminator": discriminator}
        if fixed:
            del networks["discriminator"]
        discriminator.requires_grad_(not fixed)
        self.optimizers: Mapping[str, torch.optim.Optimizer] = {
            name: _adam(network, settings) for name, network in networks.items()
        }
        self._amp = PRECISIONS[settings.step.precision]
        scaled = settings.step.precision == "fp16"
        self.scalers: Mapping[str, torch.amp.GradScaler] = (
            {name: torch.amp.GradScaler(device.type) for name in networks} if scaled else {}
        )

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws, index: int) -> Rows:
        rows = {} if self.fixed else {"critic": self._train_discriminator(images, labels, draws)}
        if (index + 1) % self.n_critic == 0:
            rows["generator"] = self._train_generator(images, labels, draws.targets)
        return rows

    def _train_discriminator(self, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        with self._autocast():
            with torch.no_grad():
                fake = self.generator(with_domain(images, draws.targets))
            real_critic, logits = self.discriminator(images)
            fake_critic, _ = self.discriminator(fake)
        real, faked = -real_critic.float().mean(), fake_critic.float().mean()
        attributes = attribute_loss(logits, labels)
        penalty = gradient_penalty(self.discriminator, images, fake, draws.alpha)
        weights = self.weights
        self._update(
            "discriminator", real + faked + weights.attributes * attributes + weights.gradient_penalty * penalty
        )
        return torch.stack([real, faked, penalty, attributes]).detach()

    def _train_generator(self, images: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        self.discriminator.requires_grad_(False)  # its gradients are not wanted here
        with self._autocast():
            fake = self.generator(with_domain(images, targets))
            critic, logits = self.discriminator(fake)
            again = self.generator(with_domain(fake.to(images.dtype), labels))
        faked = -critic.float().mean()
        attributes = attribute_loss(logits, targets)
        reconstruction = (images - again.float()).abs().mean()
        weights = self.weights
        self._update("generator", faked + weights.attributes * attributes + weights.reconstruction * reconstruction)
        self.discriminator.requires_grad_(not self.fixed)
        return torch.stack([faked, attributes, reconstruction]).detach()

    def _update(self, name: str, loss: Tensor) -> None:
        optimizer, scaler = self.optimizers[name], self.scalers.get(name)
        optimizer.zero_grad(set_to_none=True)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

    def _autocast(self) -> torch.autocast:
        device = next(self.discriminator.parameters()).device.type
        return torch.autocast(device, dtype=self._amp or torch.bfloat16, enabled=self._amp is not None)


class BottleneckStep:
    """LIT with beta = 0: the student's bottleneck learns the teacher's, on every batch, without a discriminator."""

    def __init__(self, teacher: SplitModel, student: SplitModel, settings: GanExperiment) -> None:
        criterion = LITLoss(beta=0.0, ir=settings.loss.ir)
        step = settings.step
        optimizer = _adam(student, settings)
        self.step = LITStep(teacher, student, criterion, optimizer, precision=step.precision, engine=step.engine)
        self.optimizers: Mapping[str, torch.optim.Optimizer] = {"generator": optimizer}
        self.scalers: Mapping[str, torch.amp.GradScaler] = (
            {} if self.step.scaler is None else {"generator": self.step.scaler}
        )

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws, index: int) -> Rows:
        return {"lit": self.step(with_domain(images, draws.targets)).ir.detach()}


def _adam(network: torch.nn.Module, settings: GanExperiment) -> torch.optim.Adam:
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return torch.optim.Adam(parameters, lr=1.0, betas=settings.optimizer.betas)  # lr: set before every step


def state_of(step: Step | None) -> dict[str, Any] | None:
    """Everything of a step that a checkpoint needs."""
    if step is None:
        return None
    return {
        "optimizers": {name: optimizer.state_dict() for name, optimizer in step.optimizers.items()},
        "scalers": {name: scaler.state_dict() for name, scaler in step.scalers.items()},
    }


def restore(step: Step, state: Mapping[str, Any]) -> None:
    """Put back what `state_of` gave."""
    for name, optimizer in step.optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    for name, scaler in step.scalers.items():
        scaler.load_state_dict(state["scalers"][name])
