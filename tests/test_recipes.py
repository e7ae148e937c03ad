"""The recipes hold exactly the numbers of the paper's appendix A, and shorten in proportion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_fast import recipes
from lit_fast.settings.classifier import Experiment, load_any_experiment, load_experiment
from lit_fast.settings.gan import GanExperiment
from lit_fast.settings.schedule import Phase

PhaseNumbers = tuple[float, int, tuple[int, ...]]  # learning rate, epochs, milestones


@dataclass(frozen=True)
class Paper:
    """One row of the paper's table of schedules."""

    dataset: str
    teacher: str
    students: tuple[str, ...]
    cardinality: int | None
    beta: float
    scratch: PhaseNumbers
    kd: PhaseNumbers
    lit: PhaseNumbers
    finetune: PhaseNumbers
    alpha: float = 0.95
    batch_size: int = 32
    val_size: int | None = 5000
    lit_gamma: float = 0.1


def resnet(dataset: str) -> Paper:
    return Paper(
        *(dataset, "resnet110", ("resnet20",), None, 0.75),
        scratch=(0.1, 200, (100, 150)),
        kd=(0.1, 250, (100, 175)),
        lit=(0.1, 175, (60, 100, 125)),
        finetune=(0.01, 75, (35, 55)),
    )


def resnext(dataset: str, cardinality: int | None, beta: float) -> Paper:
    return Paper(
        *(dataset, "resnext110", ("resnext20",), cardinality, beta),
        scratch=(0.1, 300, (150, 225)),
        kd=(0.1, 300, (100, 175, 225)),
        lit=(0.1, 200, (100, 145, 175)),
        finetune=(0.01, 125, (65, 95, 110)),
    )


def vdcnn(dataset: str) -> Paper:
    return Paper(
        *(dataset, "vdcnn29", ("vdcnn17", "vdcnn9"), None, 0.02),
        scratch=(0.01, 15, (3, 6, 9, 12)),
        kd=(0.01, 18, (3, 6, 9, 12, 15)),
        lit=(0.01, 15, (3, 6, 9, 12)),
        finetune=(0.000625, 10, (4, 8)),
        alpha=0.98,
        batch_size=128,
        val_size=None,
        lit_gamma=0.5,
    )


PAPER = {
    "resnet-cifar10": resnet("cifar10"),
    "resnet-cifar100": resnet("cifar100"),
    "resnext-cifar10": resnext("cifar10", None, 0.5),
    "resnext-cifar100": resnext("cifar100", None, 0.5),
    "resnext-cardinality16-cifar10": resnext("cifar10", 16, 0.25),
    "resnext-cardinality16-cifar100": resnext("cifar100", 16, 0.25),
    "vdcnn-amazon-full": vdcnn("amazon-full"),
    "vdcnn-amazon-polarity": vdcnn("amazon-polarity"),
}


def load(name: str, *overrides: str) -> Experiment:
    folder: dict[str, Any] = {} if name == "digits" else {"data": {"dir": "/somewhere"}}
    return load_experiment(name, overrides=[folder, *overrides])


def test_the_recipes_are_those_of_the_paper_and_the_demo() -> None:
    assert recipes.names() == sorted([*PAPER, "digits", "stargan-celeba"])


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_holds_the_papers_numbers(name: str) -> None:
    paper, ours = PAPER[name], load(name)
    assert ours.data.name == paper.dataset
    assert ours.data.val_size == paper.val_size
    assert ours.data.augment
    assert (ours.teacher.model, ours.teacher.cardinality) == (paper.teacher, None)
    assert [(s.model, s.cardinality) for s in ours.student.models] == [(s, paper.cardinality) for s in paper.students]
    assert ours.student.sequence == (len(paper.students) > 1)
    assert ours.variants == ("lit",)
    assert ours.batch_size == paper.batch_size
    assert (ours.loss.tau, ours.loss.alpha, ours.loss.beta) == (6.0, paper.alpha, paper.beta)
    assert (ours.loss.ir, ours.loss.tau_squared) == ("l2", True)
    assert (ours.optimizer.momentum, ours.optimizer.weight_decay, ours.optimizer.nesterov) == (0.9, 1e-4, False)
    for phase in ("scratch", "kd", "lit", "finetune"):
        found = getattr(ours.phases, phase)
        assert (found.lr, found.epochs, found.milestones) == getattr(paper, phase), phase
        assert found.gamma == (paper.lit_gamma if phase == "lit" else 0.1)
    assert ours.student.copied == ("stem", "head")
    assert ours.student.frozen_in_finetune == ()
    assert ours.step.bn_policy == "composed"


def test_the_recipe_of_stargan_holds_the_papers_numbers() -> None:
    ours = load_any_experiment("stargan-celeba", overrides=[{"data": {"dir": "/somewhere"}}])
    assert isinstance(ours, GanExperiment)
    assert (ours.teacher.model, ours.student.models, ours.batch_size) == ("stargan6", ("stargan2",), 16)
    scratch, lit, finetune = ours.phases.scratch, ours.phases.lit, ours.phases.finetune
    assert (scratch.lr, scratch.epochs, scratch.linear, scratch.milestones) == (1e-4, 20, 10, ())
    assert (lit.lr, lit.epochs, lit.milestones, lit.gamma) == (1e-4, 16, (8,), 0.1)
    assert (finetune.lr, finetune.epochs, finetune.milestones, finetune.gamma) == (5e-5, 10, (5,), 0.1)
    # StarGAN (Choi et al. 2018, section 3 and appendix A)
    assert (ours.n_critic, ours.width, ours.optimizer.betas) == (5, 64, (0.5, 0.999))
    assert (ours.loss.attributes, ours.loss.reconstruction, ours.loss.gradient_penalty) == (1, 10, 10)


def test_a_linear_decay_is_full_until_it_begins_and_ends_above_zero() -> None:
    phase = Phase(lr=1.0, epochs=20, linear=10)
    rates = [phase.lr_at(step, 4) for step in (0, 39, 40, 60, 79)]
    assert rates == pytest.approx([1.0, 1.0, 1.0, 0.5, 1 / 40])
    assert phase.scaled_to(4).linear == 2
    with pytest.raises(ValueError, match="linear: 21 epochs are more than the phase's 20"):
        Phase(lr=1.0, epochs=20, linear=21)


def test_a_warm_up_rises_from_above_zero_to_the_full_rate() -> None:
    phase = Phase(lr=1.0, epochs=4, warmup=1, linear=3)
    rates = [phase.lr_at(step, 4) for step in (0, 1, 3, 4, 10, 15)]
    assert rates == pytest.approx([1 / 4, 1 / 2, 1.0, 1.0, 1 / 2, 1 / 12])
    assert phase.scaled_to(2).warmup == 0.5
    with pytest.raises(ValueError, match="warmup: 5 epochs are more than the phase's 4"):
        Phase(lr=1.0, epochs=4, warmup=5)


def test_digits_trains_its_students_for_equally_many_epochs() -> None:
    ours = load("digits")
    assert ours.variants == ("scratch", "kd", "lit")
    assert (ours.teacher.model, ours.student.models[0].model) == ("resnet56", "resnet20")
    assert {sum(phase.epochs for phase in ours.plan(variant)) for variant in ours.variants} == {12}


@pytest.mark.parametrize("variant", ["lit", "hint", "one_ir_teacher_input", "multi_ir"])
def test_variants_with_an_ir_loss_go_through_the_lit_and_the_fine_tune_phase(variant: Any) -> None:
    plan = load("resnet-cifar10").plan(variant)
    assert [(phase.name, phase.epochs) for phase in plan] == [("lit", 175), ("finetune", 75)]


def test_each_milestone_divides_the_learning_rate_by_ten_at_its_epoch() -> None:
    lit = load("resnet-cifar10").plan("lit")[0]
    steps = 1407  # 45,000 images in batches of 32
    rates = [lit.lr_at(epoch * steps, steps) for epoch in (0, 59, 60, 99, 100, 124, 125, 174)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001])
    assert lit.lr_at(60 * steps - 1, steps) == 0.1


def test_vdcnns_lit_phase_halves_the_learning_rate_down_to_that_of_fine_tuning() -> None:
    lit, finetune = load("vdcnn-amazon-full").plan("lit")
    assert [lit.lr_at(epoch * 9, 9) for epoch in (0, 3, 6, 9, 12)] == pytest.approx([0.01 / 2**i for i in range(5)])
    assert lit.lr_at(14 * 9, 9) == pytest.approx(finetune.lr)


def test_eight_epochs_of_the_lit_schedule_are_six_and_two() -> None:
    lit, finetune = load("resnet-cifar10", "epochs=8").plan("lit")
    assert (lit.epochs, finetune.epochs) == (6, 2)
    assert lit.milestones == pytest.approx((60 * 6 / 175, 100 * 6 / 175, 125 * 6 / 175))
    assert finetune.milestones == pytest.approx((35 * 2 / 75, 55 * 2 / 75))
    assert (lit.lr, finetune.lr) == (0.1, 0.01)


@given(st.sampled_from(["digits", *PAPER]), st.sampled_from(["scratch", "kd", "lit", "hint"]), st.integers(1, 400))
def test_any_number_of_epochs_keeps_sum_order_and_proportions(name: str, variant: Any, epochs: int) -> None:
    full, short = load(name).plan(variant), load(name, f"epochs={epochs}").plan(variant)
    assert sum(phase.epochs for phase in short) == epochs
    total = sum(phase.epochs for phase in full)
    assert [phase.name for phase in short] == [phase.name for phase in full][: len(short)]
    for before, after in zip(full, short):
        assert abs(after.epochs - epochs * before.epochs / total) <= 1.0
        assert [m / after.epochs for m in after.milestones] == pytest.approx(
            [m / before.epochs for m in before.milestones]
        )
        rates = [after.lr_at(step, 10) for step in range(after.epochs * 10)]
        assert rates == sorted(rates, reverse=True)
        assert rates[0] == before.lr


def test_the_teachers_schedule_is_the_scratch_schedule_and_has_its_own_length() -> None:
    assert [p.epochs for p in load("resnet-cifar10").teacher_plan()] == [200]
    assert [p.epochs for p in load("resnet-cifar10", "epochs=8").teacher_plan()] == [8]
    both = load("resnet-cifar10", "epochs=8", "teacher.epochs=20")
    assert [p.epochs for p in both.teacher_plan()] == [20]
    assert sum(p.epochs for p in both.plan("lit")) == 8


def test_an_unknown_recipe_is_named_with_those_there_are() -> None:
    with pytest.raises(KeyError, match=r"unknown recipe 'vgg'.*digits, resnet-cifar10"):
        recipes.load("vgg")


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_begins_with_a_comment_that_says_what_it_is(name: str) -> None:
    assert recipes.text(name).startswith("# ")
