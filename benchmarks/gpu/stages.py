"""The stages, in order. A new one is a function (session, seconds it may take) -> fields, and a line in STAGES.

Every function returns at least ``status``: "passed", "failed", "timed out", "not available" (a tool that is missing),
"none yet" (nothing to run) or, for the bars, "missed"; and ``detail``, a line for the summary.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import bars
from benchmarks.gpu import checkers, tests
from benchmarks.gpu.session import Done, Session
from benchmarks.suites import SUITES

Fields = dict[str, Any]
GPU_ONLY = ("launches", "launches_forward", "kernel_us", "kernels")  # fields of rows
_MARGIN = 30.0  # seconds from the last moment at which a benchmark begins to the time at which it is killed


@dataclass(frozen=True)
class Stage:
    """One stage; `share` of the whole time is the most that it may take."""

    name: str
    share: float
    run: Callable[[Session, float], Fields]


def environment(session: Session, limit: float) -> Fields:
    if not session.dry_run:
        session.run(["nvidia-smi"], limit / 3)
    done = session.run(session.python("-m", "benchmarks.machine"), limit)
    session.facts = last_json(done.output)
    if done.status != 0 or not session.facts:
        return {"status": "timed out" if done.status is None else "failed", "detail": tail(done.output)}
    facts = session.facts
    versions = {name: facts["versions"][name] for name in ("python", "torch", "cuda", "triton", "nvcc")}
    detail = f"{facts['device']}; " + ", ".join(f"{name} {version}" for name, version in versions.items())
    if facts["kind"] != session.device:
        return {"status": "failed", "detail": f"torch sees no CUDA device: {detail}"}
    return {"status": "passed", "detail": detail}


def build(session: Session, limit: float) -> Fields:
    """In place; for this device's architecture alone."""
    settings = {"MAX_JOBS": str(min(16, os.cpu_count() or 1))}
    if session.facts.get("capability"):
        settings["TORCH_CUDA_ARCH_LIST"] = session.facts["capability"]
    built = session.run(session.python("setup.py", "build_ext", "--inplace"), limit, **settings)
    if built.status != 0:
        detail = first_error(built.output) or tail(built.output)
        return {"status": "timed out" if built.status is None else "failed", "detail": detail}
    code = "import json, lit_fast; print(json.dumps(lit_fast.build_info()))"
    info = last_json(session.run(session.python("-c", code), 60).output)
    detail = (
        f"{built.seconds:.0f} s; for {', '.join(info.get('cuda_archs') or ['the CPU alone'])}; {info.get('reason')}"
    )
    right = info.get("extension") and (session.dry_run or info["cuda_archs"])
    refused = re.search(r"building for the CPU alone: .*", built.output)
    if refused:
        detail += f"; {refused[0]}"
    return {"status": "passed" if right else "failed", "detail": detail, "compile_s": built.seconds, "build": info}


def benchmarks(session: Session, limit: float) -> Fields:
    """Every suite in a process of its own, by the plain runner: it knows the time limit, and keeps what it has."""
    rows: list[dict[str, Any]] = []
    problems = []
    cut = False
    end = time.monotonic() + limit
    parts = [part for _, part in SUITES.values()]
    for number, name in enumerate(SUITES):
        share = parts[number] / sum(parts[number:])
        done, found = _suite(session, name, share * (end - time.monotonic()))
        rows += found.pop("rows", [])
        session.results |= {key: found[key] for key in ("copy_gb_s", "threads") if key in found}
        cut |= done.status is None
        if done.status:
            problems.append(f"{name}: {tail(done.output)}")
    measured, late, wrong = _sorted_rows(rows)
    problems += [f"{row['setting']}, {row['variant']}: {row['status']}" for row in wrong]
    if session.dry_run:
        for row in rows:
            row |= dict.fromkeys(GPU_ONLY, "not measured")
        session.results["copy_gb_s"] = "not measured"
    session.results |= {"rows": rows, "tiny": session.dry_run}
    detail = f"{len(measured)} rows measured, {len(late)} out of time, {len(problems)} problems"
    status = "failed" if problems or not measured else "timed out" if cut else "passed"
    return {"status": status, "detail": "; first: ".join([detail, *problems[:1]]), "problems": problems}


def _suite(session: Session, name: str, limit: float) -> tuple[Done, Fields]:
    """Run a suite; the end of its process and its results file, empty if there is none."""
    out = session.scratch / f"{name}.json"
    command = session.python("-m", "benchmarks.run", "--device", session.device, "--out", str(out), "--only", name)
    begin = max(limit - min(_MARGIN, limit / 2), 0.0)
    command += ["--seconds", f"{begin:.0f}", *(["--tiny"] if session.dry_run else [])]
    done = session.run(command, limit)
    try:
        return done, json.loads(out.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return done, {}


def _sorted_rows(rows: list[dict[str, Any]]) -> tuple[list[Fields], list[Fields], list[Fields]]:
    """Those that were measured, came too late, and failed; a backend that is not there is none of them."""
    measured = [row for row in rows if row["status"] == "measured"]
    late = [row for row in rows if row["status"].startswith("out of time")]
    known = ("measured", "out of time", "not available")
    return measured, late, [row for row in rows if not row["status"].startswith(known)]


def judge(session: Session, _limit: float) -> Fields:
    """The bars of a GPU, also where none is there to measure."""
    verdicts = bars.judge({"rows": [], **session.results}, "cuda")
    session.results["bars"] = verdicts
    counts = {
        kind: sum(bar["verdict"] == kind for bar in verdicts) for kind in (bars.PASS, bars.FAIL, bars.NOT_MEASURED)
    }
    detail = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return {"status": "missed" if counts[bars.FAIL] else "passed", "detail": detail}


def timeline(session: Session, limit: float) -> Fields:
    """Where the time of a step goes, as a picture and traces."""
    pair = ["--teacher", "resnet110", "--student", "resnet20", "--precision", "bf16"]
    if session.dry_run:
        pair = ["--teacher", "resnet20", "--student", "resnet20", "--batch-size", "2", "--image-size", "8"]
    drawn = session.scratch / "timeline.png"
    done = session.run(session.python("-m", "lit_fast", "bench", *pair, "--profile", str(drawn)), limit)
    kept = sorted(session.scratch.glob("timeline*"))
    for path in kept:
        shutil.copy(path, session.out / path.name)
    if done.status != 0:
        return {"status": "timed out" if done.status is None else "failed", "detail": tail(done.output)}
    return {"status": "passed", "detail": ", ".join(path.name for path in kept)}


def figure(session: Session, limit: float) -> Fields:
    command = session.python(
        "-m", "benchmarks.plot", str(session.out / "results.json"), "--out", str(session.out / "loss.png")
    )
    done = session.run(command, limit)
    if "No module named 'matplotlib'" in done.output:
        return {"status": "not available", "detail": "matplotlib is not installed"}
    if done.status != 0:
        return {"status": "timed out" if done.status is None else "failed", "detail": tail(done.output)}
    return {"status": "passed", "detail": "loss.png"}


STAGES = (
    Stage("environment", 0.10, environment),
    Stage("build", 0.25, build),
    Stage("tests", 0.25, tests.everything),
    Stage("capture", 0.08, tests.capture),
    Stage("memcheck", 0.10, checkers.memcheck),
    Stage("racecheck", 0.10, checkers.racecheck),
    Stage("benchmarks", 1.00, benchmarks),
    Stage("bars", 1.00, judge),
    Stage("timeline", 0.10, timeline),
    Stage("figure", 1.00, figure),
)
_LAST = 30.0  # seconds kept for what comes after the benchmarks


def run_stage(stage: Stage, session: Session, whole: float) -> Fields:
    """Run one stage within its share of the `whole` time; nothing that happens in it stops the script."""
    after = _LAST if stage.name not in ("bars", "timeline", "figure") else 0.0
    limit = min(stage.share * whole, session.left() - after)
    if limit <= 0 and stage.name != "bars":
        return {"status": "skipped", "detail": "out of time"}
    session.log(f"\n===== {stage.name} (at most {limit:.0f} s)")
    try:
        if session.fail == stage.name:
            session.run(session.python("-c", "raise SystemExit('planted failure')"), limit)
            raise RuntimeError("planted failure")
        return stage.run(session, limit)
    except Exception as error:
        session.log(f"{type(error).__name__}: {error}")
        return {"status": "failed", "detail": f"{type(error).__name__}: {error}"}


def last_json(output: str) -> dict[str, Any]:
    """The last line that is a JSON object; empty if there is none."""
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return {}


def tail(output: str, lines: int = 3) -> str:
    """The last lines of a command's output, as one."""
    return " / ".join(line.strip() for line in output.strip().splitlines()[-lines:])[-400:] or "no output"


def first_error(output: str) -> str:
    """The first line of a compiler or linker that says what is wrong; empty if there is none."""
    found = re.search(r"^.*\b(?:fatal error|error|undefined reference|\w*Error)\b:? .*$", output, re.MULTILINE)
    return found[0].strip()[:400] if found else ""
