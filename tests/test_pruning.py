"""Pruned students: what is pruned, that it stays so, whose run it is, and how it is shown."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import test_study
import tiny_networks
import torch
from everyday import but_first, exhaustive
from hypothesis import given
from hypothesis import strategies as st
from recorded_graphs import RecordedGraphs
from test_cli import lit_fast_command
from torch import Tensor, nn
from torch.nn.utils import prune
from training_helpers import differing, quiet, tiny, weights, without_times

import lit_fast as lf
from lit_fast.data import Data
from lit_fast.errors import ConfigError, Interrupted, NonFiniteLoss, RunFolderError, StudyFailed
from lit_fast.paper.budgets import BUDGETS
from lit_fast.paper.identity import digest
from lit_fast.paper.plan import Study, load_study, plan
from lit_fast.paper.report import lines
from lit_fast.paper.report import write_report as write_study_report
from lit_fast.paper.run import run_study
from lit_fast.paper.search.run import Space, sequential
from lit_fast.report.run import write_report
from lit_fast.runs.results import plain_table, table
from lit_fast.settings import optimizer
from lit_fast.settings.classifier import load_experiment
from lit_fast.step import capture
from lit_fast.step.lit_step import LITStep
from lit_fast.training import experiment as experiments
from lit_fast.training.experiment import run_experiment
from lit_fast.training.pruning import prune_smallest
from lit_fast.training.run import Run

LIT, SCRATCH = "resnet20-lit-seed0", "resnet20-scratch-seed0"
BOTH = "variants=[lit, scratch]"
PRUNED = "pruning={sparsities: [0.5, 0.9], finetune: {lr: 0.01, epochs: 8}}"  # of 12: two of three


def pruned_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of ResNet: convolutions and the linear layer."""
    return {name: tensor for name, tensor in tensors.items() if tensor.dim() > 1}


def zeros(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor == 0 for name, tensor in pruned_weights(tensors).items()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing is pruned."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    run_experiment(tiny(BOTH), folder, console=quiet())
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, pruned in the same call."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_experiment(tiny(BOTH, PRUNED), folder, console=quiet())
    return folder


def results(folder: Path) -> dict[str, dict[str, Any]]:
    return {result["name"]: result for result in json.loads((folder / "results.json").read_text())["results"]}


# -- what is pruned ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.123, 0.5, 0.9])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_choice_is_that_of_torch(sparsity: float, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    theirs = lf.models.resnet20()
    ours = copy.deepcopy(theirs).to(memory_format=layout)
    layers = [(m, "weight") for m in theirs.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=sparsity)
    own = [m.weight for m in ours.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    masks = prune_smallest(own, sparsity)
    for (layer, _), weight, mask in zip(layers, own, masks, strict=True):
        assert mask.equal(layer.weight_mask == 0)
        assert weight.equal(layer.weight)
        assert weight.is_contiguous(memory_format=layout) or weight.dim() == 2


@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=1, max_size=5), st.floats(0.01, 0.99))
def test_as_many_as_asked_and_none_larger_than_what_is_kept(shapes: list[list[int]], sparsity: float) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    before = torch.cat([tensor.abs().flatten() for tensor in tensors])
    gone = torch.cat([mask.flatten() for mask in prune_smallest(tensors, sparsity)])
    assert int(gone.sum()) == round(sparsity * len(before))
    assert gone.equal(torch.cat([tensor.flatten() for tensor in tensors]) == 0)
    if 0 < int(gone.sum()) < len(before):
        assert before[gone].max() <= before[~gone].min()


@pytest.mark.parametrize("name", [LIT, SCRATCH])
def test_pruned_weights_are_the_smallest_and_stay_zero_while_the_others_train(whole: Path, name: str) -> None:
    start = pruned_weights(weights(whole, name))
    everything = torch.cat([tensor.abs().flatten() for tensor in start.values()])
    for sparsity, percent in ((0.5, "50"), (0.9, "90")):
        pruned = f"{name}-pruned{percent}"
        smallest = everything.sort().values[: round(sparsity * len(everything))]
        result = results(whole)[pruned]
        for which in ("last", "best"):
            ended = weights(whole, pruned, which)
            for key, gone in zeros(ended).items():
                assert gone.equal(start[key].abs() <= smallest[-1]), key
        kept = pruned_weights(weights(whole, pruned))["linear.weight"]
        assert not (kept == start["linear.weight"])[kept != 0].any()
        assert result["parameters"] - result["nonzero_parameters"] == len(smallest)
        assert (result["role"], result["variant"], result["sparsity"]) == ("student", name.split("-")[1], sparsity)
        assert [entry["phase"] for entry in result["history"]] == ["pruned"] * 2
        assert result["compression"] == pytest.approx(result["parameters"] / result["nonzero_parameters"])


def test_the_loss_is_the_one_the_student_was_last_trained_with(whole: Path) -> None:
    lit, scratch = (results(whole)[f"{name}-pruned50"]["history"][0] for name in (LIT, SCRATCH))
    assert lit["loss"] == pytest.approx(0.95 * lit["ce"] + 0.05 * lit["kl"])
    assert lit["kl"] > 0
    assert scratch["kl"] == 0
    assert (lit["ir"], scratch["ir"]) == ([], [])
    assert results(whole)[f"{SCRATCH}-pruned50"]["teacher"] is None


def test_sections_are_looked_at_in_the_student_s_own_run_alone(whole: Path) -> None:
    looked = {name: ["sections" in entry for entry in run["history"]] for name, run in results(whole).items()}
    assert all(looked[LIT])
    assert not any(looked[f"{LIT}-pruned50"])


@pytest.mark.parametrize("precision", but_first(["bf16", "fp16"]))
def test_zeros_stay_under_autocast(tmp_path: Path, precision: str) -> None:
    settings = ("variants=[scratch]", "pruning.sparsities=[0.7]", "teacher.epochs=1", f"step.precision={precision}")
    run_experiment(tiny(*settings), tmp_path / "run", console=quiet())
    gone = torch.cat([zero.flatten() for zero in zeros(weights(tmp_path / "run", f"{SCRATCH}-pruned70")).values()])
    assert int(gone.sum()) == round(0.7 * len(gone))


def test_parts_frozen_to_the_end_are_neither_pruned_nor_trained(tmp_path: Path) -> None:
    frozen = "student={models: [resnet20], copied: [stem, section1, head], frozen_in_finetune: [stem, section1]}"
    run_experiment(tiny(PRUNED, frozen), tmp_path / "run", console=quiet())
    student, teacher = weights(tmp_path / "run", f"{LIT}-pruned90"), weights(tmp_path / "run", "teacher-resnet20")
    assert not [n for n in student if n.startswith(("conv1", "bn1", "layer1")) and not student[n].equal(teacher[n])]
    rest = {name: zero for name, zero in zeros(student).items() if not name.startswith(("conv1", "layer1"))}
    gone = torch.cat([zero.flatten() for zero in rest.values()])
    assert int(gone.sum()) == round(0.9 * len(gone))


# -- runs --------------------------------------------------------------------------------------------------------------


def test_the_student_itself_is_as_without_pruning(plain: Path, whole: Path) -> None:
    before, after = results(plain), results(whole)
    assert list(after) == [
        "teacher-resnet20",
        *(name + pruned for name in (LIT, SCRATCH) for pruned in ("", "-pruned50", "-pruned90")),
    ]
    for name in (LIT, SCRATCH):
        assert not differing(weights(plain, name), weights(whole, name))
        assert after[name]["accuracy"] == before[name]["accuracy"]
        assert "sparsity" not in after[name]


def same_pruned_runs(one: Path, other: Path) -> None:
    for name in (name + pruned for name in (LIT, SCRATCH) for pruned in ("-pruned50", "-pruned90")):
        for which in ("last", "best"):
            assert not differing(weights(one, name, which), weights(other, name, which)), name
        first, second = results(one)[name], results(other)[name]
        assert first["accuracy"] == second["accuracy"]
        assert without_times(first["history"]) == without_times(second["history"])


@exhaustive
def test_a_finished_experiment_may_be_pruned_later(
    plain: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(plain, tmp_path / "run")
    trained = []
    real = Run.run
    monkeypatch.setattr(Run, "run", lambda self: (trained.append(self.spec.name), real(self))[1])
    run_experiment(tiny(BOTH, PRUNED), folder, resume=True, console=quiet())
    assert trained == [name + pruned for name in (LIT, SCRATCH) for pruned in ("-pruned50", "-pruned90")]
    same_pruned_runs(folder, whole)
    trained.clear()
    run_experiment(tiny(BOTH, PRUNED), folder, resume=True, console=quiet())
    assert trained == []
    run_experiment(tiny(BOTH), folder, resume=True, console=quiet())  # and without again, as another study would
    assert "sparsity" not in str(results(folder))


@pytest.mark.parametrize("stopped_at", but_first([7, 2]))
def test_an_interrupted_pruned_run_goes_on_bit_identically(
    plain: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int
) -> None:
    folder = shutil.copytree(plain, tmp_path / "run")
    original, calls = LITStep.__call__, 0

    def interrupting(self: LITStep, *args: object) -> object:
        nonlocal calls
        calls += 1  # 6 of each pruned run
        if calls == stopped_at:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(LITStep, "__call__", interrupting)
        with pytest.raises(Interrupted, match=f"{LIT}-pruned"):
            run_experiment(tiny(BOTH, PRUNED), folder, resume=True, console=quiet())
    run_experiment(tiny(BOTH, PRUNED), folder, resume=True, console=quiet())
    same_pruned_runs(folder, whole)


@exhaustive
def test_captured_steps_keep_the_zeros_and_equal_eager_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On graphs recorded on the CPU; the rates are powers of two, which a float32 tensor holds exactly."""
    graphs = RecordedGraphs()
    monkeypatch.setattr(capture, "graphs_for", lambda device: graphs)
    monkeypatch.setattr(optimizer, "_FUSED", ("cpu",))
    rates = [f"phases.{name}.{key}" for name in ("scratch", "lit", "finetune") for key in ("lr=0.015625", "gamma=0.5")]
    shared = (*rates, "pruning={sparsities: [0.9], finetune: {lr: 0.0625, epochs: 8}}", "epochs=2")
    run_experiment(tiny(*shared, "step.capture=false"), tmp_path / "eager", console=quiet())
    assert graphs.replays == 0
    run_experiment(tiny(*shared), tmp_path / "captured", console=quiet())
    assert graphs.replays == 3 * (2 + 2 + 1)  # teacher, student, pruned: 96 images in batches of 32
    captured = weights(tmp_path / "captured", f"{LIT}-pruned90")
    assert not differing(captured, weights(tmp_path / "eager", f"{LIT}-pruned90"))
    gone = torch.cat([zero.flatten() for zero in zeros(captured).values()])
    assert int(gone.sum()) == round(0.9 * len(gone))


# -- networks of one's own ---------------------------------------------------------------------------------------------


def noise() -> Data:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (90, 3, 8, 8), generator=generator).to(torch.uint8)
    labels = torch.arange(90) % tiny_networks.CLASSES
    parts = [(images[part], labels[part]) for part in (slice(50), slice(50, 70), slice(70, 90))]
    return lf.data.from_arrays(parts[0], parts[1], test=parts[2])


class Norms(nn.Module):
    """Sections that have nothing to prune."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, tiny_networks.CLASSES)
        self.layer1, self.layer2, self.layer3 = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.layer3(self.layer2(self.layer1(self.conv1(x)))).mean((2, 3)))


def distilled(
    run_dir: Path, *overrides: str, net: type[nn.Module] = tiny_networks.Net, **options: Any
) -> tuple[nn.Module, list[dict[str, Any]]]:
    torch.manual_seed(0)
    teacher, student = tiny_networks.split(net()), tiny_networks.split(net(**options))
    done = lf.distill(
        teacher,
        student,
        noise(),
        recipe="digits",
        run_dir=run_dir,
        overrides=["epochs=3", "batch_size=16", "logging.tensorboard=false", "step.device=cpu", *overrides],
        resume=run_dir.exists(),
        console=quiet(),
    )
    return done.student, done.results


@pytest.fixture
def any_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teachers that learnt nothing will do."""
    monkeypatch.setattr(experiments, "refuse_chance", lambda *_: None)


def test_a_student_of_ones_own_keeps_its_own_weights_and_draws_of_pruned_runs_are_their_own(
    any_teacher: None, tmp_path: Path
) -> None:
    """Dropout draws from the generator, which stands elsewhere once the student has been trained in the same call."""
    student, found = distilled(tmp_path / "once", "pruning.sparsities=[0.8]", dropout=0.5)
    assert [result["name"] for result in found] == ["teacher-net", "net-lit-seed0", "net-lit-seed0-pruned80"]
    assert not differing(weights(tmp_path / "once", "net-lit-seed0"), dict(student.state_dict()))
    distilled(tmp_path / "later", dropout=0.5)
    distilled(tmp_path / "later", "pruning.sparsities=[0.8]", dropout=0.5)
    pruned = [weights(tmp_path / folder, "net-lit-seed0-pruned80") for folder in ("once", "later")]
    assert not differing(*pruned)


def test_nothing_to_prune_is_told_before_anything_is_trained(any_teacher: None, tmp_path: Path) -> None:
    kept = ("pruning.sparsities=[0.5]", "student.frozen_in_finetune=[stem, head]")
    with pytest.raises(ValueError, match=r"norms-lit-seed0-pruned50: nothing to prune: .*\['stem', 'head'\]"):
        distilled(tmp_path / "run", *kept, net=Norms)
    assert not (tmp_path / "run" / "runs" / "norms-lit-seed0").exists()


# -- whose run it is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("pruning.finetune.lr=0.02", r"lr \(0.01 there, 0.02 now\)"),
        ("pruning.finetune.epochs=4", r"epochs \(2 there, 1 now\)"),
        ("pruning.finetune.milestones=[4]", r"milestones \(\[\] there, \[1.0\] now\)"),
    ],
)
def test_a_run_pruned_with_other_settings_is_refused(
    whole: Path, monkeypatch: pytest.MonkeyPatch, setting: str, says: str
) -> None:
    monkeypatch.setattr(Run, "run", lambda self: pytest.fail("trained"))
    with pytest.raises(RunFolderError, match=rf"runs/{LIT}-pruned50 holds .* other settings; they differ in {says}"):
        run_experiment(tiny(BOTH, PRUNED, setting), whole, resume=True, console=quiet())


@exhaustive
def test_so_is_one_that_was_only_begun_and_removing_it_is_enough(
    plain: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(plain, tmp_path / "run")

    def stopped(self: Any) -> Any:
        raise Interrupted("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "run", stopped)
        with pytest.raises(Interrupted):
            run_experiment(tiny(BOTH, "pruning.sparsities=[0.5]"), folder, resume=True, console=quiet())
    with pytest.raises(RunFolderError, match="other settings"):
        run_experiment(tiny(BOTH, PRUNED), folder, resume=True, console=quiet())
    shutil.rmtree(folder / "runs" / f"{LIT}-pruned50")
    run_experiment(tiny(BOTH, PRUNED), folder, resume=True, console=quiet())
    same_pruned_runs(folder, whole)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("pruning.sparsities=[0.5, 1]", r"pruning.sparsities.1: .*less than 1"),
        ("pruning.sparsities=[0]", r"pruning.sparsities.0: .*greater than 0"),
        ("pruning.sparsities=0.5", r"pruning.sparsities: "),
        ("pruning.sparsities=[0.5, 0.50]", r"sparsities repeats an entry: \[0.5, 0.5\]"),
        ("pruning.sparsity=[0.5]", r"pruning.sparsity: unknown key"),
        ("pruning.finetune.lr=0.1", r"pruning.finetune.epochs: Field required"),
        ("pruning.finetune={lr: 0.1, epochs: 5, milestones: [6]}", r"pruning.finetune: milestone 6 lies after"),
    ],
)
def test_a_bad_value_is_refused_by_its_key(setting: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_experiment(overrides=[setting])


def test_pruning_is_no_part_of_an_experiment_s_identity() -> None:
    bare, pruned = load_experiment(), load_experiment(overrides=["pruning={sparsities: [0.5]}"])
    assert not [key for key in pruned.identity() if key.startswith("pruning")]
    assert digest(bare) == digest(pruned)


def test_fine_tuning_is_that_of_the_recipe_and_shortened_as_there() -> None:
    def schedule(*overrides: str) -> tuple[float, int]:
        (phase,) = load_experiment("resnet-cifar10", overrides=["data.dir=/d", *overrides]).pruned_plan()
        return phase.lr, phase.epochs

    assert schedule() == (0.01, 75)
    assert schedule("epochs=20") == (0.01, 6)  # 75 of 250
    assert schedule("epochs=1") == (0.01, 1)
    assert schedule("pruning.finetune={lr: 0.1, epochs: 125}", "epochs=20") == (0.1, 10)


def test_a_pruned_run_that_diverges_names_its_own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = LITStep.__call__

    def poisoned(self: LITStep, *args: object) -> object:
        parts = original(self, *args)
        return parts._replace(total=parts.total * (math.nan if self.optimizer._optimizer_step_post_hooks else 1.0))

    monkeypatch.setattr(LITStep, "__call__", poisoned)
    with pytest.raises(NonFiniteLoss, match=r"pruned50: the loss is not finite .*\(pruning.finetune.lr, now 0.01"):
        run_experiment(tiny(PRUNED), tmp_path / "run", console=quiet())


def test_a_search_prunes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"leave out pruning\.sparsities"):
        sequential(tiny("pruning.sparsities=[0.5]"), tmp_path, Space(), console=quiet())


# -- how it is shown ---------------------------------------------------------------------------------------------------


def test_pruned_students_have_rows_of_their_own(whole: Path) -> None:
    rows = table(list(results(whole).values()))
    shown = [(row.training, row.sparsity) for row in rows if row.role == "student"]
    assert shown == [(way, sparsity) for way in ("lit", "scratch") for sparsity in (None, 0.5, 0.9)]
    sizes = [row.parameters for row in rows if row.training == "lit"]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] == results(whole)[f"{LIT}-pruned50"]["nonzero_parameters"]
    assert "resnet20  lit, 50 % pruned" in plain_table(rows)
    report = write_report(whole)
    text = report.markdown.read_text()
    assert f"| resnet20 | lit, 90 % pruned | 1 | 20 | {sizes[2]:,} |" in text
    assert "Of pruned networks the parameters that are not zero" in text
    assert report.figure is not None


# -- the study ---------------------------------------------------------------------------------------------------------

SMALL = (*test_study.SMALL, "student.models=[resnet20]")
SMOKE = ("smoke", BUDGETS["smoke"])


def study(variant: str = "lit", *sparsities: float) -> Study:
    arm = {"name": variant, "set": {"variants": [variant], "pruning": {"sparsities": list(sparsities)}}, "paper": 93.0}
    group = {"name": "small", "recipe": "resnet-cifar10", "arms": [arm]}
    return Study.model_validate({"title": "A study", "source": "nowhere", "groups": [group]})


def ran(one: Study, folder: Path, *overrides: str, **options: Any) -> list[dict[str, Any]]:
    runs = plan(one, SMOKE[1], overrides=(*SMALL, *overrides))
    path = run_study("small", one, SMOKE, runs, folder, console=quiet(), **options)
    return list(json.loads(path.read_text())["runs"])


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`lit-fast reproduce pruning`, with one student."""
    folder = tmp_path_factory.mktemp("studies")
    sets = [part for setting in (*SMALL, "pruning.sparsities=[0.5, 0.9]") for part in ("--set", setting)]
    done = lit_fast_command("reproduce", "pruning", "--run-dir", folder, *sets)
    assert done.exit_code == 0, done.output
    assert "lit, 90 % pruned" in done.stdout
    return folder


@pytest.mark.usefixtures("drawn")
def test_the_study_has_a_row_for_each_sparsity(studied: Path) -> None:
    content = json.loads((studied / "pruning-smoke.json").read_text())
    write_study_report(studied / "pruning-smoke.json")
    found = lines(content)
    assert [(line.arm, line.sparsity, line.status, line.done) for line in found] == [
        (arm, sparsity, "", 1) for arm in ("from scratch", "LIT") for sparsity in (None, 0.5, 0.9)
    ]
    for line in found:
        assert line.last is not None
    full, half, tenth = (line.parameters for line in found[:3])
    assert full is not None
    assert half == pytest.approx(full / 2, rel=0.02)
    assert tenth == pytest.approx(full / 10, rel=0.05)
    text = (studied / "pruning-smoke.md").read_text()
    assert "| seeds | difference | nonzero parameters |" in text
    assert f"| lit, 50 % pruned | - | {found[4].last!s} |" in text
    assert (studied / "pruning-smoke.png").read_bytes().startswith(b"\x89PNG")


def test_other_studies_have_no_such_column(studied: Path, tmp_path: Path) -> None:
    content = json.loads((studied / "pruning-smoke.json").read_text())
    content["runs"] = [run for run in content["runs"] if "sparsity" not in run]
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert "nonzero" not in write_study_report(tmp_path / "x.json").text


def test_studies_share_the_students_that_one_of_them_prunes(
    studied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(studied, tmp_path / "studies")
    trained = []
    real = Run.run
    monkeypatch.setattr(Run, "run", lambda self: (trained.append(self.spec.name), real(self))[1])
    (bare,) = ran(study("lit"), folder)
    assert trained == []
    once, pruned = ran(study("lit", 0.7), folder)
    assert trained == [f"{LIT}-pruned70"]
    assert (once["status"], pruned["status"], pruned["sparsity"]) == ("done", "done", 0.7)
    assert (once["paper"], pruned["paper"]) == (93.0, None)
    assert once == bare
    assert ran(study("lit"), folder) == [bare]


def test_what_comes_before_a_pruned_run_that_diverges_is_kept(
    studied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Run.run

    def diverging(self: Any) -> Any:
        if self.spec.sparsity == 0.8:
            raise NonFiniteLoss("the loss is NaN")
        return real(self)

    monkeypatch.setattr(Run, "run", diverging)
    folder = shutil.copytree(studied, tmp_path / "studies")
    runs = ran(study("scratch", 0.7, 0.8, 0.9), folder)
    assert [run["status"] for run in runs] == ["done", "done", "diverged: the loss is NaN", "not run"]
    assert [line.done for line in lines(json.loads((folder / "small-smoke.json").read_text()))] == [1, 1, 0, 0]


@exhaustive
def test_results_of_other_settings_are_not_taken_for_those_that_failed(studied: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(studied, tmp_path / "studies")
    with pytest.raises(StudyFailed, match="1 of 1 runs failed"):
        ran(study("scratch", 0.5), folder, "pruning.finetune={lr: 0.5, epochs: 75}", jobs=2)
    runs = json.loads((folder / "small-smoke.json").read_text())["runs"]
    assert runs[0]["status"].startswith("failed with status 2")
    assert runs[1]["status"] == "not run"
    assert "other settings" in next((folder / "runs").glob("*.log")).read_text()


def test_the_study_is_planned_as_figure_6_has_it(tmp_path: Path) -> None:
    runs = plan(load_study("pruning"), BUDGETS["paper"], data_dir=tmp_path)
    assert {run.variant for run in runs} == {"scratch", "lit"}
    assert {run.network for run in runs} == {"resnet20", "resnet32", "resnet44", "resnet56"}
    assert all(run.sparsities == (None, 0.5, 0.7, 0.8, 0.9) for run in runs)
    shared = {digest(run.experiment) for run in plan(load_study("size"), BUDGETS["paper"], data_dir=tmp_path)}
    assert {digest(run.experiment) for run in runs} < shared
