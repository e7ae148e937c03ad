"""Studies: what they plan, that runs are shared and resumed, and what the report says."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from everyday import exhaustive
from test_cli import lit_fast_command, refused
from training_helpers import quiet

from lit_fast.errors import ConfigError, Interrupted, NonFiniteLoss, StudyFailed
from lit_fast.paper import run as running
from lit_fast.paper import studies
from lit_fast.paper.budgets import BUDGETS, Budget, budgets
from lit_fast.paper.identity import digest
from lit_fast.paper.plan import Planned, Study, load_study, plan
from lit_fast.paper.report import lines, write_report
from lit_fast.paper.run import run_study
from lit_fast.training.run import Run

SMALL = ("epochs=1", "teacher.epochs=5", "data.train_size=200", "data.val_size=60", "step.engine=eager")
SMOKE = ("smoke", BUDGETS["smoke"])


def small_study(*arms: dict[str, Any]) -> Study:
    chosen = arms or ({"name": "l2"}, {"name": "l1", "set": {"loss": {"ir": "l1"}}})
    return Study.model_validate(
        {
            "title": "A study",
            "source": "nowhere",
            "groups": [{"name": "small", "recipe": "resnet-cifar10", "arms": list(chosen)}],
        }
    )


def planned(study: Study, **options: Any) -> list[Planned]:
    return plan(study, BUDGETS["smoke"], **{"overrides": SMALL, **options})


# -- planning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", studies.names())
@pytest.mark.parametrize("budget", list(BUDGETS))
def test_every_study_can_be_planned_in_every_budget(name: str, budget: str, tmp_path: Path) -> None:
    study = load_study(name)
    chosen = budgets(study.task)[budget]
    if not study.smoke and budget == "smoke":
        with pytest.raises(ConfigError, match="there is no budget smoke"):
            plan(study, chosen)
        return
    runs = plan(study, chosen, data_dir=tmp_path)
    assert {run.group for run in runs} == {group.name for group in study.groups}
    assert len({(run.group, run.arm.name, run.network, run.variant, run.seed) for run in runs}) == len(runs)
    assert {run.seed for run in runs} == set(range(chosen.seeds))
    data = {run.experiment.data.name for run in runs}
    assert (data == {"digits"}) == (budget == "smoke" and study.task == "classifier")
    assert all(len(run.experiment.variants) == 1 and len(run.experiment.seeds) == 1 for run in runs)


def test_a_sequence_is_one_run(tmp_path: Path) -> None:
    runs = plan(load_study("text"), BUDGETS["short"], data_dir=tmp_path)
    (chained,) = (run for run in runs if run.experiment.student.sequence and "full" in run.group)
    assert [model.model for model in chained.experiment.student.models] == ["vdcnn17", "vdcnn9"]
    assert chained.network == "vdcnn9"
    alone = [run.network for run in runs if run.arm.name == "LIT" and "full" in run.group]
    assert alone == ["vdcnn17", "vdcnn9"]


def test_the_paper_s_budget_is_the_recipe(tmp_path: Path) -> None:
    first = plan(load_study("ablation"), BUDGETS["paper"], data_dir=tmp_path)[0].experiment
    assert [(phase.name, phase.epochs, phase.lr) for phase in first.plan("lit")] == [
        ("lit", 175, 0.1),
        ("finetune", 75, 0.01),
    ]
    assert (first.teacher.model, first.student.models[0].model, first.loss.beta) == ("resnet110", "resnet20", 0.75)
    assert first.data.dir == tmp_path


def test_the_numbers_of_table_3_are_those_of_the_paper() -> None:
    papers = {arm.name: arm.paper for arm in load_study("ablation").groups[0].arms}
    assert papers["LIT"] == 93.25
    assert papers["all IRs, own input"] == 90.42
    assert papers["from scratch"] is None


def test_arms_share_the_teacher_of_their_group_whatever_they_set() -> None:
    runs = planned(load_study("precision"), only="resnet")
    assert {run.experiment.step.precision for run in runs} == {"fp32", "fp16"}
    assert len({digest(run.teacher) for run in runs if run.teacher}) == 1
    assert len({digest(run.experiment) for run in runs}) == len(runs)


def test_a_teacher_knows_nothing_of_its_students() -> None:
    """Its run folder, which refuses another experiment, is shared by studies whose students differ."""
    teachers = [
        planned(small_study(), overrides=[*SMALL, setting])[0].teacher
        for setting in ("loss.tau=4", "phases.lit.lr=1", "student.models=[resnet32]", "variants=[scratch]")
    ]
    assert teachers == [planned(small_study())[0].teacher] * 4


def test_studies_share_runs() -> None:
    by_study = [
        {digest(run.experiment) for run in planned(load_study(name), only="resnet")} for name in ("ablation", "ir-loss")
    ]
    assert len(by_study[0] & by_study[1]) == 1  # LIT with l2
    more = {digest(run.experiment) for run in planned(load_study("ir-loss"), only="resnet", seeds=2)}
    assert by_study[1] < more


def test_where_a_run_is_computed_is_no_part_of_it() -> None:
    here, there = (
        planned(small_study(), overrides=[*SMALL, f"step.device={device}"])[0].experiment
        for device in ("cpu", "cuda:1")
    )
    assert digest(here) == digest(there)


def test_a_given_teacher_is_for_its_family_alone(tmp_path: Path) -> None:
    weights = tmp_path / "r56.th"
    weights.write_bytes(b"weights")
    runs = planned(load_study("ablation"), teacher=("resnet56", weights))
    for run in runs:
        if run.group.startswith("ResNet-"):
            assert (run.experiment.teacher.model, run.experiment.teacher.checkpoint) == ("resnet56", weights)
            assert run.teacher is None
        else:
            assert run.experiment.teacher.checkpoint is None
            assert run.teacher is not None


def test_a_study_may_be_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("title: Own\nsource: here\ngroups: [{name: a, recipe: digits, arms: [{name: b, sets: {}}]}]\n")
    with pytest.raises(ConfigError, match=r"groups.0.arms.0.sets"):
        load_study(str(path))
    path.write_text(path.read_text().replace("sets", "set"))
    assert load_study(str(path)).groups[0].arms[0].name == "b"
    with pytest.raises(ConfigError, match=r"cannot read the config .*gone.yaml"):
        load_study(str(tmp_path / "gone.yaml"))


def test_what_cannot_be_planned_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown study 'nothing'; known: ablation, "):
        load_study("nothing")
    with pytest.raises(ConfigError, match="seeds: expected at least 1, got 0"):
        planned(small_study(), seeds=0)
    with pytest.raises(ConfigError, match="no group of the study has a teacher of the family vdcnn"):
        planned(small_study(), only="vdcnn")
    with pytest.raises(ConfigError, match="give its folder"):
        plan(small_study(), BUDGETS["short"])


# -- running -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two arms that has been run."""
    path = tmp_path_factory.mktemp("studies")
    run_study("small", small_study(), SMOKE, planned(small_study()), path, console=quiet())
    return path


@pytest.fixture
def taught(folder: Path, tmp_path: Path) -> Path:
    """A folder of studies that has the teacher of `folder`, and nothing else yet."""
    shutil.copytree(folder / "teachers", tmp_path / "teachers")
    return tmp_path


def test_a_study_leaves_its_results(folder: Path) -> None:
    content = json.loads((folder / "small-smoke.json").read_text())
    assert [run["status"] for run in content["runs"]] == ["done", "done"]
    for run in content["runs"]:
        own = json.loads((folder / "runs" / run["folder"] / "results.json").read_text())
        assert run["accuracy"] == own["results"][-1]["accuracy"]
        assert run["teacher"]["network"] == "resnet32"
        assert own["experiment"]["loss"]["ir"] == run["arm"]
    assert len(list((folder / "teachers").iterdir())) == 1


def test_what_has_been_run_is_not_run_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "run", lambda self: pytest.fail("trained again"))
    before = json.loads((folder / "small-smoke.json").read_text())
    run_study("small", small_study(), SMOKE, planned(small_study()), folder, console=quiet())
    assert json.loads((folder / "small-smoke.json").read_text()) == before


def test_an_interrupted_study_goes_on(folder: Path, taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = Run.run, []

    def interrupted(self: Any) -> Any:
        calls.append(self.spec.name)
        if len(calls) == 2:  # the first arm, then this one
            raise Interrupted("stopped")
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "run", interrupted)
        with pytest.raises(Interrupted):
            run_study("small", small_study(), SMOKE, planned(small_study()), taught, console=quiet())
    half = json.loads((taught / "small-smoke.json").read_text())
    assert [run["status"] for run in half["runs"]] == ["done", "not run"]
    assert [line.done for line in lines(half)] == [1, 0]
    run_study("small", small_study(), SMOKE, planned(small_study()), taught, console=quiet())
    whole = json.loads((folder / "small-smoke.json").read_text())
    again = json.loads((taught / "small-smoke.json").read_text())
    assert [run["accuracy"] for run in again["runs"]] == [run["accuracy"] for run in whole["runs"]]


def test_a_run_that_diverges_is_told_and_the_others_go_on(taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Run.run

    def diverging(self: Any) -> Any:
        if self.settings.loss.ir == "l2" and self.spec.variant == "lit":
            raise NonFiniteLoss("the loss is NaN")
        return real(self)

    monkeypatch.setattr(Run, "run", diverging)
    path = run_study("small", small_study(), SMOKE, planned(small_study()), taught, console=quiet())
    assert [run["status"] for run in json.loads(path.read_text())["runs"]] == ["diverged: the loss is NaN", "done"]
    assert "diverged: the loss is NaN" in write_report(path).text


@exhaustive
def test_several_processes_give_the_same(folder: Path, tmp_path: Path) -> None:
    path = run_study("small", small_study(), SMOKE, planned(small_study()), tmp_path, jobs=2, console=quiet())
    whole = json.loads((folder / "small-smoke.json").read_text())
    assert [run["accuracy"] for run in json.loads(path.read_text())["runs"]] == [
        run["accuracy"] for run in whole["runs"]
    ]


def test_a_process_that_fails_is_named(taught: Path) -> None:
    broken = planned(small_study({"name": "broken", "set": {"loss": {"section_weights": [1.0]}}}))
    with pytest.raises(StudyFailed, match=r"1 of 1 runs failed; the first failed with status 2: see .*log"):
        run_study("small", small_study(), SMOKE, broken, taught, jobs=2, console=quiet())
    assert "section_weights" in next((taught / "runs").glob("*.log")).read_text()


def test_runs_that_end_together_are_written_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "r32.th"
    weights.write_bytes(b"weights")
    runs = planned(load_study("ablation"), teacher=("resnet32", weights), only="resnet")
    writing, write = threading.Lock(), running.write_json

    def alone(path: Path, tree: Any) -> None:
        assert writing.acquire(blocking=False), "two runs write the results file at the same time"
        time.sleep(0.02)
        write(path, tree)
        writing.release()

    monkeypatch.setattr(running, "write_json", alone)
    monkeypatch.setattr(running.subprocess, "run", lambda *args, **options: subprocess.CompletedProcess((), 2))
    with pytest.raises(StudyFailed, match="6 of 6 runs failed"):
        run_study("ablation", load_study("ablation"), SMOKE, runs, tmp_path, jobs=6, console=quiet())


# -- the report --------------------------------------------------------------------------------------------------------


def content(*runs: dict[str, Any], **changes: Any) -> dict[str, Any]:
    budget = {"name": "paper", **Budget(about="everything", seeds=2).model_dump()}
    return {
        "study": "one",
        "title": "A study",
        "source": "table 9",
        "axis": None,
        "budget": budget,
        "dataset": ["cifar10"],
        "environment": {"device": "cpu", "torch": torch.__version__},
        "runs": list(runs),
        **changes,
    }


def run(arm: str = "LIT", seed: int = 0, accuracy: float | None = None, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"group": "ResNet", "arm": arm, "at": None, "paper": 93.0, "paper_deviation": 0.1}
    found |= {"network": "resnet20", "variant": "lit", "seed": seed, "status": "not run"}
    if accuracy is not None:
        tests = {"test_last": accuracy, "test_best": accuracy + 0.5}
        teacher = {"network": "resnet110", "accuracy": {"test_last": 93.7}}
        found |= {"status": "done", "parameters": 270_000, "accuracy": tests, "teacher": teacher}
    return {**found, **changes}


@pytest.mark.usefixtures("drawn")
def test_the_table_has_means_deviations_and_what_was_not_run(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(content(run(accuracy=92.0), run(seed=1, accuracy=93.0), run("KD", paper=None))))
    report = write_report(path)
    text = report.markdown.read_text()
    assert "| LIT | resnet20 | lit | 93.00±0.10 | 92.50±0.71 | 93.00±0.71 | 2 | -0.50 |" in text
    assert "| KD | resnet20 | lit | - | not run | - | 0 of 1 | - |" in text
    assert "- ResNet: resnet110, 93.70 % on the test split" in text
    assert report.figure is not None
    assert report.figure.read_bytes().startswith(b"\x89PNG")


def test_another_dataset_is_not_held_against_the_paper(tmp_path: Path) -> None:
    budget = {"name": "smoke", **BUDGETS["smoke"].model_dump(mode="json")}
    (line,) = lines(content(run(accuracy=60.0), budget=budget))
    assert line.paper is None
    assert line.difference is None


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("runs", [[run(at=0.5, accuracy=60.0), run("b", at=1.0, accuracy=61.0)], []])
def test_sweeps_and_studies_without_results_are_rendered(tmp_path: Path, runs: list[dict[str, Any]]) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(content(*runs, axis="alpha")))
    report = write_report(path)
    assert (report.figure is not None) == bool(runs)
    assert (report.note is None) == bool(runs)


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_runs_a_study_and_prints_its_table(tmp_path: Path) -> None:
    settings = [word for setting in SMALL for word in ("--set", setting)]
    arguments = ["precision", "--only", "resnet", "--run-dir", tmp_path / "all", *settings, "--set", "step.tf32=false"]
    result = lit_fast_command("reproduce", *arguments)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Mixed precision (paper, table 5): 2 runs, budget smoke: ")
    assert "fp32" in result.output
    assert "mixed" in result.output
    assert (tmp_path / "all" / "precision-smoke.md").is_file()


def test_the_command_lists_the_studies() -> None:
    result = lit_fast_command("reproduce")
    assert [line.split()[0] for line in result.output.splitlines()] == studies.names()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "unknown study 'nothing'"),
        (["alpha", "--budget", "huge"], "--budget: expected smoke, cpu, short, paper, got 'huge'"),
        (["alpha", "--teacher", "resnet56"], "--teacher and --teacher-checkpoint belong together"),
        (["alpha", "--budget", "short"], "give its folder"),
        (["alpha", "--set", "loss.gamma=1"], "loss.gamma: unknown key"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in refused("reproduce", *arguments, "--run-dir", tmp_path)


# -- the script for calls of limited time ------------------------------------------------------------------------------

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu" / "reproduce.sh"


def scripted(tmp_path: Path, body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The script with a stand-in for Python, which shows what it is called with."""
    python = tmp_path / "python"
    python.write_text(f'#!/usr/bin/env bash\necho "$@"\n{body}\n')
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python)}
    return subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_the_script_calls_the_study_and_tells_whether_there_is_more(tmp_path: Path) -> None:
    given = ("data", "resnet56", "r56.th", "studies")
    done = scripted(tmp_path, "exit 0", *given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:4] == ["-m", "lit_fast", "reproduce", "ablation"]
    assert done.stdout.endswith("--teacher resnet56 --teacher-checkpoint r56.th --run-dir studies\n")
    stopped = scripted(tmp_path, "sleep 30", *given, "0.2")
    assert stopped.returncode == 75
    assert "call again" in stopped.stderr
    assert scripted(tmp_path, "exit 130", *given).returncode == 75  # left after its checkpoint
    assert scripted(tmp_path, "exit 2", *given).returncode == 2
    assert scripted(tmp_path, "exit 0", "data").returncode == 2


def test_the_script_s_command_is_one_that_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = scripted(tmp_path, "exit 0", "data", "resnet56", "r56.th", "studies").stdout.split()
    assert "no such file: r56.th" in refused(*words[2:])


# -- processes end with the one that started them ----------------------------------------------------------------------


def of_folder(folder: Path) -> list[int]:
    """Processes that were given this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if f"{folder}/runs".encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


@exhaustive
def test_no_process_trains_on_when_the_study_is_killed(taught: Path) -> None:
    (taught / "small.yaml").write_text(yaml.safe_dump(small_study().model_dump(mode="json", exclude_none=True)))
    sets = [part for key in (*SMALL, "epochs=400") for part in ("--set", key)]
    command = ["reproduce", str(taught / "small.yaml"), "--jobs", "2", "--run-dir", str(taught), *sets]
    process = subprocess.Popen(
        [sys.executable, "-m", "lit_fast", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while len(list(taught.glob("runs/*/runs/*-seed0/log.jsonl"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.1)
    assert len(of_folder(taught)) == 2
    process.kill()
    process.wait(timeout=60)
    while of_folder(taught) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert of_folder(taught) == []
    assert len(list(taught.glob("runs/*/runs/*/checkpoints/step-*"))) >= 2  # they have saved


def test_a_process_ends_when_its_standard_input_does() -> None:
    code = (
        "import time; from lit_fast.training.interrupt import stop_with_stdin; stop_with_stdin();"
        "print('ready', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, running.STOP_WITH_STDIN: "1"}
    with running._alive() as (alive, stop):
        command = [sys.executable, "-c", code]
        process = subprocess.Popen(command, stdin=alive, stdout=subprocess.PIPE, env=environment)
        assert process.stdout.readline() == b"ready\n"
        assert process.poll() is None
        stop()
        assert process.wait(timeout=30) == -signal.SIGTERM
