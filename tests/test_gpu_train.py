"""benchmarks/gpu/train.sh, dry: every student is trained, whatever stops it; and the packed images that it reads."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fake_cifar
import numpy as np
import pytest
from everyday import exhaustive
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # benchmarks is no part of the installed package

pytest.importorskip("PIL", reason="the images are packed as WebP by Pillow")

from benchmarks.gpu import pack, train, train_data, train_plan, train_report  # noqa: E402
from benchmarks.gpu.train_plan import EPOCHS, TIME, Run, Speed  # noqa: E402

MORE_TO_DO = 75


def start(out: Path, *options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("LIT_FAST_STATE", None)
    command = [str(ROOT / "benchmarks/gpu/train.sh"), "--dry-run", str(out), "300", *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def without_times(run: dict[str, Any]) -> dict[str, Any]:
    history = [{key: value for key, value in entry.items() if key != "seconds"} for entry in run["history"]]
    return {**{key: run[key] for key in ("name", "epochs", "images", "accuracy")}, "history": history}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a dry run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "out"
    process = start(out, "--epochs", "2")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return out


@exhaustive
def test_a_dry_run_trains_every_student_and_fills_the_table(whole: Path) -> None:
    found = results(whole)
    table = (whole / "table.md").read_text()

    runs = {(run["way"], run["compared_at"]): run for run in found["runs"]}
    assert {(way, EPOCHS) for way in train_plan.WAYS} <= set(runs)
    assert all(runs[way, EPOCHS]["epochs"] == 2 for way in train_plan.WAYS)
    for way, epochs in found["plan"]["equal_time"].items():
        assert epochs == 2 or runs[way, TIME]["epochs"] == epochs > 2
    for run in runs.values():
        assert run["images"] == run["epochs"] * found["splits"]["train"]
        assert run["seconds"] > 0
        assert f"| {run['way']} | {run['compared_at']} | {run['epochs']} | 0 | {run['images']:,} |" in table
    assert table.count("| done |") == len(runs)
    assert table.count("\n| resnet8 |") == 5
    assert f"| {found['teacher']['accuracy']['test_last']:.2f} | - | the teacher |" in table
    assert "**160 of 160 training images**" in table
    assert "a dry run" in table.lower()
    assert {name.partition("/")[0] for name in load_file(whole / "weights.safetensors")} == {
        run["name"] for run in runs.values()
    }
    assert (whole / "report.png").exists() or not _has_matplotlib()


def _has_matplotlib() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


@exhaustive
def test_a_killed_run_goes_on_to_the_results_of_one_never_stopped(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(whole / "plan.json", out)  # trials measure anew, and with them LIT's time would differ
    shutil.copytree(whole / "dry-data", out / "dry-data")

    process = start(out)
    _wait_for(process, out / "log.txt", "epoch")  # it is training now
    time.sleep(random.uniform(0.0, 4.0))
    process.kill()  # SIGKILL; train.sh has replaced itself by Python
    process.communicate()
    if (out / "results.json").exists():
        json.loads((out / "results.json").read_text())

    said = len((out / "log.txt").read_text())
    process = start(out)
    _wait_for(process, out / "log.txt", "epoch", said)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    if process.returncode != 0:  # it may have been quicker
        assert process.returncode == MORE_TO_DO, output
        assert "| done |" in (out / "table.md").read_text() or "so far |" in (out / "table.md").read_text()

    process = start(out)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert list(map(without_times, results(out)["runs"])) == list(map(without_times, results(whole)["runs"]))
    mine, theirs = (load_file(folder / "weights.safetensors") for folder in (out, whole))
    assert mine.keys() == theirs.keys()
    assert all(mine[name].equal(theirs[name]) for name in mine)


def _wait_for(process: subprocess.Popen[str], log: Path, text: str, after: int = 0) -> None:
    ends = time.monotonic() + 120
    while not (log.exists() and text in log.read_text()[after:]):
        assert time.monotonic() < ends, f"{log} never said {text!r}"
        if process.poll() is not None:
            return
        time.sleep(0.05)


@exhaustive
def test_another_teacher_does_not_go_on_with_these_students(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    plan = json.loads((whole / "plan.json").read_text())
    plan["identity"]["teacher"] = "another"
    (out / "plan.json").write_text(json.dumps(plan))
    shutil.copytree(whole / "dry-data", out / "dry-data")

    options = argparse.Namespace(out=out, dry_run=True, seeds=1, set=[])

    with pytest.raises(train.TrainError, match=r"they differ in teacher \('another' there.*Choose another OUT"):
        train.open_students(options)


@exhaustive
def test_results_alone_are_enough_to_go_on_with_the_next_run(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, state = tmp_path / "out", tmp_path / "state"
    out.mkdir()
    for name in ("plan.json", "results.json", "weights.safetensors"):
        shutil.copy(whole / name, out)
    shutil.copytree(whole / "dry-data", state / "dry-data")
    monkeypatch.setenv("LIT_FAST_STATE", str(state))

    students = train.open_students(argparse.Namespace(out=out, dry_run=True, seeds=2, set=[]))

    assert students.complete
    assert list(students.finished.values()) == results(whole)["runs"]
    assert set(students.weights) == set(load_file(whole / "weights.safetensors"))
    assert (state / "plan.json").exists()
    another_seed = students.next_run(left=1e6)
    assert another_seed == Run("lit", 2, 1, EPOCHS)
    assert students.next_run(left=0.0) is None


@exhaustive
def test_a_run_that_fails_is_named_and_the_others_go_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(whole / "plan.json", out)
    shutil.copytree(whole / "dry-data", out / "dry-data")
    students = train.open_students(argparse.Namespace(out=out, dry_run=True, seeds=1, set=[]))

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(students, "distill", fail)
    students.train(Run("lit", 2, 0, EPOCHS))

    assert students.next_run(left=0.0) == Run("kd", 2, 0, EPOCHS)
    table = (out / "table.md").read_text()
    assert "Failed: lit-2-epochs-seed0: RuntimeError: no memory" in table
    assert "| failed |" in table
    assert not students.complete


# -- packed images -----------------------------------------------------------------------------------------------------


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fake_cifar.shrink(monkeypatch)
    return fake_cifar.write(tmp_path, "cifar10", "cifar-10-batches-bin")


def test_packed_images_are_what_they_were_bit_by_bit(cifar: Path, tmp_path: Path) -> None:
    published = pack.published(cifar)
    parts = pack.pack(published, tmp_path / "packed", per_sheet=30)

    for folders in ([tmp_path / "packed"], parts, parts[::-1]):
        found = pack.unpack(folders)
        for split in pack.SPLITS:
            assert np.array_equal(getattr(found, split).pixels, published[split].pixels)
            assert np.array_equal(getattr(found, split).labels, published[split].labels)
        assert found.whole == 200
        assert found.checked
    assert train_data.read(os.pathsep.join(map(str, parts))).digest == train_data.read(str(cifar)).digest


def test_the_first_part_alone_says_in_the_table_how_many_images_there_are(cifar: Path, tmp_path: Path) -> None:
    published = pack.published(cifar)
    first, second = pack.pack(published, tmp_path / "packed", per_sheet=30)

    found = train_data.read(str(first))

    assert found.share == "120 of 200 training images"
    assert found.partial
    assert np.array_equal(found.images.train.pixels, published["train"].pixels[:120])
    assert len(found.images.test.labels) == 20
    data = found.data(((0.5,) * 3, (0.5,) * 3))
    assert (len(data.train), len(data.val), len(data.test)) == (108, 12, 20)
    with pytest.raises(pack.PackError, match="part1, which has all test images and the first sheets, is needed"):
        pack.unpack([second])
    content = {
        "networks": ["resnet56", "resnet20"], "data": found.share, "partial": found.partial, "dry_run": False,
        "splits": {"train": 108, "val": 12, "test": 20}, "plan": {}, "teacher": {}, "runs": [], "begun": {},
        "schedules": {}, "failed": {}, "warnings": ["not captured"],
        "device": "a device", "versions": {"python": "3", "torch": "2", "cuda": None},
        "commit": "abc", "date": "today", "settings": ["batch_size=128"], "command": "train.sh", "seeds": 1,
    }  # fmt: skip
    assert "**120 of 200 training images**" in train_report.markdown(content)
    assert "Not the whole training set" in train_report.markdown(content)
    assert "Warning: not captured" in train_report.markdown(content)
    assert "Nothing is planned yet" in train_report.markdown(content)


def test_a_sheet_that_is_damaged_missing_or_another_is_named(cifar: Path, tmp_path: Path) -> None:
    first, _ = pack.pack(pack.published(cifar), tmp_path / "packed", per_sheet=30)

    shutil.copy(first / "train_00.webp", first / "train_01.webp")
    with pytest.raises(pack.PackError, match=r"train_01\.webp does not hold the pixels that were packed"):
        pack.unpack([first])
    (first / "train_01.webp").write_bytes(b"RIFF")
    with pytest.raises(pack.PackError, match=r"train_01\.webp cannot be decoded"):
        pack.unpack([first])
    (first / "train_01.webp").unlink()
    with pytest.raises(pack.PackError, match=r"sheet train_01\.webp is missing, while train_03\.webp is there"):
        pack.unpack([first])


def test_sheets_without_a_manifest_are_read_unchecked_until_sealed(tmp_path: Path, cifar: Path) -> None:
    first, _ = pack.pack(pack.published(cifar), tmp_path / "packed", per_sheet=1000)
    (first / "manifest.json").unlink()

    assert not pack.unpack([first]).checked
    pack.seal(first)
    assert pack.unpack([first]).checked


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_the_epochs_fill_the_time_and_no_more() -> None:
    speeds = {"lit": Speed(3e-5, 0.2, 8.0), "kd": Speed(2e-5, 0.2, 5.0), "scratch": Speed(1e-5, 0.2, 3.0)}
    epochs = train_plan.epochs_that_fit(speeds, 45_000, 300.0)
    lit = 0.7 * 3e-5 + 0.3 * 2e-5
    partners = [Run("kd", round(epochs * lit / 2e-5), 0, TIME), Run("scratch", round(epochs * lit / 1e-5), 0, TIME)]
    everything = [*(Run(way, epochs, 0, EPOCHS) for way in train_plan.WAYS), *partners]
    seconds = sum(train_plan.expected_seconds(run, speeds, 45_000) for run in everything)

    assert 240.0 < seconds < 300.0
    assert train_plan.epochs_that_fit(speeds, 45_000, 1.0) == 1
    assert train_plan.epochs_that_fit(speeds, 45_000, 1e6) == train_plan.PAPER_EPOCHS


def test_partners_get_the_epochs_that_fit_into_the_seconds_of_lit() -> None:
    plan: dict[str, Any] = {"epochs": 10, "equal_time": {}}
    finished: dict[str, dict[str, Any]] = {"lit-10-epochs-seed0": {"seconds": 30.0}}
    assert train_plan.partner_epochs(plan, finished) == {}
    finished["kd-10-epochs-seed0"] = {"seconds": 20.0}
    plan["equal_time"] = train_plan.partner_epochs(plan, finished)
    finished["scratch-10-epochs-seed0"] = {"seconds": 10.0}
    finished["lit-10-epochs-seed0"] = {"seconds": 60.0}  # what is known stays
    plan["equal_time"] = train_plan.partner_epochs(plan, finished)

    assert plan["equal_time"] == {"kd": 15, "scratch": 60}
    assert [run.name for run in train_plan.runs(plan, 1)] == [
        "lit-10-epochs-seed0",
        "kd-10-epochs-seed0",
        "scratch-10-epochs-seed0",
        "kd-15-epochs-seed0",
        "scratch-60-epochs-seed0",
    ]
