"""benchmarks/gpu/run.sh, dry: every stage is gone through on the CPU; a failure or the time limit never stops it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # benchmarks is no part of the installed package

from benchmarks.gpu import checkers, stages, tests  # noqa: E402
from benchmarks.gpu.session import Done  # noqa: E402
from benchmarks.suites import SUITES  # noqa: E402

STAGES = [
    "environment",
    "build",
    "tests",
    "capture",
    "memcheck",
    "racecheck",
    "benchmarks",
    "bars",
    "timeline",
    "figure",
]
# What compute-sanitizer does, as far as the script can tell: the program runs, and a summary follows.
CHECKER = """#!/bin/sh
while [ "$1" != "{python}" ]; do shift; done
"$@" && echo "========= ERROR SUMMARY: 0 errors"
"""


def dry_run(out: Path, *options: str, path: Path | None = None) -> tuple[subprocess.CompletedProcess[str], dict]:
    """The finished script and its results.json."""
    environment = {**os.environ, "PYTHON": sys.executable}
    if path is not None:
        environment["PATH"] = f"{path}{os.pathsep}{environment['PATH']}"
    command = [str(ROOT / "benchmarks/gpu/run.sh"), str(out), "--dry-run", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=out.parent)
    assert (out / "results.json").exists(), done.stderr
    return done, json.loads((out / "results.json").read_text())


def statuses(results: dict) -> dict[str, str]:
    return {stage["name"]: stage["status"] for stage in results["stages"]}


def sources() -> dict[Path, int]:
    """Every file of the project that the script could touch, with the time of its last change."""
    folders = ("lit_fast", "benchmarks", "tests", "csrc", "kernels", "build", "gpu-results")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    ignored = {"__pycache__", ".git", ".hypothesis"}  # git refreshes its index; tests beside this one write, too
    return {path: path.stat().st_mtime_ns for path in [*files, *ROOT.glob("*")] if not ignored & set(path.parts)}


def test_a_dry_run_goes_through_every_stage_and_leaves_the_project_alone(tmp_path: Path) -> None:
    checker = tmp_path / "bin" / "compute-sanitizer"
    checker.parent.mkdir()
    checker.write_text(CHECKER.format(python=sys.executable))
    checker.chmod(0o755)
    before = sources()

    done, results = dry_run(tmp_path / "out", "--minutes", "60", path=checker.parent)  # no limit on a busy machine

    assert done.returncode == 0, done.stdout + done.stderr
    assert sources() == before
    status = statuses(results)
    assert list(status) == STAGES
    assert status.pop("capture") in ("passed", "skipped", "none yet")
    assert set(status.values()) == {"passed"}, status
    by_name = {stage["name"]: stage for stage in results["stages"]}
    assert by_name["tests"]["counts"]["passed"] > 0
    assert by_name["tests"]["counts"]["failed"] == 0
    assert len(by_name["memcheck"]["tests"]) == len(by_name["racecheck"]["tests"]) > 1

    assert results["device"] == "cpu (dry run)"
    assert results["commit"]
    assert results["versions"]["torch"]
    measured = [row for row in results["rows"] if row["status"] == "measured"]
    assert {"eager", "reference", "compile", "native"} <= {row["variant"] for row in measured}
    assert {row["suite"] for row in measured} == set(SUITES)
    assert {row["launches"] for row in results["rows"]} == {"not measured"}
    assert results["copy_gb_s"] == "not measured"
    assert len(results["bars"]) >= 6
    assert {bar["verdict"] for bar in results["bars"]} == {"NOT MEASURED"}

    summary = (tmp_path / "out" / "summary.md").read_text()
    assert all(f"| {name} |" in summary for name in STAGES)
    assert all(line in done.stdout for line in summary.splitlines())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "log.txt",
        "loss.png",
        "results.json",
        "summary.md",
        "timeline-plain.json",
        "timeline-runner.json",
        "timeline.png",
    ]


def test_a_failing_stage_is_recorded_and_the_next_one_runs(tmp_path: Path) -> None:
    done, results = dry_run(tmp_path / "out", "--only", "build", "environment", "bars", "--fail", "build")
    status = statuses(results)
    assert done.returncode == 1
    assert (status["environment"], status["build"], status["bars"]) == ("passed", "failed", "passed")
    assert {status[name] for name in STAGES if name not in ("environment", "build", "bars")} == {"not chosen"}
    assert "planted failure" in results["stages"][1]["detail"]
    assert "planted failure" in (tmp_path / "out" / "log.txt").read_text()


def test_the_time_limit_cuts_stages_short_and_the_bars_come_all_the_same(tmp_path: Path) -> None:
    start = time.monotonic()
    done, results = dry_run(tmp_path / "out", "--minutes", "0.3")
    assert time.monotonic() - start < 18 + 12  # its own start and end, and killing what runs
    status = statuses(results)
    assert done.returncode == 1
    assert status["build"] in ("timed out", "skipped")
    assert status["benchmarks"] in ("timed out", "skipped")
    assert status["bars"] == "passed"
    assert list(status) == STAGES


# -- what the stages make of what they see ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "output", "passed", "expected"),
    [
        (0, "========= COMPUTE-SANITIZER\n3 passed\n========= ERROR SUMMARY: 0 errors\n", 3, "passed"),
        (86, "========= Invalid __global__ read\n========= ERROR SUMMARY: 2 errors\n", 3, "failed"),
        (0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", 3, "passed"),
        (86, "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n", 3, "failed"),
        (0, "========= ERROR SUMMARY: 0 errors\n", 0, "failed"),  # nothing ran under it
        (1, "========= ERROR SUMMARY: 0 errors\n", 2, "failed"),  # a test failed
        (None, "", 1, "timed out"),
        (255, "========= Error: Device not supported. Please refer to the documentation\n", 0, "not available"),
        (1, "Traceback ...\n", 0, "failed"),
    ],
)
def test_the_end_of_a_checker_is_understood(status: int | None, output: str, passed: int, expected: str) -> None:
    assert checkers.verdict(status, output, passed)["status"] == expected


def test_of_a_build_that_fails_the_first_error_is_told() -> None:
    output = (
        "[1/2] c++ -Werror=x a.cpp\na.cpp:3:1: error: 'x' was not declared\na.cpp:9:1: error: more\nninja: stopped\n"
    )
    assert stages.first_error(output) == "a.cpp:3:1: error: 'x' was not declared"
    assert stages.first_error("RuntimeError: CUDA version mismatch\n") == "RuntimeError: CUDA version mismatch"
    assert stages.first_error("[1/2] c++ -Werror a.cpp\n") == ""


def test_checkers_get_tests_of_the_compiled_backend_from_all_functions() -> None:
    right, again = "gpu/test_loss.py::test_right", "gpu/test_loss.py::test_repeats"
    profiled = "gpu/test_loss.py::test_native_launches"
    passed = [profiled, f"{right}[native-a]", f"{right}[b-native]", f"{right}[triton-a]", f"{again}[native]"]
    assert checkers.selection(passed, most=2) == [f"{right}[native-a]", f"{again}[native]"]
    assert checkers.selection(passed) == [f"{right}[native-a]", f"{again}[native]", f"{right}[b-native]"]
    assert checkers.selection([f"{right}[triton-a]"]) == [f"{right}[triton-a]"]


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
    tally = tmp_path / "tally"
    environment = {**os.environ, "LIT_FAST_TALLY": str(tally), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "benchmarks.gpu.tally", str(page)]
    subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=False)
    found = {test["id"].partition("::")[2]: test["outcome"] for test in tests.read(tally)}
    assert found == {
        "test_good": "passed",
        "test_bad": "failed",
        "test_skipped": "skipped",
        "test_torn_down": "failed",
    }
