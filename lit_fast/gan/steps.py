"""One batch of each kind of phase: adversarial (teacher, scratch, fine-tune), and LIT on the bottleneck."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lit_fast.gan.draws import Draws
from lit_fast.gan.losses import attribute_loss, gradient_penalty
from lit_fast.loss.modules import LITLoss
from lit_fast.models.stargan import Discriminator, with_domain
from lit_fast.sections.model import SplitModel
from lit_fast.settings.gan import GanExperiment
from lit_fast.step.lit_model import PRECISIONS
from lit_fast.step.lit_step import LITStep
from lit_fast.step.parallel import ALONE, SharedGradients, Workers
from lit_fast.teacher.frozen import FrozenTeacher

__all__ = ["PARTS", "AdversarialStep", "BottleneckStep"]

# The loss parts of each kind of update, in the order of their rows.
PARTS = {
    "critic": ("real", "fake", "penalty", "attributes"),
    "generator": ("fake", "attributes", "reconstruction"),
    "lit": ("ir",),
}
_KINDS = {"discriminator": "critic", "generator": "generator"}  # network -> the updates that train it


class AdversarialStep:
    """WGAN-GP: the discriminator on every batch, the generator on every ``n_critic``-th.

    A discriminator that stays fixed costs no batch: the generator then trains on every one.

    Args:
        generator, discriminator: on one device, in train mode.
        settings: weights of the losses, betas, precision, n_critic.
        fixed: train the generator alone.
        workers: the processes that share each batch: each calls the step on its own rows, of which it may have none.
    """

    def __init__(
        self,
        generator: SplitModel,
        discriminator: Discriminator,
        settings: GanExperiment,
        *,
        fixed: bool = False,
        workers: Workers = ALONE,
    ) -> None:
        self.generator, self.discriminator, self.weights = generator, discriminator, settings.loss
        self.n_critic = 1 if fixed else settings.n_critic
        self.fixed = fixed
        self.device = next(discriminator.parameters()).device
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
            {name: torch.amp.GradScaler(self.device.type) for name in networks} if scaled else {}
        )
        self._means: dict[str, SharedGradients] = {}
        if workers.size > 1:
            self._means = {
                name: SharedGradients(workers, optimizer.param_groups[0]["params"], len(PARTS[_KINDS[name]]))
                for name, optimizer in self.optimizers.items()
            }

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws, index: int) -> dict[str, Tensor]:
        """Train on one batch, the phase's ``index``-th.

        Returns:
            By kind of update its loss parts (``PARTS``), detached, over the rows of all workers.
        """
        rows = {} if self.fixed else {"critic": self._train_discriminator(images, labels, draws)}
        if (index + 1) % self.n_critic == 0:
            self.discriminator.requires_grad_(False)  # its gradients are not wanted here
            rows["generator"] = self._train_generator(images, labels, draws.targets)
            self.discriminator.requires_grad_(not self.fixed)
        return rows

    def _train_discriminator(self, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        if not len(images):
            return self._update_without_rows("discriminator")
        with self._autocast():
            with torch.no_grad():
                fake = self.generator(with_domain(images, draws.targets))
            real_critic, logits = self.discriminator(images)
            fake_critic, _ = self.discriminator(fake)
        real, faked = -real_critic.float().mean(), fake_critic.float().mean()
        attributes = attribute_loss(logits, labels)
        penalty = gradient_penalty(self.discriminator, images, fake, draws.alpha)
        weights = self.weights
        loss = real + faked + weights.attributes * attributes + weights.gradient_penalty * penalty
        return self._update("discriminator", loss, torch.stack([real, faked, penalty, attributes]), len(images))

    def _train_generator(self, images: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        if not len(images):
            return self._update_without_rows("generator")
        with self._autocast():
            fake = self.generator(with_domain(images, targets))
            critic, logits = self.discriminator(fake)
            again = self.generator(with_domain(fake.to(images.dtype), labels))
        faked = -critic.float().mean()
        attributes = attribute_loss(logits, targets)
        reconstruction = (images - again.float()).abs().mean()
        weights = self.weights
        loss = faked + weights.attributes * attributes + weights.reconstruction * reconstruction
        return self._update("generator", loss, torch.stack([faked, attributes, reconstruction]), len(images))

    def _update(self, name: str, loss: Tensor, parts: Tensor, rows: int) -> Tensor:
        """Update a network by the mean of all workers' gradients; returns the mean of their parts."""
        scaler = self.scalers.get(name)
        self.optimizers[name].zero_grad(set_to_none=True)
        (loss if scaler is None else scaler.scale(loss)).backward()
        mean = self._means.get(name)
        parts = parts.detach() if mean is None else mean.mean(parts.detach(), rows)
        self._apply(name)
        return parts

    def _update_without_rows(self, name: str) -> Tensor:
        """As `_update`, where only other workers have rows."""
        optimizer, scaler = self.optimizers[name], self.scalers.get(name)
        optimizer.zero_grad(set_to_none=True)
        if scaler is not None:
            scaler.scale(torch.ones((), device=self.device))  # makes its state, should this be the first step
        parts = self._means[name].mean(None, 0)
        self._apply(name)
        return parts

    def _apply(self, name: str) -> None:
        optimizer, scaler = self.optimizers[name], self.scalers.get(name)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self._amp or torch.bfloat16, enabled=self._amp is not None)


class BottleneckStep:
    """LIT with beta = 0: the student's bottleneck learns the teacher's, on every batch, without a discriminator.

    Args:
        frozen: what runs the teacher, for several steps to share; as of `LITStep`.
    """

    def __init__(
        self,
        teacher: SplitModel,
        student: SplitModel,
        settings: GanExperiment,
        *,
        workers: Workers = ALONE,
        frozen: FrozenTeacher | None = None,
    ) -> None:
        criterion = LITLoss(beta=0.0, ir=settings.loss.ir)
        step = settings.step
        optimizer = _adam(student, settings)
        self.step = LITStep(
            teacher,
            student,
            criterion,
            optimizer,
            precision=step.precision,
            engine=step.engine,
            workers=workers,
            frozen=frozen,
        )
        self.optimizers: Mapping[str, torch.optim.Optimizer] = {"generator": optimizer}
        self.scalers: Mapping[str, torch.amp.GradScaler] = (
            {} if self.step.scaler is None else {"generator": self.step.scaler}
        )

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws, index: int) -> dict[str, Tensor]:
        return {"lit": self.step(with_domain(images, draws.targets)).ir.detach()}


def _adam(network: torch.nn.Module, settings: GanExperiment) -> torch.optim.Adam:
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return torch.optim.Adam(parameters, lr=1.0, betas=settings.optimizer.betas)  # lr: set before every step
