"""The study of generators: the paper's table 2, and what is told where its scores cannot be held against ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake_celeba
import pytest
import torch
from everyday import exhaustive
from test_cli import lit_fast_command, refused
from training_helpers import quiet

from lit_fast.data.formats.celeba import TEST_SIZE
from lit_fast.errors import ConfigError, Interrupted
from lit_fast.gan import experiment as experiments
from lit_fast.paper.budgets import GAN_BUDGETS
from lit_fast.paper.gan import head, lines
from lit_fast.paper.identity import digest
from lit_fast.paper.plan import GanScores, Planned, Study, load_study, plan
from lit_fast.paper.report import write_report
from lit_fast.paper.run import run_study
from lit_fast.settings.classifier import load_any_experiment
from lit_fast.settings.gan import GanExperiment
from lit_fast.training.run import Run

STUDY = load_study("stargan")
SMOKE = ("smoke", GAN_BUDGETS["smoke"])
GROUP = STUDY.groups[0].name
SMALL = ("data.crop=22", "data.train_size=16", "data.val_size=4", "batch_size=8", "epochs=2")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_celeba.write(tmp_path_factory.mktemp("celeba"))


def planned(faces: Path, budget: str = "smoke", **options: Any) -> list[Planned]:
    return plan(STUDY, GAN_BUDGETS[budget], **{"data_dir": faces, "overrides": SMALL, **options})


# -- planning ----------------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_paper() -> None:
    (group,) = STUDY.groups
    assert group.paper_teacher == GanScores(inception_score=3.49, fid=6.43)
    assert {arm.name: arm.paper for arm in group.arms} == {
        "LIT": GanScores(inception_score=3.56, fid=5.84),
        "from scratch": GanScores(inception_score=3.37, fid=6.56),
    }


def test_the_paper_s_budget_is_the_recipe(tmp_path: Path) -> None:
    runs = planned(tmp_path, "paper", overrides=())
    assert [(run.variant, run.seed) for run in runs] == [(v, s) for s in range(3) for v in ("lit", "scratch")]
    lit, scratch = runs[0].experiment, runs[1].experiment
    assert isinstance(lit, GanExperiment)
    assert isinstance(scratch, GanExperiment)
    assert [(phase.name, phase.epochs, phase.lr) for phase in lit.plan("lit")] == [
        ("lit", 16, 1e-4),
        ("finetune", 10, 5e-5),
    ]
    assert [(phase.epochs, phase.lr) for phase in scratch.plan("scratch")] == [(20, 1e-4)]
    assert (lit.teacher.model, lit.student.models, lit.width) == ("stargan6", ("stargan2",), 64)
    assert head(STUDY, runs)["unlike_paper"] == []


def test_the_cpu_s_budget_is_that_of_the_short_run_in_the_docs(tmp_path: Path) -> None:
    file = Path(__file__).resolve().parents[1] / "docs" / "results" / "stargan-short" / "config.yaml"
    ours = planned(tmp_path, "cpu", overrides=())[0].experiment.identity()
    theirs = load_any_experiment(None, file, [{"data": {"dir": tmp_path}}]).identity()
    assert {key for key in ours if ours[key] != theirs[key]} == {"variants"}


def test_arms_and_seeds_share_a_teacher_and_nothing_else(tmp_path: Path) -> None:
    runs = planned(tmp_path, seeds=2)
    assert len({digest(run.teacher) for run in runs if run.teacher}) == 1
    assert len({digest(run.experiment) for run in runs}) == len(runs) == 4


def test_a_teacher_knows_nothing_of_its_students(tmp_path: Path) -> None:
    """Its run folder is shared by studies whose students differ."""
    settings = ("loss.ir=l1", "phases.lit.lr=1", "discriminator_in_finetune=fixed", "variants=[lit]")
    one = planned(tmp_path)[0].teacher
    assert [planned(tmp_path, overrides=[*SMALL, setting])[0].teacher for setting in settings] == [one] * 4
    other = planned(tmp_path, overrides=[*SMALL, "loss.reconstruction=1"])[0].teacher
    assert one is not None
    assert other is not None
    assert digest(one) != digest(other)


def test_a_given_teacher_brings_its_discriminator(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("generator", "discriminator", "other")]
    for file in files:
        file.write_bytes(file.name.encode())
    given = ("stargan6", files[0])
    with pytest.raises(ConfigError, match="checkpoint and discriminator belong together"):
        planned(tmp_path, teacher=given)
    one, other = (
        planned(tmp_path, teacher=given, overrides=[*SMALL, f"teacher.discriminator={file}"])[0] for file in files[1:]
    )
    settings = [f"teacher.checkpoint={files[0]}", f"teacher.discriminator={files[1]}"]
    assert planned(tmp_path, overrides=[*SMALL, *settings])[0] == one
    assert one.teacher is None
    assert digest(one.experiment) != digest(other.experiment)


def study_of(**changes: Any) -> Study:
    group = {"name": "a", "recipe": "stargan-celeba", "arms": [{"name": "b"}], **changes}
    return Study.model_validate({"title": "Own", "source": "here", "groups": [group]})


def test_what_cannot_be_planned_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"faces are read from disk: give CelebA's folder, data.dir=DIR or --data-dir"
    ):
        planned(tmp_path, data_dir=None)
    with pytest.raises(ConfigError, match="no group of the study has a teacher of the family resnet"):
        planned(tmp_path, only="resnet")
    assert len(planned(tmp_path, only="stargan")) == 2
    with pytest.raises(ValueError, match=r"group 'a': the paper's number: expected \{inception_score: ..., fid: ...\}"):
        study_of(arms=[{"name": "b", "paper": 93.25}])
    with pytest.raises(ValueError, match=r"group 'a': the paper's number: expected an accuracy in %"):
        study_of(recipe="digits", paper_teacher={"inception_score": 3.0, "fid": 6.0})
    with pytest.raises(ValueError, match="unknown recipe 'nothing'"):
        study_of(recipe="nothing")
    mixed = [{"name": name, "recipe": name, "arms": [{"name": "b"}]} for name in ("digits", "stargan-celeba")]
    with pytest.raises(
        ValueError, match=r"group 'stargan-celeba' has recipe stargan-celeba, of task gan, .*two studies"
    ):
        Study.model_validate({"title": "Own", "source": "here", "groups": mixed})


# -- running -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, run with the budget smoke."""
    path = tmp_path_factory.mktemp("studies")
    run_study("stargan", STUDY, SMOKE, planned(faces), path, console=quiet())
    return path


def content(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "stargan-smoke.json").read_text())
    return found


def test_the_study_leaves_its_results(folder: Path) -> None:
    assert [(run["arm"], run["status"]) for run in content(folder)["runs"]] == [
        ("LIT", "done"),
        ("from scratch", "done"),
    ]
    (trained,) = (folder / "teachers").iterdir()
    (teacher,) = json.loads((trained / "results.json").read_text())["results"]
    for run in content(folder)["runs"]:
        own = json.loads((folder / "runs" / run["folder"] / "results.json").read_text())
        assert [result["role"] for result in own["results"]] == ["teacher", "student"]
        assert run["scores"] == own["results"][1]["scores"]
        assert run["teacher"] == {"network": "stargan6", "scores": own["results"][0]["scores"]}
        assert run["teacher"]["scores"] == teacher["scores"]  # the same teacher, from its files
        assert run["test_images"] == 4


def test_what_has_been_run_is_neither_trained_nor_scored_again(
    faces: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **options: Any) -> None:
        pytest.fail("again")

    monkeypatch.setattr(Run, "run", never)
    monkeypatch.setattr(experiments, "compare", never)
    before = content(folder)
    run_study("stargan", STUDY, SMOKE, planned(faces), folder, console=quiet())
    assert content(folder) == before


def test_an_interrupted_study_goes_on(
    faces: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Run._end_epoch, []

    def interrupted(self: Run, phase: Any) -> None:
        calls.append(self.spec.name)
        if len(calls) == 3:  # the first epoch after the teacher's two
            self.signals.requested = "SIGINT"
        real(self, phase)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_end_epoch", interrupted)
        with pytest.raises(Interrupted):
            run_study("stargan", STUDY, SMOKE, planned(faces), tmp_path, console=quiet())
    assert [run["status"] for run in content(tmp_path)["runs"]] == ["not run", "not run"]
    trained = []
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_end_epoch", lambda self, phase: trained.append(self.spec.variant) or real(self, phase))
        run_study("stargan", STUDY, SMOKE, planned(faces), tmp_path, console=quiet())
    assert "scratch" in trained
    assert [run["scores"] for run in content(tmp_path)["runs"]] == [run["scores"] for run in content(folder)["runs"]]


@exhaustive
def test_several_processes_give_the_same(faces: Path, folder: Path, tmp_path: Path) -> None:
    run_study("stargan", STUDY, SMOKE, planned(faces), tmp_path, jobs=2, console=quiet())
    assert [run["scores"] for run in content(tmp_path)["runs"]] == [run["scores"] for run in content(folder)["runs"]]


def test_the_command_runs_the_study_and_prints_its_table(faces: Path, folder: Path) -> None:
    settings = [word for setting in SMALL for word in ("--set", setting)]
    where = ["--data-dir", faces, "--run-dir", folder]
    result = lit_fast_command("reproduce", "stargan", "--only", "stargan", *where, *settings)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("StarGAN (paper, table 2): 2 runs, budget smoke: faces of 16 x 16 pixels")
    assert (folder / "stargan-smoke.md").is_file()
    assert "give CelebA's folder" in refused("reproduce", "stargan", "--run-dir", folder)


# -- the report --------------------------------------------------------------------------------------------------------


def run(arm: str = "LIT", seed: int = 0, fid: float | None = None, *, done: bool = True) -> dict[str, Any]:
    """An entry of a results file; the inception score is half the FID."""
    papers = {one.name: one.paper.model_dump() for one in STUDY.groups[0].arms if isinstance(one.paper, GanScores)}
    found: dict[str, Any] = {"group": GROUP, "arm": arm, "network": "stargan2", "variant": arm.lower(), "seed": seed}
    found |= {"paper": papers[arm], "status": "not run"}
    if done:
        measured = {"inception_score": None if fid is None else fid / 2, "fid": fid}
        scores = {"attributes": 75.0 + seed, "reconstruction": 0.25, **measured}
        teacher = {"network": "stargan6", "scores": {**scores, "teacher_l1": None}}
        found |= {"status": "done", "scores": {**scores, "teacher_l1": 0.125}, "teacher": teacher}
        found |= {"test_images": TEST_SIZE}
    return found


def written(path: Path, *runs: dict[str, Any], **changes: Any) -> Path:
    content = {
        "study": "stargan",
        "title": STUDY.title,
        "source": STUDY.source,
        "task": "gan",
        "axis": None,
        "budget": {"name": "paper", **GAN_BUDGETS["paper"].model_dump()},
        "dataset": ["celeba"],
        "environment": {"device": "cpu", "torch": torch.__version__},
        **head(STUDY, []),
        "runs": list(runs),
        **changes,
    }
    path.write_text(json.dumps(content))
    return path


def test_the_table_has_both_metrics_beside_the_paper_s(tmp_path: Path) -> None:
    runs = [run(fid=6.0), run(seed=1, fid=8.0), run("from scratch", done=False)]
    report = write_report(written(tmp_path / "one.json", *runs))
    text = report.markdown.read_text()
    assert "| teacher | stargan6 | - | 3.49 | 3.00 | 6.43 | 6.00 | 75.0 | 0.2500 | - | 1 |" in text
    assert (
        "| LIT | stargan2 | lit | 3.56 | 3.50±0.71 | 5.84 | 7.00±1.41 | 75.5±0.7 | 0.2500±0.0000 | 0.1250±0.0000 | 2 |"
    ) in text
    assert "| from scratch | stargan2 | from scratch | 3.37 | not run | 6.56 | - | - | - | - | 0 of 1 |" in text
    assert "the paper's tool is another" not in text
    assert "of another tool" in text
    assert report.figure is not None
    assert report.figure.read_bytes().startswith(b"\x89PNG")


def test_without_inception_the_other_scores_are_shown(tmp_path: Path) -> None:
    report = write_report(written(tmp_path / "one.json", run()))
    text = report.markdown.read_text()
    assert "| LIT | stargan2 | lit | 3.56 | - | 5.84 | - | 75.0 | 0.2500 | 0.1250 | 1 |" in text
    assert "Inception score and FID have not been measured" in text
    assert report.figure is not None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"unlike_paper": ["width=8"]}, "width=8"),
        ({"runs": [{**run(fid=6.0), "test_images": 500}]}, "500 test images in place of 2,000"),
    ],
)
def test_other_data_and_networks_are_not_held_against_the_paper(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    path = written(tmp_path / "one.json", run(fid=6.0), **changes)
    assert all(not line.paper for line in lines(json.loads(path.read_text())))
    text = write_report(path).markdown.read_text()
    assert f"**Not the paper's data or networks ({named}): its numbers are left out.**" in text
    assert "3.56" not in text


def test_a_study_without_results_is_rendered(tmp_path: Path) -> None:
    report = write_report(written(tmp_path / "one.json", run(done=False)))
    assert "| teacher | - | - | 3.49 | not run | 6.43 | - | - | - | - | 0 of 1 |" in report.markdown.read_text()
    assert (report.figure, report.note) == (None, "no figure: no run has ended")
    diverged = {**run(done=False), "status": "diverged: the loss is NaN"}
    assert "diverged: the loss is NaN" in write_report(written(tmp_path / "one.json", diverged)).text
