"""The stages, in order. A new one is a function (session, seconds it may take) -> fields, and a line in STAGES.

Every function returns at least ``status``: "passed", "failed", "timed out", "not available" (a tool that is missing),
"none yet" (nothing to run) or, for the bars, "missed"; and ``detail``, a line for the summary. What it finds it writes
into the journal at once, so that a call which ends within a stage loses nothing and the next one goes on from there.
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
from benchmarks.checkout import ROOT
from benchmarks.gpu import carry, checkers, measuring, results, tests
from benchmarks.gpu.session import Session

Fields = dict[str, Any]
FINAL = ("passed", "skipped", "none yet")  # of an earlier call: not to be done again


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        most: seconds that it may take.
        run: see above.
        every: whether each call runs it anew: what it finds is this call's own.
    """

    name: str
    most: float
    run: Callable[[Session, float], Fields]
    every: bool = False


def environment(session: Session, limit: float) -> Fields:
    if not session.dry_run:
        session.run(["nvidia-smi"], limit / 3)
    done = session.run(session.python("-m", "benchmarks.machine"), limit)
    facts = last_json(done.output)
    if done.status != 0 or not facts:
        return {"status": "timed out" if done.status is None else "failed", "detail": tail(done.output)}
    session.note("facts", **facts)
    versions = {name: facts["versions"][name] for name in ("python", "torch", "cuda", "triton", "nvcc")}
    detail = f"{facts['device']}; " + ", ".join(f"{name} {version}" for name, version in versions.items())
    if facts["kind"] != session.device:
        return {"status": "failed", "detail": f"torch sees no CUDA device: {detail}"}
    return {"status": "passed", "detail": detail}


def build(session: Session, limit: float) -> Fields:
    """The extension: one that is there, if it was built from these sources for such a machine, else a new one."""
    start = time.monotonic()
    how, why = _ready_made(session)
    if not how:
        settings = {"MAX_JOBS": str(min(16, os.cpu_count() or 1))}
        if session.facts().get("capability"):
            settings["TORCH_CUDA_ARCH_LIST"] = session.facts()["capability"]
        built = session.run(session.python("setup.py", "build_ext", "--inplace"), limit, **settings)
        if built.status != 0:
            detail = first_error(built.output) or tail(built.output)
            return {"status": "timed out" if built.status is None else "failed", "detail": detail}
        refused = re.search(r"building for the CPU alone: .*", built.output)
        how = "; ".join(filter(None, ["built here", why, refused and refused[0]]))
    code = "import json, lit_fast; print(json.dumps(lit_fast.build_info()))"
    info = last_json(session.run(session.python("-c", code), 60).output)
    session.note("facts", build=info)
    archs = ", ".join(info.get("cuda_archs") or ["the CPU alone"])
    right = info.get("extension") and (session.dry_run or info["cuda_archs"])
    detail = f"{how}, {time.monotonic() - start:.0f} s; for {archs}; {info.get('reason')}"
    return {"status": "passed" if right else "failed", "detail": detail, "build": info}


def _ready_made(session: Session) -> tuple[str, str]:
    """How an extension was had without building it, or empty and why none was."""
    if session.dry_run:  # the copy of the tree has none
        found = sorted((ROOT / "lit_fast").glob("_C*.so"))
        for path in found:
            shutil.copy(path, session.tree / "lit_fast")
        return ("copied", "") if found else ("", "")
    if not session.carry.is_dir():
        return "", ""
    why = carry.fits(session.carry, session.tree, session.facts().get("capability"))
    session.extra |= carry.use(session.carry, session.tree, session.scratch, extension=why is None)
    return ("", why) if why else ("carried", "")


def probe(session: Session, limit: float) -> Fields:
    """What no CPU can tell, in a minute."""
    command = session.python("-m", "benchmarks.gpu.probe", *(["--tiny"] if session.dry_run else []))
    done = session.run(command, limit)
    if done.status == 0:
        done = session.run([*command, "--search"], limit - done.seconds)
    found = session.entries("probe")
    failed = [entry for entry in found if "failed" in entry]
    detail = f"{len(found)} findings, {len(failed)} failed" + (f"; first: {failed[0]['name']}" if failed else "")
    status = "timed out" if done.status is None else "failed" if done.status or failed else "passed"
    return {"status": status, "detail": detail if done.status in (0, None) else f"{detail}; {tail(done.output)}"}


def judge(session: Session, _limit: float) -> Fields:
    """The bars of a GPU, also where none is there to measure."""
    verdicts = results.write(session.out)["bars"]
    counts = {
        kind: sum(bar["verdict"] == kind for bar in verdicts) for kind in (bars.PASS, bars.FAIL, bars.NOT_MEASURED)
    }
    detail = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return {"status": "missed" if counts[bars.FAIL] else "passed", "detail": detail}


def timeline(session: Session, limit: float) -> Fields:
    """Where the time of a step goes, as a picture."""
    pair = ["--teacher", "resnet110", "--student", "resnet20", "--precision", "bf16"]
    if session.dry_run:
        pair = ["--teacher", "resnet20", "--student", "resnet20", "--batch-size", "2", "--image-size", "8"]
    drawn = session.scratch / "timeline.png"
    done = session.run(session.python("-m", "lit_fast", "bench", *pair, "--profile", str(drawn)), limit)
    if done.status != 0:
        return {"status": "timed out" if done.status is None else "failed", "detail": tail(done.output)}
    results.replace(session.out / drawn.name, drawn.read_bytes())
    return {"status": "passed", "detail": drawn.name}


def figure(session: Session, limit: float) -> Fields:
    drawn = session.scratch / "loss.png"
    done = session.run(
        session.python("-m", "benchmarks.plot", str(session.out / "results.json"), "--out", str(drawn)), limit
    )
    if "No module named 'matplotlib'" in done.output:
        return {"status": "not available", "detail": "matplotlib is not installed"}
    if done.status != 0:
        return {"status": "timed out" if done.status is None else "failed", "detail": tail(done.output)}
    results.replace(session.out / drawn.name, drawn.read_bytes())
    return {"status": "passed", "detail": drawn.name}


# What is worth most comes first, and nothing waits for torch.compile before the last third.
STAGES = (
    Stage("environment", 40, environment, every=True),
    Stage("build", 180, build, every=True),
    Stage("probe", 110, probe),
    Stage("tests", 150, tests.everything),
    Stage("step", 60, measuring.step),
    Stage("loss", 60, measuring.loss),
    Stage("overhead", 20, measuring.overhead),
    Stage("data", 40, measuring.data),
    Stage("linear", 30, measuring.linear),
    Stage("compiled", 150, measuring.compiled),
    Stage("tricks", 60, measuring.tricks),
    Stage("teacher", 40, measuring.teacher),
    Stage("memcheck", 60, checkers.memcheck),
    Stage("racecheck", 60, checkers.racecheck),
    Stage("timeline", 40, timeline),
    Stage("bars", 10, judge, every=True),
    Stage("figure", 20, figure, every=True),
)
_LAST = 8.0  # seconds kept for the bars and the figure


def run_stage(stage: Stage, session: Session) -> Fields:
    """Run one stage within its time; nothing that happens in it stops the script. Returns its record."""
    start = time.monotonic()
    fields = _outcome(stage, session)
    record = {"name": stage.name, **fields, "seconds": time.monotonic() - start}
    session.note("stage", **record)
    return record


def _outcome(stage: Stage, session: Session) -> Fields:
    known = [entry for entry in session.entries("stage") if entry["name"] == stage.name]
    if known and not stage.every and known[-1]["status"] in FINAL and known[-1]["detail"] != OUT_OF_TIME:
        return {key: known[-1][key] for key in known[-1] if key not in ("entry", "name", "seconds")}
    most = stage.most * (10 if session.dry_run else 1)  # a CPU that does other things as well
    limit = min(most, session.left() - (0.0 if stage.every else _LAST))
    if limit <= 0 and stage.name != "bars":
        return {"status": "skipped", "detail": OUT_OF_TIME}
    session.log(f"\n===== {stage.name} (at most {limit:.0f} s)")
    try:
        if session.fail == stage.name:
            session.run(session.python("-c", "raise SystemExit('planted failure')"), limit)
            raise RuntimeError("planted failure")
        return stage.run(session, limit)
    except Exception as error:
        session.log(f"{type(error).__name__}: {error}")
        return {"status": "failed", "detail": f"{type(error).__name__}: {error}"}


OUT_OF_TIME = "out of time"


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
