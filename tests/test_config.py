"""A config is validated whole before any work; overrides are parsed; what was resolved can be run again."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_fast.data import loaders
from lit_fast.errors import ConfigError
from lit_fast.literals import Precision
from lit_fast.settings.classifier import load_experiment
from lit_fast.settings.schedule import Phase
from lit_fast.settings.variants import VARIANTS, Variant
from lit_fast.step.lit_model import PRECISIONS


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# -- where values come from ----------------------------------------------------------------------------------------


def test_nothing_given_is_the_digits_recipe() -> None:
    assert load_experiment().recipe == "digits"
    assert load_experiment() == load_experiment("digits")


def test_a_file_goes_over_the_recipe_and_overrides_go_over_the_file_the_last_one_wins(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.yaml", "recipe: digits\nbatch_size: 64\nloss: {beta: 0.5, tau: 3.0}\n")
    ours = load_experiment(config=file, overrides=["loss.tau=4", {"loss": {"tau": 5.0}}])
    assert (ours.batch_size, ours.loss.beta, ours.loss.tau, ours.loss.alpha) == (64, 0.5, 5.0, 0.95)


def test_the_recipe_given_by_name_beats_the_one_in_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.yaml", "recipe: digits\ndata: {dir: /d}\n")
    assert load_experiment("resnet-cifar10", file).data.name == "cifar10"
    assert load_experiment(config=file).data.name == "digits"


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("batch_size=16", lambda e: e.batch_size, 16),
        ("data.augment=false", lambda e: e.data.augment, False),
        ("seeds=[1, 2]", lambda e: e.seeds, (1, 2)),
        ("student.models=resnet32", lambda e: [s.model for s in e.student.models], ["resnet32"]),
        (
            "student.models=[resnet44, resnet32]",
            lambda e: [s.label for s in e.student.models],
            ["resnet44", "resnet32"],
        ),
        (
            "student.models={model: resnext20, cardinality: 16}",
            lambda e: [s.label for s in e.student.models],
            ["resnext20-c16"],
        ),
        ("optimizer.weight_decay=5e-4", lambda e: e.optimizer.weight_decay, 5e-4),
        ("optimizer.clip_grad_norm=2", lambda e: e.optimizer.clip_grad_norm, 2.0),
        ("phases.lit.milestones=[2, 3.5]", lambda e: e.phases.lit.milestones, (2.0, 3.5)),
        ("data.dir=/a=b", lambda e: e.data.dir, Path("/a=b")),
        ("epochs=null", lambda e: e.epochs, None),
    ],
)
def test_an_override_is_a_dotted_key_and_a_yaml_value(override: str, get: Any, value: object) -> None:
    assert get(load_experiment(overrides=[override])) == value


@pytest.mark.parametrize("text", ["loss.beta", "=3", ""])
def test_an_override_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="key=value"):
        load_experiment(overrides=[text])


def test_an_override_that_is_not_yaml_is_refused() -> None:
    with pytest.raises(ConfigError, match="not YAML"):
        load_experiment(overrides=["seeds=[1"])


def test_the_recipe_cannot_be_overridden() -> None:
    with pytest.raises(ConfigError, match="--recipe"):
        load_experiment(overrides=["recipe=resnet-cifar10"])


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("betta=1", "betta: unknown key"),
        ("loss.betta=1", "loss.betta: unknown key"),
        ("phases.lit.rampup=3", "phases.lit.rampup: unknown key"),
        ("loss.beta=1.5", "loss.beta: .*less than or equal to 1.*1.5"),
        ("loss.alpha=-0.1", "loss.alpha: .*greater than or equal to 0"),
        ("loss.alpha=.nan", "loss.alpha"),
        ("loss.tau=0", "loss.tau: .*greater than 0"),
        ("loss.tau=.inf", "loss.tau: .*finite"),
        ("loss.ir=l3", "loss.ir: .*'l2', 'l1' or 'smooth_l1'"),
        ("loss.label_smoothing=1", "loss.label_smoothing"),
        ("batch_size=1", "batch_size"),
        ("batch_size=32.5", "batch_size"),
        ("epochs=0", "epochs"),
        ("optimizer.momentum=1", "optimizer.momentum"),
        ("optimizer.eps=1e-6", "optimizer: eps: sgd has none; leave it out"),
        ("optimizer={name: adamw, momentum: 0.9}", "optimizer: momentum: adamw has none"),
        ("optimizer.name=adam", "did you mean adamw?"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay"),
        ("{optimizer: 3}=1", "unknown key"),
        ("optimizer={momentum: 0, nesterov: true}", "nesterov needs momentum"),
        ("phases.lit.lr=0", "phases.lit.lr"),
        ("phases.lit.lr=.inf", "phases.lit.lr"),
        ("phases.lit.gamma=2", "phases.lit.gamma"),
        ("phases.lit.milestones=[5, 3]", "milestones must rise"),
        ("phases.lit.milestones=[99]", "milestone 99 lies after the phase's 8 epochs"),
        ("step.precision=fp64", "step.precision: .*'fp32', 'bf16' or 'fp16'"),
        ("step.bn_policy=none", "step.bn_policy"),
        ("variants=[lit, magic]", "variants"),
        ("variants=[]", "variants"),
        ("variants=[lit, lit]", "variants repeats an entry"),
        ("seeds=[1, 1]", "seeds repeats an entry"),
        ("teacher.model=vgg16", "unknown model 'vgg16'; known: resnet20"),
        ("teacher.cardinality=16", "cardinality is an option of ResNeXt"),
        ("teacher.checkpoint=/no/such.pt", "no such file: /no/such.pt"),
        ("student.models=[]", "student.models"),
        ("student.models=5", "expected a network's name"),
        ("student.models=null", "expected a network's name"),
        ("student.models=[resnet20, resnet20]", "named twice"),
        ("student.models=[{model: resnet20, depth: 3}]", "unknown key"),
        ("student.frozen_in_finetune=[section1]", "frozen_in_finetune names"),
        ("student.sequence=true", "variants must be .lit."),
        ("data.name=imagenet", "unknown dataset 'imagenet'; known: digits"),
        ("data.name=cifar10", "read from disk: give its folder"),
        ("data.val_size=0", "data.val_size"),
        ("data.std=[0.0]", "data.std"),
        ("data=3", "data"),
        ("checkpoint.every_seconds=0", "checkpoint.every_seconds"),
    ],
)
def test_an_impossible_value_is_refused_by_its_key(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_experiment(overrides=[override])


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(overrides=["loss.beta=2", "betta=1", "step.precision=fp8"])
    assert all(key in str(caught.value) for key in ("loss.beta", "betta", "step.precision"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("- 1\n- 2\n", "expected a mapping of keys at the top, got list"),
        ("loss: {beta: 0.5", "is not YAML"),
        ("\x00", "is not YAML"),
        ("recipe: nothing\n", "unknown recipe 'nothing'"),
        ("recipe: digits\nbetta: 1\n", "betta: unknown key"),
        ("batch_size: 64\n", "name the recipe it starts from"),
        ("recipe: digits\nseeds: !!python/object/apply:os.getcwd []\n", "is not YAML"),
    ],
)
def test_a_file_that_is_no_config_is_refused(content: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        load_experiment(config=write(tmp_path / "bad.yaml", content))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load_experiment(config=tmp_path / "none.yaml")


KEYS = [
    *("data", "data.name", "data.mean", "teacher", "teacher.model", "teacher.epochs", "student", "student.models"),
    *("student.copied", "variants", "seeds", "batch_size", "epochs", "loss", "loss.tau", "loss.section_weights"),
    *("phases", "phases.lit", "phases.lit.milestones", "phases.lit.epochs", "step", "step.device", "logging.every"),
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(KEYS), VALUES)
def test_whatever_a_key_is_given_the_answer_is_an_experiment_or_a_config_error(key: str, value: Any) -> None:
    tree = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    with contextlib.suppress(ConfigError):  # any other error would be a traceback on the user's terminal
        load_experiment(overrides=[tree])


# -- identity ------------------------------------------------------------------------------------------------------


def test_the_resolved_config_gives_the_same_experiment_again(tmp_path: Path) -> None:
    ours = load_experiment(
        "resnext-cardinality16-cifar10", overrides=["data.dir=/d", "epochs=7", "loss.section_weights=[1, 2, 3]"]
    )
    assert load_experiment(config=write(tmp_path / "resolved.yaml", ours.to_yaml())) == ours


def test_only_what_can_change_a_result_is_identity() -> None:
    ours = load_experiment("resnet-cifar10", overrides=["data.dir=/a"])
    same = [
        "data.dir=/b",
        "logging.every=7",
        "logging.tensorboard=false",
        "checkpoint.every_seconds=5",
        "data.loader=torch",
    ]
    other = ["data.dir=/a", "data.val_seed=1"]
    assert load_experiment("resnet-cifar10", overrides=same).identity() == ours.identity()
    assert load_experiment("resnet-cifar10", overrides=other).identity() != ours.identity()


def test_every_variant_and_precision_of_the_code_can_be_chosen() -> None:
    assert get_args(Variant) == tuple(VARIANTS)
    assert get_args(Precision) == tuple(PRECISIONS)


def test_every_loader_can_be_chosen() -> None:
    for name in loaders.NAMES:
        assert load_experiment(overrides=[f"data.loader={name}"]).data.loader == name
    with pytest.raises(ConfigError, match=r"data\.loader"):
        load_experiment(overrides=["data.loader=fast"])


def test_an_experiment_cannot_be_changed_once_made() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_experiment().batch_size = 3  # type: ignore[misc]


# -- schedule ------------------------------------------------------------------------------------------------------


def test_a_milestone_between_two_epochs_falls_on_the_nearest_step() -> None:
    phase = Phase(lr=1.0, epochs=2, milestones=(0.5,), gamma=0.5)
    assert [phase.lr_at(step, 4) for step in range(8)] == [1.0, 1.0, *[0.5] * 6]


def test_a_scaled_phase_keeps_its_rates_and_moves_its_milestones() -> None:
    phase = Phase(lr=0.1, epochs=100, milestones=(50, 75)).scaled_to(10)
    assert (phase.lr, phase.epochs, phase.milestones, phase.gamma) == (0.1, 10, (5.0, 7.5), 0.1)
