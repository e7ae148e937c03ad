"""The stages that run compute-sanitizer over a short selection of tests."""

from __future__ import annotations

import re
import shutil
from typing import Any

from benchmarks.gpu.session import Session
from benchmarks.gpu.tests import GPU_TESTS, run_pytest

Fields = dict[str, Any]
MOST = 8  # tests: under the checker each takes many times as long
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")
_REFUSED = re.compile(r"Device not supported|Unable to|could not|not supported", re.IGNORECASE)


def memcheck(session: Session, limit: float) -> Fields:
    """Accesses out of bounds; without torch's cache, so that one tensor's end is not inside another."""
    return _check(session, limit, "memcheck", PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def racecheck(session: Session, limit: float) -> Fields:
    """Races in shared memory."""
    return _check(session, limit, "racecheck")


def _check(session: Session, limit: float, tool: str, **environment: str) -> Fields:
    program = shutil.which("compute-sanitizer", path=session.environment()["PATH"])
    if program is None:
        return {"status": "not available", "detail": "compute-sanitizer is not on the PATH"}
    tests = selection(session.passed) or [GPU_TESTS]
    before = (program, "--tool", tool, "--error-exitcode", "86")
    done, tally = run_pytest(session, limit, tests, before=before, **environment)
    passed = sum(test["outcome"] == "passed" for test in tally)
    return {**verdict(done.status, done.output, passed), "tests": tests}


def selection(passed: list[str], most: int = MOST) -> list[str]:
    """Tests of the compiled backend if there are any, from as many test functions as possible, short ones first."""
    # Parametrised ones alone: others look at the device through the profiler, which a checker does not bear.
    native = [test for test in passed if re.search(r"\[(.*\W)?native\b", test)]
    by_function: dict[str, list[str]] = {}
    for test in native or passed:
        by_function.setdefault(test.partition("[")[0], []).append(test)
    turns = max(map(len, by_function.values()), default=0)
    in_turn = [tests[i] for i in range(turns) for tests in by_function.values() if i < len(tests)]
    return in_turn[:most]


def verdict(status: int | None, output: str, passed: int) -> Fields:
    """What a checker's end means; its summary counts, not its status alone."""
    found = [int(count) for count in _SUMMARY.findall(output)]
    ran = f"{passed} tests passed under it"
    if found and sum(found) > 0:
        return {"status": "failed", "detail": f"{sum(found)} errors; {ran}"}
    if status is None:
        return {"status": "timed out", "detail": ran}
    if not found or passed == 0:
        refused = _REFUSED.search(output)
        why = output[max(refused.start() - 80, 0) : refused.end() + 120] if refused else output.strip()[-300:]
        return {"status": "not available" if refused else "failed", "detail": " ".join(why.split()) or "no output"}
    return {"status": "passed" if status == 0 else "failed", "detail": f"0 errors; {ran}"}
