"""The stage that runs pytest over tests/gpu, capture included."""

from __future__ import annotations

import json
import os
from typing import Any

from benchmarks.gpu.session import Done, Session

Fields = dict[str, Any]
GPU_TESTS = "tests/gpu"
PROCESSES = 12  # each takes a context of the GPU; compiling Triton's kernels takes a core
# In a dry run tests/gpu skips itself; these run as well, so that counting is tried.
DRY_RUN = ("tests/test_matrix.py", "gpu or float32-l2-contiguous or bfloat16-l1-mixed or a_wrong_loss")


def everything(session: Session, limit: float) -> Fields:
    parallel = []  # where pytest-xdist is there, several at a time
    if session.facts().get("versions", {}).get("pytest-xdist") and not session.dry_run:
        parallel = ["-p", "xdist", "-n", str(max(1, min(PROCESSES, os.cpu_count() or 1))), "--dist", "worksteal"]
    more, only = ([DRY_RUN[0]], DRY_RUN[1]) if session.dry_run else ([], "")
    done = run_pytest(session, limit, [*parallel, GPU_TESTS, *more], only)
    return outcome(done, session.entries("test"))


def run_pytest(session: Session, limit: float, words: list[str], only: str = "") -> Done:
    """Run the tests that `words` name, options of pytest among them, but those that the journal has verdicts of."""
    if not any((session.tree / word).exists() for word in words):
        return Done(5, f"{' '.join(words)}: not there", 0.0)
    seen = session.scratch / "seen.json"
    seen.write_text(json.dumps(_settled(session)), encoding="utf-8")
    command = session.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "benchmarks.gpu.tally", *words)
    if only:
        command += ["-k", only]
    return session.run(command, limit, LIT_FAST_SEEN=str(seen))


def _settled(session: Session) -> list[str]:
    """Tests that need not run again: those that passed, and those that failed with this very code."""
    calls = session.entries("call")
    same_code = {call["commit"] for call in calls} == {calls[-1]["commit"]} if calls else False
    tests = session.entries("test")
    return [test["id"] for test in tests if test["outcome"] != "failed" or same_code]


def outcome(done: Done, tally: list[Fields]) -> Fields:
    """Counts and status of the tests; of a test that ran in several calls the last verdict."""
    verdicts = {test["id"]: test["outcome"] for test in tally}
    counts = {kind: sum(verdict == kind for verdict in verdicts.values()) for kind in ("passed", "failed", "skipped")}
    failures = [name for name, verdict in verdicts.items() if verdict == "failed"]
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
