"""The stages that run compute-sanitizer over a bare program: the compiled loss, and little else."""

from __future__ import annotations

import re
import shutil
from typing import Any

from benchmarks.gpu.session import Session

Fields = dict[str, Any]
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")
_REFUSED = re.compile(r"Device not supported|Unable to|could not|not supported", re.IGNORECASE)
_CALLS = re.compile(r"^(\d+) calls of the loss$", re.MULTILINE)


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
    # Our kernels alone: under the checker each of torch's takes many times as long, too.
    before = [program, "--tool", tool, "--error-exitcode", "86", "--kernel-name", "kernel_substring=lit_fast"]
    bare = session.python("-m", "benchmarks.gpu.bare", "--device", session.device)
    done = session.run([*before, *bare], limit, **environment)
    return verdict(done.status, done.output)


def verdict(status: int | None, output: str) -> Fields:
    """What a checker's end means; its summary counts, not its status alone."""
    found = [int(count) for count in _SUMMARY.findall(output)]
    calls = sum(int(count) for count in _CALLS.findall(output))
    ran = f"{calls} calls under it"
    if found and sum(found) > 0:
        return {"status": "failed", "detail": f"{sum(found)} errors; {ran}"}
    if status is None:
        return {"status": "timed out", "detail": ran}
    if not found or calls == 0:
        refused = _REFUSED.search(output)
        why = output[max(refused.start() - 80, 0) : refused.end() + 120] if refused else output.strip()[-300:]
        return {"status": "not available" if refused else "failed", "detail": " ".join(why.split()) or "no output"}
    return {"status": "passed" if status == 0 else "failed", "detail": f"0 errors; {ran}"}
