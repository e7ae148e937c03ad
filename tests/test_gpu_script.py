"""benchmarks/gpu/run.sh, dry: every stage is gone through on the CPU; a failure or the time limit never stops it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from everyday import exhaustive

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # benchmarks is no part of the installed package

from benchmarks import journal  # noqa: E402
from benchmarks.gpu import checkers, results, stages, tests  # noqa: E402
from benchmarks.gpu.session import Done, Session  # noqa: E402
from benchmarks.gpu.summary import sections  # noqa: E402

STAGES = [stage.name for stage in stages.STAGES]
FILES = {"journal.jsonl", "log.txt", "loss.png", "results.json", "summary.md", "timeline.png"}
# What compute-sanitizer does, as far as the script can tell: the program runs, and a summary follows.
CHECKER = """#!/bin/sh
while [ "$1" != "{python}" ]; do shift; done
"$@" && echo "========= ERROR SUMMARY: 0 errors"
"""


def command(out: Path, *options: str) -> list[str]:
    return [str(ROOT / "benchmarks/gpu/run.sh"), str(out), "--dry-run", *options]


def environment(path: Path | None = None) -> dict[str, str]:
    found = {**os.environ, "PYTHON": sys.executable}
    if path is not None:
        found["PATH"] = f"{path}{os.pathsep}{found['PATH']}"
    return found


def dry_run(out: Path, *options: str, path: Path | None = None) -> tuple[subprocess.CompletedProcess[str], dict]:
    """The finished script and its results.json."""
    done = subprocess.run(
        command(out, *options), env=environment(path), capture_output=True, text=True, check=False, cwd=out.parent
    )
    assert (out / "results.json").exists(), done.stderr
    return done, json.loads((out / "results.json").read_text())


def statuses(found: dict) -> dict[str, str]:
    return {stage["name"]: stage["status"] for stage in found["stages"]}


def sources() -> dict[Path, int]:
    """Every file of the project that the script could touch, with the time of its last change."""
    folders = ("lit_fast", "benchmarks", "tests", "csrc", "kernels", "build", "gpu-results")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    ignored = {"__pycache__", ".git", ".hypothesis"}  # git refreshes its index; tests beside this one write, too
    return {path: path.stat().st_mtime_ns for path in [*files, *ROOT.glob("*")] if not ignored & set(path.parts)}


@exhaustive
def test_a_dry_run_goes_through_every_stage_and_a_second_call_repeats_nothing(tmp_path: Path) -> None:
    checker = tmp_path / "bin" / "compute-sanitizer"
    checker.parent.mkdir()
    checker.write_text(CHECKER.format(python=sys.executable))
    checker.chmod(0o755)
    before = sources()

    done, found = dry_run(tmp_path / "out", "--minutes", "60", path=checker.parent)  # no limit on a busy machine

    assert done.returncode == 0, done.stdout + done.stderr
    assert sources() == before
    status = statuses(found)
    assert list(status) == STAGES
    assert set(status.values()) == {"passed"}, status
    assert found["tests"]["passed"] > 0
    assert found["tests"]["failed"] == 0

    assert found["device"] == "cpu (dry run)"
    assert found["commit"]
    assert found["versions"]["torch"]
    measured = [row for row in found["rows"] if row["status"] == "measured"]
    assert {"plain", "eager", "runner", "reference", "compile", "native"} <= {row["variant"] for row in measured}
    assert {row["suite"] for row in measured} == {"step", "loss", "overhead", "data", "linear", "tricks", "teacher"}
    assert {row["launches"] for row in found["rows"]} == {"not measured"}
    assert found["copy_gb_s"] == "not measured"
    assert {bar["verdict"] for bar in found["bars"]} == {"NOT MEASURED"}
    assert not any("failed" in finding for finding in found["probe"])

    summary = (tmp_path / "out" / "summary.md").read_text()
    assert all(f"| {name} |" in summary for name in STAGES)
    assert all(line in done.stdout for line in summary.splitlines())
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES

    lines = journal.read(tmp_path / "out" / "journal.jsonl")
    again, same = dry_run(tmp_path / "out", "--minutes", "60", path=checker.parent)
    new = journal.read(tmp_path / "out" / "journal.jsonl")[len(lines) :]
    assert again.returncode == 0, again.stdout + again.stderr
    assert {entry["entry"] for entry in new} == {"call", "stage", "facts"}
    assert (same["rows"], same["tests"], same["probe"]) == (found["rows"], found["tests"], found["probe"])
    assert [len(same["calls"]), len(found["calls"])] == [2, 1]


@exhaustive
def test_killed_at_any_second_the_folder_is_whole_and_the_next_call_goes_on(tmp_path: Path) -> None:
    """SIGKILL, to the script and all that it runs: nothing can be tidied up."""
    out = tmp_path / "out"
    chosen = ["--only", "environment", "build", "tests", "loss", "bars", "--minutes", "60"]
    draw, held = random.Random(os.urandom(8)), 0
    for _ in range(3):
        process = subprocess.Popen(
            command(out, *chosen), env=environment(), start_new_session=True, stdout=subprocess.DEVNULL
        )
        seconds = draw.uniform(1, 12)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        for child in children(process.pid):
            os.kill(child, signal.SIGKILL)
        process.wait()
        entries = journal.read(out / "journal.jsonl")
        assert len(entries) >= held, f"killed after {seconds:.1f} s"
        held = len(entries)
        made = results.write(out) if out.is_dir() else {"rows": [], "tests": {"passed": 0}}
        assert len(made["rows"]) == sum(entry["entry"] == "row" for entry in entries)
        assert made["tests"]["passed"] == len(
            {entry["id"] for entry in entries if entry["entry"] == "test" and entry["outcome"] == "passed"}
        )
    done, found = dry_run(out, *chosen)
    assert done.returncode == 0, done.stdout
    entries = journal.read(out / "journal.jsonl")
    for sort, key in (("test", "id"), ("row", "setting")):
        names = [(entry[key], entry.get("variant")) for entry in entries if entry["entry"] == sort]
        # Rows of one setting come together: a kill between two of them measures that setting once more.
        assert len(names) - len(set(names)) <= (0 if sort == "test" else 3 * 6), names
    assert set(statuses(found).values()) == {"passed"}


def children(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    for parent in found:
        found += [child for child, of in pairs if of == parent]
    return found


def test_a_failing_stage_is_recorded_and_the_next_one_runs(tmp_path: Path) -> None:
    done, found = dry_run(tmp_path / "out", "--only", "build", "environment", "bars", "--fail", "build")
    assert done.returncode == 1
    assert statuses(found) == {"environment": "passed", "build": "failed", "bars": "passed"}
    assert "planted failure" in found["stages"][1]["detail"]
    assert "planted failure" in (tmp_path / "out" / "log.txt").read_text()


@exhaustive
def test_the_time_limit_cuts_stages_short_and_the_bars_come_all_the_same(tmp_path: Path) -> None:
    start = time.monotonic()
    done, found = dry_run(tmp_path / "out", "--minutes", "0.2")
    assert time.monotonic() - start < 12 + 15  # its own start and end, and killing what runs
    status = statuses(found)
    assert done.returncode == 1
    assert status["teacher"] == "skipped"
    assert status["bars"] == "passed"
    assert list(status) == STAGES


# -- the journal and what is made of it --------------------------------------------------------------------------------


def test_a_torn_line_is_passed_over_and_the_next_one_stands_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal.append(path, "row", setting="a")
    with path.open("a") as file:
        file.write('{"entry": "row", "sett')
    journal.append(path, "row", setting="b")
    assert [entry["setting"] for entry in journal.read(path, "row")] == ["a", "b"]


def test_every_prefix_of_a_journal_makes_results(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    call = {"device": "cuda", "dry_run": False, "date": "d", "commit": "c", "command": "x", "minutes": 5, "again": []}
    journal.append(path, "call", **call)
    journal.append(path, "facts", device="GPU", kind="cuda", copy_gb_s=3000.0, versions={"torch": "2"})
    journal.append(path, "test", stage="tests", id="t::a", outcome="failed", seconds=1.0, why="E   no")
    row = {"suite": "loss", "setting": "cifar-b32-float16", "family": "cifar", "variant": "native", "mode": None}
    row |= {"status": "measured", "best": True, "median_us": 5.0, "times_eager": 9.0, "batch": 32, "dtype": "float16"}
    journal.append(path, "row", **row)
    journal.append(path, "stage", name="tests", status="failed", detail="", seconds=1.0)
    whole = path.read_bytes()
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        assert sections(results.of_journal(journal.read(path)))
    found = results.of_journal(journal.read(path))
    verdicts = {bar["bar"]: bar["verdict"] for bar in found["bars"]}
    assert verdicts["AMP, batch 32, against eager"] == "PASS"
    assert "t::a`: E   no" in "\n".join(sections(found))


def test_what_is_done_again_replaces_what_was_found(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    call = {"device": "cuda", "dry_run": False, "date": "d", "commit": "c", "command": "x", "minutes": 5}
    journal.append(path, "call", **call, again=[])
    journal.append(path, "test", stage="tests", id="t::a", outcome="failed", seconds=1.0)
    journal.append(path, "probe", stage="probe", name="p", failed="no")
    row = {"suite": "loss", "setting": "s", "mode": None, "status": "measured", "best": True, "median_us": 1.0}
    for stage, variant in (("loss", "native"), ("compiled", "compile")):
        journal.append(path, "row", stage=stage, variant=variant, **row)
    journal.append(path, "stage", name="tests", status="failed", detail="", seconds=1.0)
    journal.append(path, "call", **call, again=["tests", "loss"])
    journal.append(path, "probe", stage="probe", name="p", us=1.0)
    found = results.of_journal(journal.read(path))
    assert found["tests"]["failed"] == 0
    assert found["stages"] == []
    assert [one["variant"] for one in found["rows"]] == ["compile"]
    assert [finding.get("us") for finding in found["probe"]] == [1.0]


def test_failed_tests_run_again_with_other_code_alone(tmp_path: Path) -> None:
    session = Session(tmp_path, tmp_path, 0.0, False, None)
    for commit, expected in (("one", ["t::good", "t::bad"]), ("two", ["t::good"])):
        session.note("call", commit=commit)
        if commit == "one":
            session.note("test", stage="tests", id="t::good", outcome="passed")
            session.note("test", stage="tests", id="t::bad", outcome="failed")
        assert tests._settled(session) == expected


# -- what the stages make of what they see ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (0, "========= COMPUTE-SANITIZER\n3 calls of the loss\n========= ERROR SUMMARY: 0 errors\n", "passed"),
        (86, "========= Invalid __global__ read\n========= ERROR SUMMARY: 2 errors\n", "failed"),
        (0, "3 calls of the loss\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", "passed"),
        (86, "3 calls of the loss\n========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n", "failed"),
        (0, "========= ERROR SUMMARY: 0 errors\n", "failed"),  # nothing ran under it
        (1, "3 calls of the loss\n========= ERROR SUMMARY: 0 errors\n", "failed"),  # the program failed
        (None, "3 calls of the loss\n", "timed out"),
        (255, "========= Error: Device not supported. Please refer to the documentation\n", "not available"),
        (1, "Traceback ...\n", "failed"),
    ],
)
def test_the_end_of_a_checker_is_understood(status: int | None, output: str, expected: str) -> None:
    assert checkers.verdict(status, output)["status"] == expected


def test_of_a_build_that_fails_the_first_error_is_told() -> None:
    output = (
        "[1/2] c++ -Werror=x a.cpp\na.cpp:3:1: error: 'x' was not declared\na.cpp:9:1: error: more\nninja: stopped\n"
    )
    assert stages.first_error(output) == "a.cpp:3:1: error: 'x' was not declared"
    assert stages.first_error("RuntimeError: CUDA version mismatch\n") == "RuntimeError: CUDA version mismatch"
    assert stages.first_error("[1/2] c++ -Werror a.cpp\n") == ""


@pytest.mark.parametrize(
    ("status", "outcomes", "expected"),
    [
        (0, ["passed", "skipped"], "passed"),
        (0, ["skipped"], "skipped"),
        (1, ["passed", "failed"], "failed"),
        (2, ["passed"], "failed"),  # pytest itself was interrupted
        (5, [], "none yet"),
        (None, ["passed"], "timed out"),
    ],
)
def test_the_end_of_pytest_is_understood(status: int | None, outcomes: list[str], expected: str) -> None:
    tally = [{"id": str(i), "outcome": outcome, "seconds": 0.1} for i, outcome in enumerate(outcomes)]
    fields = tests.outcome(Done(status, "", 1.0), tally)
    assert fields["status"] == expected
    assert fields["counts"]["passed"] == outcomes.count("passed")


def test_tests_that_finished_before_the_end_are_counted(tmp_path: Path) -> None:
    page = tmp_path / "test_some.py"
    page.write_text(
        "import os, pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert False\n"
        "@pytest.mark.skip\ndef test_skipped(): pass\n"
        "@pytest.fixture\ndef broken():\n    yield\n    raise RuntimeError\n"
        "def test_torn_down(broken): pass\n"
        "def test_killed(): os._exit(3)\n"
    )
    path, seen = tmp_path / "journal.jsonl", tmp_path / "seen.json"
    variables = {**os.environ, "LIT_FAST_JOURNAL": str(path), "PYTHONPATH": str(ROOT), "LIT_FAST_SEEN": str(seen)}
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "benchmarks.gpu.tally", str(page)]
    run += ["-p", "no:randomly", "-p", "no:random_order"]  # the last test of the file ends the process
    seen.write_text("[]")
    subprocess.run(run, env=variables, cwd=tmp_path, capture_output=True, check=False)
    found = {test["id"].partition("::")[2]: test for test in journal.read(path, "test")}
    assert {name: test["outcome"] for name, test in found.items()} == {
        "test_good": "passed",
        "test_bad": "failed",
        "test_skipped": "skipped",
        "test_torn_down": "failed",
    }
    assert "assert False" in found["test_bad"]["why"]
    # A second run leaves out what it is told to.
    page.write_text(page.read_text().replace("def test_killed(): os._exit(3)", ""))
    seen.write_text(json.dumps([test["id"] for test in found.values() if test["outcome"] != "failed"]))
    path.unlink()
    subprocess.run(run, env=variables, cwd=tmp_path, capture_output=True, check=False)
    assert {test["id"].partition("::")[2] for test in journal.read(path, "test")} == {"test_bad", "test_torn_down"}


def test_processes_get_ready_beside_each_other_and_measure_in_turns(tmp_path: Path) -> None:
    """Nobody measures before all are ready, and never two at a time; one that dies is not waited for."""
    program = """
import sys, time
from pathlib import Path
from benchmarks.turns import Turns
folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
turns = Turns(folder / "turns", 3, time.monotonic() + 60)
time.sleep(seconds)
if seconds > 1:
    turns.ready()
    raise SystemExit
ready = time.time()
with turns.measuring():
    start = time.time()
    time.sleep(0.3)
    print(ready, start, time.time())
"""
    run = [sys.executable, "-c", program, str(tmp_path)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = [
        subprocess.Popen([*run, seconds], stdout=subprocess.PIPE, text=True, env=variables)
        for seconds in ("0", "0.5", "1.2")
    ]
    found = sorted(tuple(map(float, out.split())) for out in (one.communicate()[0] for one in began) if out)
    assert len(found) == 2
    latest = max(ready for ready, _, _ in found)
    assert all(start >= latest for _, start, _ in found)
    (_, _, first_end), (_, second_start, _) = sorted(found, key=lambda times: times[1])
    assert second_start >= first_end
