"""The stages that run pytest over tests/gpu."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

from benchmarks.gpu.session import Done, Session

Fields = dict[str, Any]
GPU_TESTS = "tests/gpu"
# Tests of CUDA graphs are known by their names.
CAPTURE = "capture or replay or graph"
SHORT = 2.0  # seconds; what the checkers may choose from
# In a dry run tests/gpu skips itself; these run instead, so that counting is tried as well.
DRY_RUN = ("tests/test_matrix.py", "float32-l2-contiguous or bfloat16-l1-mixed or a_wrong_loss")


def everything(session: Session, limit: float) -> Fields:
    """All but the capture tests."""
    parallel = []  # where pytest-xdist is there, several at a time: compiling Triton's kernels takes long
    if session.facts.get("versions", {}).get("pytest-xdist") and not session.dry_run:
        parallel = ["-p", "xdist", "-n", str(max(1, min(8, (os.cpu_count() or 1) // 2)))]
    done, tally = run_pytest(session, limit, [*parallel, GPU_TESTS], f"not ({CAPTURE})")
    if session.dry_run:
        instead, more = run_pytest(session, limit - done.seconds, [DRY_RUN[0]], DRY_RUN[1])
        done, tally = (instead if done.status in (0, 5) else done), tally + more
    passed = [test for test in tally if test["outcome"] == "passed" and test["seconds"] < SHORT]
    session.passed = [test["id"] for test in sorted(passed, key=lambda test: test["seconds"])]
    return outcome(done, tally)


def capture(session: Session, limit: float) -> Fields:
    """Tests that capture CUDA graphs and replay them."""
    return outcome(*run_pytest(session, limit, [GPU_TESTS], CAPTURE))


def run_pytest(
    session: Session, limit: float, words: list[str], only: str = "", before: tuple[str, ...] = (), **environment: str
) -> tuple[Done, list[Fields]]:
    """Run the tests that `words` name, options of pytest among them, with `before` in front of the command.

    Returns:
        The command, and id, outcome and seconds of each finished test.
    """
    tally = session.scratch / "tally.jsonl"
    tally.unlink(missing_ok=True)
    if not any((session.tree / word.partition("::")[0]).exists() for word in words):
        return Done(5, f"{shlex.join(words)}: not there", 0.0), []
    command = session.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "benchmarks.gpu.tally", *words)
    if only:
        command += ["-k", only]
    done = session.run([*before, *command], limit, LIT_FAST_TALLY=str(tally), **environment)
    return done, read(tally)


def read(tally: Path) -> list[Fields]:
    """The tests that finished; their seconds are those of the test itself, without fixtures."""
    if not tally.exists():
        return []
    calls: dict[str, float] = {}
    found = []
    for line in map(json.loads, tally.read_text(encoding="utf-8").splitlines()):
        if "call_seconds" in line:
            calls[line["id"]] = line["call_seconds"]
        else:
            found.append({**line, "seconds": calls.get(line["id"], line["seconds"])})
    return found


def outcome(done: Done, tally: list[Fields]) -> Fields:
    """Counts and status of a run of pytest."""
    counts = {kind: sum(test["outcome"] == kind for test in tally) for kind in ("passed", "failed", "skipped")}
    failures = [test["id"] for test in tally if test["outcome"] == "failed"]
    detail = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    if failures:
        detail += f"; first: {failures[0]}"
    status = "passed"
    if done.status is None:
        status = "timed out"
    elif failures or done.status not in (0, 5):
        status = "failed"
    elif counts["passed"] == 0:
        status = "none yet" if done.status == 5 else "skipped"
    return {"status": status, "detail": detail, "counts": counts, "failures": failures[:50]}
