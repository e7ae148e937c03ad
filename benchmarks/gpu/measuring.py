"""The stages that measure: suites of benchmarks in processes of their own, whose rows go into the journal.

First what needs no compiler. Whatever runs under torch.compile is a process for each setting, with a limit: compiling
takes as long as it likes. Their caches are filled in the background while the tests run (`warm`).
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.gpu.session import Session

Fields = dict[str, Any]
PAIR = "resnet110-resnet20"
UNCOMPILED_STEP = ("plain", "eager", "runner", "capture")
UNCOMPILED_LOSS = ("copy", "eager", "reference", "native", "triton")
MODE = "compile:default"


def step(session: Session, limit: float) -> Fields:
    return _suite(session, "step", limit, UNCOMPILED_STEP, rounds=3)


def loss(session: Session, limit: float) -> Fields:
    return _suite(session, "loss", limit, UNCOMPILED_LOSS, rounds=1)


def overhead(session: Session, limit: float) -> Fields:
    return _suite(session, "overhead", limit, rounds=3)


def data(session: Session, limit: float) -> Fields:
    return _suite(session, "data", limit, ("step", "step+resident", "step+torch", "torch", "resident"), rounds=4)


def tricks(session: Session, limit: float) -> Fields:
    chosen = ("eager", "channels-last", "lowered", "runner", "capture", "prefetch", "joined", "parallel")
    chosen = (*chosen, "captured-side-by-side", "autocast-cache", "cudnn-benchmark")
    return _suite(session, "tricks", limit, chosen, rounds=6)


def teacher(session: Session, limit: float) -> Fields:
    return _suite(session, "teacher", limit, ("eager", "runner"), rounds=2)


def step_compile(session: Session, limit: float) -> Fields:
    """Paired with the captured step, in the settings of the bars."""
    paired = ("eager", "runner") if session.dry_run else ("capture", MODE)
    return _each(session, "step", _step_settings(session), paired, limit, rounds=4)


def loss_compile(session: Session, limit: float) -> Fields:
    """Paired with the fused losses and eager."""
    return _each(session, "loss", _loss_settings(session), ("eager", "native", "triton", MODE), limit, rounds=1)


def warm(session: Session) -> None:
    """Start to compile what ``step_compile`` and ``loss_compile`` will time; their caches are on the disk."""
    if session.dry_run:
        return
    for suite, settings in (("step", _step_settings(session)), ("loss", _loss_settings(session)[:2])):
        for number, setting in enumerate(settings):
            command = session.python("-m", "benchmarks.run", "--device", "cuda", "--only", suite, "--settings", setting)
            command += ["--variants", MODE, "--rounds", "0.1", "--journal", str(session.scratch / "warmed.jsonl")]
            session.start(command, f"warm-{suite}-{number}")


def _step_settings(session: Session) -> list[str]:
    if session.dry_run:
        return ["resnet32-resnet20, batch 4, fp32"]
    half = "bf16" if float(session.facts().get("capability") or 8) >= 8 else "fp16"
    return [f"{PAIR}, batch {batch}, {half}" for batch in (32, 128)]


def _loss_settings(session: Session) -> list[str]:
    if session.dry_run:
        return ["tiny-b4-float32"]
    return [f"cifar-b{batch}-{dtype}" for batch in (1024, 32) for dtype in ("float16", "bfloat16")]


def _each(
    session: Session, suite: str, settings: list[str], variants: tuple[str, ...], limit: float, rounds: float
) -> Fields:
    """One process for each setting; none can take the time of the others."""
    end = time.monotonic() + limit
    outcomes = []
    for number, setting in enumerate(settings):
        share = (end - time.monotonic()) / (len(settings) - number)
        outcomes.append(_suite(session, suite, share, variants, [setting], rounds=rounds, group="compile"))
    worst = next((one for one in outcomes if one["status"] != "passed"), outcomes[0])
    return {"status": worst["status"], "detail": "; ".join(dict.fromkeys(one["detail"] for one in outcomes))}


def _suite(
    session: Session,
    name: str,
    limit: float,
    variants: tuple[str, ...] = (),
    settings: list[str] | None = None,
    *,
    rounds: float,
    group: str = "",
) -> Fields:
    """Run a suite, or what is chosen of it, and count its rows."""
    command = session.python("-m", "benchmarks.run", "--device", session.device, "--journal", str(session.journal))
    command += ["--only", name, "--seconds", f"{max(limit - 5, 0):.0f}", "--rounds", str(rounds)]
    command += [*(["--variants", *variants] if variants else []), *(["--settings", *settings] if settings else [])]
    command += [*(["--tiny"] if session.dry_run else []), *(["--group", group] if group else [])]
    done = session.run(command, limit)
    rows = [row for row in session.entries("row") if row["suite"] == name and (row.get("group") or "") == group]
    if settings:
        rows = [row for row in rows if row["setting"] in settings]
    measured = [row for row in rows if row["status"] == "measured"]
    late = [row for row in rows if row["status"].startswith("out of time")]
    known = ("measured", "out of time", "not available")
    wrong = [row for row in rows if not row["status"].startswith(known)]
    problems = [f"{row['setting']}, {row['variant']}: {row['status']}" for row in wrong]
    if done.status:
        problems.append(f"{name}: {' / '.join(done.output.strip().splitlines()[-3:])[-300:]}")
    detail = f"{len(measured)} rows measured, {len(late)} out of time, {len(problems)} problems"
    status = "timed out" if done.status is None or late else "passed"
    status = "failed" if problems or not measured else status
    return {"status": status, "detail": "; first: ".join([detail, *problems[:1]]), "problems": problems[:20]}
