"""Search of tau, alpha and beta: what it tries and chooses, that it goes on, that the test split is left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_cli import lit_fast_command, refused
from training_helpers import quiet, tiny

from lit_fast.errors import ConfigError, Interrupted, NonFiniteLoss
from lit_fast.paper.search import run as searching
from lit_fast.paper.search.plot import draw
from lit_fast.paper.search.run import Space, joint, sequential
from lit_fast.settings.classifier import Experiment
from lit_fast.training import experiment as experiments
from lit_fast.training.run import Run

SPACE = Space(tau=(1.0, 4.0, 8.0), alpha=(0.5, 0.9), beta=(0.25, 0.75))


class Pretended:
    """In place of training: accuracy as a function of the loss's settings. Best: tau 4, alpha 0.9, beta 0.25."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> None:
        self.asked: list[tuple[str, float, float, float]] = []
        self.seen: list[tuple[str, float, float, float]] = []
        self.stop_after = stop_after
        monkeypatch.setattr(searching, "run_experiment", self)
        monkeypatch.setattr(searching._Trials, "_with_teacher", lambda self, experiment: experiment)

    def __call__(self, experiment: Experiment, folder: Path, **options: Any) -> list[dict[str, Any]]:
        assert options["score_test"] is False
        loss = experiment.loss
        self.asked.append((experiment.variants[0], loss.tau, loss.alpha, loss.beta))
        if self.stop_after is not None and len(self.seen) == self.stop_after:
            raise Interrupted("stopped")
        self.seen.append(self.asked[-1])
        if loss.tau == 8.0:
            raise NonFiniteLoss("too hot")
        value = 90 - abs(loss.tau - 4) - 10 * abs(loss.alpha - 0.9) - 10 * abs(loss.beta - 0.25)
        return [{"role": "teacher"}, {"role": "student", "accuracy": {"val_best": value}}]


@pytest.mark.usefixtures("drawn")
def test_the_stages_follow_each_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretended = Pretended(monkeypatch)
    found = sequential(tiny("loss.alpha=0.7", "loss.beta=0.6"), tmp_path, SPACE, console=quiet())
    assert found.best == {"tau": 4.0, "alpha": 0.9, "beta": 0.25}
    assert found.accuracy == pytest.approx(90)
    assert pretended.seen == [
        ("kd", 1.0, 0.7, 0.6),
        ("kd", 4.0, 0.7, 0.6),
        ("kd", 8.0, 0.7, 0.6),  # diverges: no choice
        ("kd", 4.0, 0.5, 0.6),
        ("kd", 4.0, 0.9, 0.6),
        ("lit", 4.0, 0.9, 0.25),
        ("lit", 4.0, 0.9, 0.75),
    ]
    content = json.loads(found.path.read_text())
    assert [row["stage"] for row in content["trials"]] == ["tau"] * 3 + ["alpha"] * 2 + ["beta"] * 2
    assert content["best"] == found.best
    assert draw(found.path).read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("drawn")
def test_a_joint_search_goes_on_to_its_number_of_trials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="Optuna is not installed: pip install 'lit_fast[search]'")
    pretended = Pretended(monkeypatch, stop_after=3)
    with pytest.raises(Interrupted):
        joint(tiny(), tmp_path, SPACE, count=6, console=quiet())
    stopped = tuple(pretended.asked[-1])
    pretended.stop_after = None
    found = joint(tiny(), tmp_path, SPACE, count=6, console=quiet())
    assert len(pretended.seen) == len(set(pretended.seen)) == 6
    assert pretended.seen[3] == stopped  # the trial that was stopped goes on first
    content = json.loads(found.path.read_text())
    assert len(content["trials"]) == 6
    assert found.accuracy == max(row["val_accuracy"] for row in content["trials"])
    assert all(1 <= row["tau"] <= 8 and 0.5 <= row["alpha"] <= 0.9 for row in content["trials"])
    assert draw(found.path).read_bytes().startswith(b"\x89PNG")
    joint(tiny(), tmp_path, SPACE, count=6, console=quiet())
    assert len(pretended.seen) == 6  # all had been done


def test_a_real_search_leaves_the_test_split_alone_and_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    real = experiments.ClassifierTask.scores
    monkeypatch.setattr(
        experiments.ClassifierTask, "scores", lambda self, split: (asked.append(split), real(self, split))[1]
    )
    accuracy = experiments.Session._scores
    monkeypatch.setattr(
        experiments.Session,
        "_scores",
        lambda self, model, split: (asked.append(split), accuracy(self, model, split))[1],
    )
    base = tiny("epochs=1", "teacher.epochs=6", "data.train_size=200", "step.engine=eager")
    space = Space(tau=(4.0,), alpha=(0.9,), beta=(0.5, 0.75))
    found = sequential(base, tmp_path, space, console=quiet())
    assert set(asked) == {"val"}
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 4  # a candidate of tau, one of alpha, two of beta
    for folder in folders:
        for result in json.loads((folder / "results.json").read_text())["results"]:
            assert result["accuracy"]["test_last"] is None
    monkeypatch.setattr(Run, "run", lambda self: pytest.fail("trained again"))
    again = sequential(base, tmp_path, space, console=quiet())
    assert again == found


@pytest.mark.parametrize(
    ("space", "overrides", "message"),
    [
        (Space(tau=(0.0,)), (), r"tau: expected values > 0, got \[0.0\]"),
        (Space(alpha=(0.5, 1.5)), (), r"alpha: expected 0..1, got \[1.5\]"),
        (Space(beta=()), (), r"beta: expected different values, got \[\]"),
        (Space(beta=(0.5, 0.5)), (), "beta: expected different values"),
        (Space(), ("student.models=[resnet20, resnet32]",), "a search trains one student"),
    ],
)
def test_what_cannot_be_searched_is_named(tmp_path: Path, space: Space, overrides: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sequential(tiny(*overrides), tmp_path, space, console=quiet())


def test_the_command_prints_what_it_chose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Pretended(monkeypatch)
    values = ["--tau", "1,4", "--alpha", "0.5,0.9", "--beta", "0.25,0.75"]
    result = lit_fast_command("search", "--recipe", "digits", *values, "--run-dir", tmp_path / "search")
    assert result.exit_code == 0, result.output
    assert "chosen: alpha 0.9, beta 0.25, tau 4; validation accuracy 90.00 %" in result.output
    assert "lit-fast distill --set loss.alpha=0.9 --set loss.beta=0.25 --set loss.tau=4 ..." in result.output
    assert (tmp_path / "search" / "sequential.png").is_file()
    assert "--tau: expected numbers" in refused("search", "--tau", "hot")
    assert "alpha: expected 0..1" in refused("search", "--alpha", "2", "--run-dir", tmp_path / "other")
