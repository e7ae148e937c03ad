"""The measuring code: what it measures is what happened, and the bars judge it rightly."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from everyday import exhaustive

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # benchmarks is no part of the installed package

from benchmarks import (  # noqa: E402
    bars,
    beside,
    data,
    data_sources,
    linear,
    loss,
    overhead,
    peers,
    plot,
    precisions,
    recording,
    settings,
    step,
    suites,
    teacher,
    variants,
)
from benchmarks.choice import Choice  # noqa: E402
from lit_fast.bench.ways import Problem  # noqa: E402
from lit_fast.openmp import SPINS  # noqa: E402

F32, BF16 = torch.float32, torch.bfloat16
TINY = settings.settings("cpu", tiny=True)

# -- settings and variants ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_settings_have_names_of_their_own_and_cover_the_bars(device: str) -> None:
    chosen = settings.settings(device)
    assert len({setting.name for setting in chosen}) == len(chosen)
    assert {32, 128, 512, 1024} <= {setting.batch for setting in chosen if setting.family == "cifar"}
    assert {"kd-1000", "kd-50257"} <= {setting.family for setting in chosen}
    for setting in chosen:
        if setting.family == "cifar-large":
            smallest = min(torch.Size(shape).numel() for shape in setting.sections)
            assert setting.batch * smallest * setting.dtype.itemsize >= 64e6


def test_bytes_are_three_widths_for_every_element() -> None:
    setting = settings.Setting("cifar", 2, BF16, ((3, 4), (5,)), classes=7)
    assert setting.elements == 2 * (12 + 5 + 7)
    assert setting.bytes == 3 * 2 * setting.elements


@pytest.mark.parametrize("setting", TINY, ids=lambda setting: setting.name)
def test_the_variants_compute_the_same(setting: settings.Setting) -> None:
    data = variants.problem(setting, "cpu")
    eager = variants.step_of(data, variants.eager_loss(data))
    assert len(eager()) == 2 + len(setting.sections)
    for name in ("eager", "native"):
        if variants.unavailable(name, "cpu") is None:
            assert (
                variants.disagreement(variants.step_of(data, variants.backend_loss(data, name)), eager, setting.dtype)
                is None
            )


@pytest.mark.parametrize("number", [0, 1])
def test_a_variant_that_computes_something_else_is_found(number: int) -> None:
    data = variants.problem(TINY[0], "cpu")
    eager = variants.step_of(data, variants.eager_loss(data))

    def wrong(value: float) -> variants.Step:
        return lambda: tuple(t * value if i == number else t for i, t in enumerate(eager()))

    assert variants.disagreement(wrong(1.0), eager, F32) is None
    assert f"{'loss' if number == 0 else 'gradient 1'} is off" in str(variants.disagreement(wrong(1.001), eager, F32))
    assert variants.disagreement(wrong(float("nan")), eager, F32) is not None


def test_a_backend_that_is_not_there_is_a_row_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "unavailable", lambda name, device: "not built")
    measurement = loss.Measurement(TINY[2], "cpu")
    measurement.pairs.round()
    rows = {row["variant"]: row for row in measurement.rows()}
    assert rows["native"]["status"] == rows["triton"]["status"] == "not available: not built"
    assert rows["eager"]["status"] == rows["reference"]["status"] == "measured"
    everything = list(overhead.run("cpu", float("inf"), tiny=True, seconds=0.0))
    assert {row["status"] for row in everything} == {"not available: not built"}


def test_every_suite_has_a_module() -> None:
    for module in suites.SUITES.values():
        assert callable(importlib.import_module(module).run)


def test_chosen_variants_alone_are_measured_and_nothing_that_is_known() -> None:
    setting = step.settings("cpu", tiny=True)[0].name
    chosen = Choice(variants=("eager", "runner"))
    rows = list(step.run("cpu", float("inf"), tiny=True, seconds=0.1, choice=chosen))
    assert [row["variant"] for row in rows] == ["eager", "runner"]
    for known, measured in (({"eager", "runner"}, False), ({"eager"}, True)):
        there = chosen._replace(known=frozenset(("step", setting, variant) for variant in known))
        assert there.setting("step", setting) is measured
    assert not Choice(settings=("another",)).setting("step", setting)
    assert chosen._replace(variants=("compile:default", "native")).variant("native")
    assert Choice(variants=("compile",)).variant("compile:default")
    assert not Choice(variants=("compile:default",)).variant("compile:max-autotune")
    few = list(loss.run("cpu", float("inf"), tiny=True, seconds=0.1, choice=Choice((TINY[0].name,), ("native",))))
    assert {row["setting"] for row in few} == {TINY[0].name}
    assert {row["variant"] for row in few} == {"copy", "eager", "native"}  # what others are held against


def test_the_step_and_the_teacher_are_measured_in_all_variants() -> None:
    for suite in (step, teacher):
        rows = list(suite.run("cpu", float("inf"), tiny=True, seconds=0.1))
        assert {row["status"] for row in rows} == {"measured"}, rows
        assert {"eager", "runner"} <= {row["variant"] for row in rows}
        assert all(row["times_eager"] > 0 for row in rows if row["variant"] != "eager")


@exhaustive
def test_the_loaders_are_measured_alone_and_with_the_step() -> None:
    rows = list(data.run("cpu", float("inf"), tiny=True, seconds=0.1))
    assert all(row["status"].startswith(("measured", "not available: loader 'dali'")) for row in rows), rows
    names = {family: {row["variant"] for row in rows if row["family"] == family} for family in ("cifar", "jpeg")}
    assert names["jpeg"] == {"pil", "torch", "dali", "resident"}
    assert names["cifar"] == names["jpeg"] | {"step", "step+resident", "step+resident+ahead", "step+torch", "step+dali"}
    for row in rows:
        if row["status"] == "measured":
            assert row["images_s"] > 0
            assert ("percent_lost" in row) == row["variant"].startswith("step+")
            assert row["variant"].startswith("step") or row["times_pil"] > 0


def test_the_loss_in_chunks_is_measured_against_whole_logits() -> None:
    rows = {row["variant"]: row for row in linear.run("cpu", float("inf"), tiny=True, seconds=0.1)}
    assert {row["status"] for row in rows.values()} == {"measured"}, rows
    assert set(rows) == {"script", "kd_loss", "linear"}
    found = rows["linear"]
    assert all(found[f"{what}_of_{other}"] > 0 for what in ("time", "memory") for other in ("script", "kd_loss"))


@exhaustive
def test_memory_is_measured_in_a_process_of_its_own() -> None:
    setting = linear.Setting("", 64, 8, 500)
    assert linear.extra_bytes(linear.steps(setting, "cpu")["kd_loss"], "cpu") >= 2 * 64 * 500 * 4
    _held = torch.ones(100 << 20, dtype=torch.uint8)  # what this process has had is no part of it
    assert 0 <= linear.alone(linear.TINY, "linear") < 50 << 20


@pytest.mark.parametrize("setting", data_sources.settings(tiny=True), ids=lambda setting: setting.name)
def test_images_one_by_one_are_those_of_the_loaders(setting: data_sources.Setting, tmp_path: Path) -> None:
    dataset = setting.make(tmp_path)
    expected, _ = next(dataset.train_batches(0, batch_size=len(dataset.train), seed=0, augment=False))
    order = dataset.training_plan(0, batch_size=1, seed=0).tables.order
    images = data_sources.OneByOne(dataset)
    images.pad = 0
    for place, index in enumerate(order.tolist()):
        image, label = images[index]
        flipped = image.flip(-1)
        assert min(float((one - expected[place]).abs().max()) for one in (image, flipped)) < 1e-5
        assert label == int(dataset.train.labels[index])


@exhaustive
def test_the_step_is_measured_alone_and_beside_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(beside, "WAITS", {"spin": "300000"})  # of the load, too; the others are other numbers
    monkeypatch.setattr(sys, "argv", ["beside", "--tiny", "--seconds", "0.1", "--out", str(tmp_path)])
    beside.main()
    (path,) = tmp_path.glob("*-beside.json")
    found = json.loads(path.read_text())
    assert found["tiny"]
    assert [(row["setting"], row["wait"], row["variant"]) for row in found["rows"]] == [
        (load, "spin", way) for load in ("alone", "trains") for way in ("plain", "runner")
    ]
    assert all(row["median_us"] > 0 for row in found["rows"])
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_what_recording_costs_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["recording", "--tiny", "--seconds", "0.1", "--out", str(tmp_path)])
    recording.main()
    (path,) = tmp_path.glob("*-recording.json")
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert [(row["setting"], row["variant"]) for row in rows] == [("width 8", "own forward"), ("width 8", "recorded")]
    assert all(0 < row["low_us"] <= row["median_us"] <= row["high_us"] for row in rows)


def in_place_of_a_library(problem: Problem, setting: str, off: float) -> peers.Peer:
    """The step written out in PyTorch; `off` is added to the loss of the sections."""
    teacher, student = peers.networks(problem, setting)
    optimizer = torch.optim.SGD(student.parameters(), **peers.SGD)

    def step() -> torch.Tensor:
        with torch.no_grad():
            irs, soft = teacher.run(problem.inputs)
        if setting == "ir":
            inputs = [teacher.stem(problem.inputs).detach(), *irs[:-1]]
            found = [section(x) for section, x in zip(student.sections, inputs)]
        else:
            found, logits = student.run(problem.inputs)
        loss = sum(F.mse_loss(ours, right) * (1 + off) for ours, right in zip(found, irs)) / 3
        if setting != "ir":
            log_q, p = F.log_softmax(logits / peers.TAU, 1), F.softmax(soft / peers.TAU, 1)
            soft_loss = peers.TAU**2 * F.kl_div(log_q, p, reduction="batchmean")
            hard = peers.ALPHA * F.cross_entropy(logits, problem.labels)
            loss = (1 - peers.BETA) * loss + peers.BETA * (hard + (1 - peers.ALPHA) * soft_loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return peers.Peer(step, student.model, optimizer)


@pytest.mark.parametrize("off", [0.0, 0.1])
def test_other_libraries_are_timed_where_they_compute_the_same(off: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "modelopt_ir", lambda problem, _: in_place_of_a_library(problem, "ir", off))
    monkeypatch.setattr(peers, "modelopt_kd", lambda problem, _: in_place_of_a_library(problem, "multi-ir", off))
    monkeypatch.setattr(peers, "torchdistill_kd", lambda problem, _: in_place_of_a_library(problem, "multi-ir", off))
    rows = list(peers.rows("cpu", 0.1, tiny=True))
    theirs = ["modelopt", "modelopt-cl"], ["modelopt", "modelopt-cl", "torchdistill", "torchdistill-cl"]
    variants = [{row["variant"] for row in rows if row["family"] == family} for family in ("ir", "multi-ir")]
    assert variants == [{*names, "lit_fast"} for names in theirs]
    for row in rows:
        if off and row["variant"] == "lit_fast":
            assert row["status"].startswith("does not compute what modelopt does: ")
        else:
            assert row["status"] == "measured"
            assert row["images_s"] > 0
            assert row["peak_bytes"] > 0
            assert off or row["variant"] == "modelopt" or row["times_modelopt"] > 0


def test_libraries_that_are_not_there_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.LIBRARIES, "modelopt", "no_such_library")
    why = "nvidia-modelopt: ModuleNotFoundError: No module named 'no_such_library'; "
    assert peers.missing() == why + "pip install nvidia-modelopt torchdistill"


@pytest.mark.parametrize(("wait", "spins"), [("spin", "300000"), ("share", SPINS), ("sleep", "0")])
def test_processes_beside_each_other_wait_as_they_are_told(
    wait: str, spins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(beside.subprocess, "Popen", lambda words, env, **_: begun.append((words, env)))
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    beside.process(wait, True, "--train")
    ((words, environment),) = begun
    assert words[1:] == ["-m", "benchmarks.beside", "--train", "--tiny"]
    assert environment["GOMP_SPINCOUNT"] == spins
    assert "OMP_WAIT_POLICY" not in environment


def test_a_load_that_ends_at_once_is_no_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside.sys, "executable", "true")
    with pytest.raises(SystemExit, match="the load ended before it trained"), beside.beside("trains", tiny=True):
        pass


def test_settings_after_the_deadline_say_so() -> None:
    rows = list(loss.run("cpu", time.monotonic() - 1, tiny=True))
    assert [row["status"] for row in rows] == ["out of time"] * len(TINY)


# -- bars --------------------------------------------------------------------------------------------------------------


def results(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"kind": "cuda", "tiny": False, "copy_gb_s": 3000.0, "rows": list(rows), **changes}


def row(variant: str = "native", batch: int = 32, dtype: str = "float16", **changes: Any) -> dict[str, Any]:
    named = {"suite": "loss", "setting": f"cifar-b{batch}-{dtype}", "family": "cifar", "status": "measured"}
    return {**named, "variant": variant, "batch": batch, "dtype": dtype, **changes}


def verdict(text: str, found: dict[str, Any]) -> tuple[str, float | None]:
    bar = next(bar for bar in bars.judge(found) if bar["bar"].startswith(text))
    return bar["verdict"], bar["value"]


def test_the_worst_precision_counts() -> None:
    both = [row(times_eager=9.0), row(dtype="bfloat16", times_eager=4.9)]
    assert verdict("AMP, batch 32, against eager", results(*both)) == ("FAIL", 4.9)
    assert verdict("AMP, batch 32, against eager", results(both[0])) == ("PASS", 9.0)
    assert verdict("AMP, batch 32, against eager", results(row(dtype="float32", times_eager=9.0)))[0] == "NOT MEASURED"


def test_native_is_judged_before_triton() -> None:
    both = [row("triton", times_compile=3.0), row("native", times_compile=1.0)]
    assert verdict("AMP, batch 32, against torch.compile", results(*both)) == ("FAIL", 1.0)
    assert verdict("AMP, batch 32, against torch.compile", results(both[0])) == ("PASS", 3.0)


def test_the_copy_rate_and_the_launches_are_judged() -> None:
    large = row(
        family="cifar-large",
        gb_s=1.0,
        kernel_gb_s=2760.0,
        launches=3,
        launches_forward=2,
        kernels=["1 x lit_loss", "2 x copy"],
    )
    assert verdict("GB/s", results(large)) == ("PASS", pytest.approx(92.0))
    assert verdict("GB/s", results(large, copy_gb_s=None))[0] == "NOT MEASURED"
    assert verdict("launches of forward + backward", results(large)) == ("FAIL", 3)
    assert verdict("launches of loss and gradients", results(large)) == ("PASS", 2)


def test_loaders_are_judged_by_what_they_are_compared_with() -> None:
    found = [
        {"suite": "data", "setting": family, "family": family, "status": "measured", "variant": variant, **figures}
        for family, variant, figures in (
            ("cifar", "resident", {"times_pil": 12.0, "times_dali": 1.4}),
            ("jpeg", "dali", {"times_torch": 1.3}),
            ("cifar", "step+resident", {"percent_lost": 6.0}),
        )
    ]
    assert verdict("CIFAR, resident against the DataLoader", results(*found, kind="cpu")) == ("PASS", 12.0)
    assert verdict("CIFAR, resident against DALI", results(*found, kind="cpu")) == ("FAIL", 1.4)
    assert verdict("JPEG files", results(*found, kind="cpu")) == ("PASS", 1.3)
    assert verdict("captured step on resident data", results(*found)) == ("FAIL", 6.0)
    assert verdict("captured step on resident data", results(*found[:2]))[0] == "NOT MEASURED"


def test_the_loss_in_chunks_is_judged_by_the_better_way_with_whole_logits() -> None:
    found = {"suite": "linear", "setting": "2048", "variant": "linear", "status": "measured"}
    found |= {"time_of_script": 0.5, "time_of_kd_loss": 1.05, "memory_of_script": 0.04, "memory_of_kd_loss": 0.11}
    assert verdict("linear_kd_loss, memory", results(found, kind="cpu")) == ("FAIL", 0.11)
    assert verdict("linear_kd_loss, time", results(found, kind="cpu")) == ("PASS", 1.05)
    assert verdict("linear_kd_loss, time", results(found | {"variant": "kd_loss"}, kind="cpu"))[0] == "NOT MEASURED"


def test_tiny_runs_and_other_devices_prove_nothing() -> None:
    good = row(times_eager=9.0)
    assert verdict("AMP, batch 32, against eager", results(good, tiny=True))[0] == "NOT MEASURED"
    assert {bar["verdict"] for bar in bars.judge(results(good, kind="cpu"), "cuda")} == {"NOT MEASURED"}


# -- the pytest layer and the plot -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pytest benchmarks --results` leaves, at tiny sizes."""
    folder = tmp_path_factory.mktemp("results")
    command = [sys.executable, "-m", "pytest", "benchmarks", "--device", "cpu", "--tiny", "--seconds", "0.1"]
    command += ["--results", str(folder), "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(Path(variants.lit_fast.__file__).parents[1])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    (path,) = folder.glob("*.json")
    return path


@exhaustive
def test_the_benchmarks_run_under_pytest_and_leave_a_results_file(results_file: Path) -> None:
    found = json.loads(results_file.read_text())
    assert {"device", "versions", "command", "date", "commit", "threads", "rows"} <= set(found)
    assert found["command"].startswith("python -m pytest benchmarks") or "OMP_NUM_THREADS" in found["command"]
    measured = [one for one in found["rows"] if one["status"] == "measured"]
    assert {one["setting"] for one in measured if one["suite"] == "loss"} == {setting.name for setting in TINY}
    for one in measured:
        assert 0 < one["quartiles_us"][0] <= one["median_us"] <= one["quartiles_us"][1]
    eager = [one for one in measured if one["variant"] == "eager"]
    assert all(one["times_eager"] == 1.0 for one in eager)


@exhaustive
def test_the_plot_draws_a_results_file_and_prints_its_table(
    results_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], drawn: None
) -> None:
    monkeypatch.setattr(sys, "argv", ["plot.py", str(results_file), "--out", str(tmp_path / "figure.svg")])
    plot.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| shapes | batch | precision | eager, ms |")
    assert lines.index("") == 2 + len(TINY)
    assert "| resnet14-resnet8, batch 4, fp32 | runner |" in "\n".join(lines)
    assert "torch.compile, best mode" in (tmp_path / "figure.svg").read_text()


def test_precisions_are_compared_in_every_part_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["precisions", "--tiny", "--threads", "1", "--seconds", "0.05", "--out", str(tmp_path)]
    )
    precisions.main()
    (path,) = tmp_path.glob("*-precisions.json")
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert [(row["part"], row["variant"]) for row in rows] == [
        (part, variant) for part in ("teacher", "student", "step") * 2 for variant in ("fp32", "bf16")
    ]
    assert all(0 < row["error"] < 0.05 for row in rows)  # bf16 has 8 bits of mantissa, and is not fp32
