"""The stages that measure: suites of benchmarks in processes of their own, whose rows go into the journal.

First what needs no compiler. What runs under torch.compile comes last, a process for each setting: compiling takes as
long as it likes.
"""

from __future__ import annotations

import os
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
    chosen = ("step", "step+resident", "step+resident+ahead", "step+torch", "torch", "resident")
    return _suite(session, "data", limit, chosen, rounds=4)


def tricks(session: Session, limit: float) -> Fields:
    chosen = ("eager", "channels-last", "lowered", "runner", "capture", "prefetch", "joined", "parallel")
    chosen = (*chosen, "captured-side-by-side", "fused-norm", "separate-launches", "autocast-cache")
    return _suite(session, "tricks", limit, chosen, rounds=6)


def teacher(session: Session, limit: float) -> Fields:
    return _suite(session, "teacher", limit, ("eager", "runner"), rounds=2)


def linear(session: Session, limit: float) -> Fields:
    return _suite(session, "linear", limit, rounds=3)


def compiled(session: Session, limit: float) -> Fields:
    """torch.compile beside all others, in the settings of the bars.

    One process for each setting: all compile at the same time, then they measure one after the other.
    """
    ways = ("eager", "runner") if session.dry_run else (*UNCOMPILED_STEP, MODE)
    wanted = [("step", setting, ways, 4.0) for setting in _step_settings(session)]
    wanted += [("loss", setting, (*UNCOMPILED_LOSS, MODE), 1.0) for setting in _loss_settings(session)]
    together = [str(session.scratch / "turns"), str(len(wanted))]
    end = time.monotonic() + limit
    session.extra.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(2, (os.cpu_count() or 1) // 4)))
    for number, (suite, setting, variants, rounds) in enumerate(wanted):
        command = _command(session, suite, 0.6 * limit, variants, [setting], rounds=rounds, stage="compiled")
        session.start([*command, "--together", *together], f"compiled-{number}")
    session.stop_background(end - time.monotonic())
    outcomes = [_found(session, "compiled", suite, setting) for suite, setting, _, _ in wanted]
    worst = next((one for one in outcomes if one["status"] != "passed"), outcomes[0])
    return {"status": worst["status"], "detail": "; ".join(dict.fromkeys(one["detail"] for one in outcomes))}


def _step_settings(session: Session) -> list[str]:
    if session.dry_run:
        return ["resnet14-resnet8, batch 4, fp32"]
    half = "bf16" if float(session.facts().get("capability") or 8) >= 8 else "fp16"
    return [f"{PAIR}, batch {batch}, {half}" for batch in (32, 128, 1024)]


def _loss_settings(session: Session) -> list[str]:
    if session.dry_run:
        return ["tiny-b4-float32"]
    return [f"cifar-b{batch}-{dtype}" for batch in (1024, 32) for dtype in ("float16", "bfloat16")]


def _suite(session: Session, name: str, limit: float, variants: tuple[str, ...] = (), *, rounds: float) -> Fields:
    """Run a suite, or what is chosen of it, and count its rows."""
    done = session.run(_command(session, name, max(limit - 5, 0), variants, rounds=rounds, stage=name), limit)
    found = _found(session, name)
    if done.status:
        said = f"{name}: {' / '.join(done.output.strip().splitlines()[-3:])[-300:]}"
        return {"status": "failed", "detail": said, "problems": [*found["problems"], said]}
    cut = done.status is None and found["status"] == "passed"
    return {**found, "status": "timed out"} if cut else found


def _command(
    session: Session,
    suite: str,
    seconds: float,
    variants: tuple[str, ...] = (),
    settings: list[str] | None = None,
    *,
    rounds: float,
    stage: str,
) -> list[str]:
    command = session.python("-m", "benchmarks.run", "--device", session.device, "--journal", str(session.journal))
    command += ["--stage", stage, "--only", suite, "--seconds", f"{seconds:.0f}", "--rounds", str(rounds)]
    command += [*(["--variants", *variants] if variants else []), *(["--settings", *settings] if settings else [])]
    return [*command, *(["--tiny"] if session.dry_run else [])]


def _found(session: Session, stage: str, suite: str | None = None, setting: str | None = None) -> Fields:
    """The rows of a stage in the journal, or those of one suite and setting, counted."""
    rows = [row for row in session.entries("row") if row["stage"] == stage]
    rows = [row for row in rows if suite is None or (row["suite"], row["setting"]) == (suite, setting)]
    measured = [row for row in rows if row["status"] == "measured"]
    late = [row for row in rows if row["status"].startswith("out of time")]
    known = ("measured", "out of time", "not available")
    wrong = [row for row in rows if not row["status"].startswith(known)]
    problems = [f"{row['setting']}, {row['variant']}: {row['status']}" for row in wrong]
    detail = f"{len(measured)} rows measured, {len(late)} out of time, {len(problems)} problems"
    status = "failed" if problems else "timed out" if late or not measured else "passed"
    return {"status": status, "detail": "; first: ".join([detail, *problems[:1]]), "problems": problems[:20]}
