"""The losses of StarGAN and the two kinds of steps: what they update, and what they draw."""

from __future__ import annotations

from pathlib import Path

import fake_celeba
import pytest
import torch
from gan_helpers import tiny_gan
from torch import Tensor, nn

import lit_fast as lf
from lit_fast.gan.draws import draw
from lit_fast.gan.losses import attribute_loss, gradient_penalty
from lit_fast.gan.steps import AdversarialStep, BottleneckStep
from lit_fast.models.stargan import Discriminator, Generator, with_domain


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_celeba.write(tmp_path_factory.mktemp("celeba"))


def batch(rows: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 2, (rows, 5), generator=generator).float()
    return torch.rand(rows, 3, 16, 16, generator=generator) * 2 - 1, labels


def pair(blocks: int = 2, width: int = 2) -> tuple[lf.SplitModel, Discriminator]:
    torch.manual_seed(0)
    return lf.split(Generator(blocks, 5, width)), Discriminator(16, 5, width)


def at_rate(step, rate: float):
    for optimizer in step.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = rate
    return step


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def moved(network: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in network.state_dict().items() if not tensor.equal(before[name])}


class Linear(nn.Module):
    """A critic whose gradient is its weights, everywhere."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return (images * self.weight).flatten(1).sum(1), images.flatten(1)


@pytest.mark.parametrize(("norm", "penalty"), [(1.0, 0.0), (3.0, 4.0), (0.5, 0.25)])
def test_the_penalty_is_the_squared_distance_of_the_gradients_norm_from_one(norm, penalty):
    weight = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    critic = Linear(norm * weight / weight.norm())
    real, fake = torch.rand(5, 3, 4, 4), torch.rand(5, 3, 4, 4)
    found = gradient_penalty(critic, real, fake, torch.rand(5))
    assert found.item() == pytest.approx(penalty, abs=1e-5)


def test_the_penalty_is_differentiable_and_is_taken_between_the_images():
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return self.scale * images.square().flatten(1).sum(1) / 2, images

    critic, alpha = Square(), torch.tensor([0.25])
    real, fake = torch.full((1, 1, 1, 1), 4.0), torch.zeros(1, 1, 1, 1)
    found = gradient_penalty(critic, real, fake, alpha)  # the gradient of s x^2 / 2 at x = 0.25 * 4 is s
    assert found.item() == pytest.approx(0.0)
    critic.scale.data.fill_(3.0)
    found = gradient_penalty(critic, real, fake, alpha)
    found.backward()
    assert found.item() == pytest.approx(4.0)
    assert critic.scale.grad is not None
    assert critic.scale.grad.item() == pytest.approx(4.0)  # d (s - 1)^2 / ds at 3


def test_the_penalty_is_in_float32_under_autocast():
    _, discriminator = pair()
    images, _ = batch()
    right = gradient_penalty(discriminator, images, -images, torch.full((4,), 0.5))
    with torch.autocast("cpu", torch.bfloat16):
        found = gradient_penalty(discriminator, images, (-images).bfloat16().float(), torch.full((4,), 0.5))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, right, rtol=1e-2, atol=0)


def test_the_attribute_loss_sums_over_attributes_and_averages_over_images():
    logits, wanted = torch.zeros(4, 5), torch.ones(4, 5)
    assert attribute_loss(logits, wanted).item() == pytest.approx(5 * torch.log(torch.tensor(2.0)).item())


def test_draws_are_functions_of_seed_epoch_and_step():
    _, labels = batch(16)
    one, again = draw(labels, 1, 2, 3), draw(labels, 1, 2, 3)
    assert one.targets.equal(again.targets)
    assert one.alpha.equal(again.alpha)
    for other in (draw(labels, 0, 2, 3), draw(labels, 1, 0, 3), draw(labels, 1, 2, 0)):
        assert not one.alpha.equal(other.alpha)
    assert sorted(map(tuple, one.targets.tolist())) == sorted(map(tuple, labels.tolist()))
    assert 0 <= one.alpha.min() <= one.alpha.max() < 1


def test_the_discriminator_trains_on_every_batch_and_the_generator_on_every_nth(folder):
    generator, discriminator = pair()
    step = at_rate(AdversarialStep(generator, discriminator, tiny_gan(folder, "n_critic=3")), 1e-3)
    images, labels = batch()
    for index in range(6):
        before, before_d = snapshot(generator.model), snapshot(discriminator)
        rows = step(images, labels, draw(labels, 0, 0, index), index)
        assert moved(discriminator, before_d)
        trained = index in (2, 5)
        assert bool(moved(generator.model, before)) == trained
        assert rows.keys() == ({"critic", "generator"} if trained else {"critic"})
        assert all(parameter.requires_grad for parameter in discriminator.parameters())


def test_the_parts_are_those_of_the_published_losses(folder):
    generator, discriminator = pair()
    images, labels = batch()
    draws = draw(labels, 0, 0, 0)
    fake = generator.model(with_domain(images, draws.targets))
    critic, logits = discriminator(images)
    expected = [
        -critic.mean(),
        discriminator(fake)[0].mean(),
        gradient_penalty(discriminator, images, fake.detach(), draws.alpha),
        attribute_loss(logits, labels),
    ]
    step = at_rate(AdversarialStep(generator, discriminator, tiny_gan(folder, "n_critic=1")), 0.0)
    rows = step(images, labels, draws, 0)
    torch.testing.assert_close(rows["critic"], torch.stack(expected).detach(), rtol=1e-5, atol=1e-6)
    critic, logits = discriminator(fake)
    again = generator.model(with_domain(fake, labels))
    expected = [-critic.mean(), attribute_loss(logits, draws.targets), (images - again).abs().mean()]
    torch.testing.assert_close(rows["generator"], torch.stack(expected).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part", ["attributes", "reconstruction", "gradient_penalty"])
def test_every_weight_reaches_its_loss(folder, part):
    def trained(weight: float) -> dict[str, Tensor]:
        generator, discriminator = pair()
        settings = tiny_gan(folder, "n_critic=1", f"loss.{part}={weight}")
        step = at_rate(AdversarialStep(generator, discriminator, settings), 1e-2)
        images, labels = batch()
        for index in range(2):
            step(images, labels, draw(labels, 0, 0, index), index)
        return snapshot(generator.model)

    one, other = trained(1.0), trained(20.0)
    assert any(not one[name].equal(other[name]) for name in one)


def test_a_fixed_discriminator_stays_and_costs_no_batch(folder):
    generator, discriminator = pair()
    step = at_rate(AdversarialStep(generator, discriminator, tiny_gan(folder, "n_critic=3"), fixed=True), 1e-3)
    images, labels = batch()
    before_d = snapshot(discriminator)
    for index in range(2):
        before = snapshot(generator.model)
        assert step(images, labels, draw(labels, 0, 0, index), index).keys() == {"generator"}
        assert moved(generator.model, before)
    assert not moved(discriminator, before_d)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_both_steps_train_in_every_precision(folder, precision):
    generator, discriminator = pair(width=4)
    settings = tiny_gan(folder, "n_critic=1", f"step.precision={precision}")
    step = at_rate(AdversarialStep(generator, discriminator, settings), 1e-3)
    images, labels = batch()
    rows = step(images, labels, draw(labels, 0, 0, 0), 0)
    reference, judge = pair(width=4)
    exact = at_rate(AdversarialStep(reference, judge, tiny_gan(folder, "n_critic=1")), 1e-3)
    for kind, row in exact(images, labels, draw(labels, 0, 0, 0), 0).items():
        torch.testing.assert_close(rows[kind], row, rtol=0.05, atol=0.02)
    assert len(step.scalers) == (2 if precision == "fp16" else 0)
    student, _ = pair(1, width=4)
    student.freeze("stem", "head")
    lit = at_rate(BottleneckStep(generator, student, settings), 1e-3)
    first = [lit(images, labels, draw(labels, 0, 0, 0), i)["lit"].item() for i in range(12)]
    assert first[-1] < first[0]


def test_the_lit_step_trains_the_bottleneck_alone_on_every_batch(folder):
    teacher, _ = pair(6)
    student, _ = pair(2)
    lf.copy_parts(teacher, student)
    student.freeze("stem", "head")
    step = at_rate(BottleneckStep(teacher, student, tiny_gan(folder, "n_critic=5")), 1e-3)
    images, labels = batch()
    for index in range(3):
        before = snapshot(student.model)
        draws = draw(labels, 0, 0, index)
        x = with_domain(images, draws.targets)
        with torch.no_grad():
            right = (student.run(x)[0][0] - teacher.run(x)[0][0]).square().mean()
        rows = step(images, labels, draws, index)
        torch.testing.assert_close(rows["lit"], right.view(1), rtol=1e-4, atol=0)
        changed = moved(student.model, before)
        assert changed
        assert all(name.startswith("bottleneck.") for name in changed)
