"""The ways to compute one training step, checked against each other and timed in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from lit_fast.bench import probes, ways
from lit_fast.bench.pairing import Pairs
from lit_fast.bench.ways import Problem, Way

__all__ = ["BANDS", "Row", "builders", "measured"]

Row = dict[str, Any]
# A first step's loss against eager's: rounding through a hundred layers. Half precision differs where values round.
BANDS = {"fp32": 1e-4, "bf16": 0.05, "fp16": 0.05}
# With TF32 convolutions float32 is multiplied with 10 bits, and a folded BatchNorm makes them other bits.
TF32_BAND = 0.01
ON_CUDA = 10  # calls that are timed together: one behind the other, as in training, not each from an idle device


def builders(problem: Problem, *, compiled: bool = True) -> dict[str, Callable[[], Way]]:
    """What builds each way that this device has, by name; ``compile:<mode>`` is torch.compile's."""
    found: dict[str, Callable[[], Way]] = {
        "plain": lambda: ways.plain_step(problem),
        "eager": lambda: ways.eager_step(problem),
        "runner": lambda: ways.runner_step(problem),  # of a recorded teacher it says that there is none
    }
    if problem.teacher.how == "recorded":
        found["fused"] = lambda: ways.fused_step(problem)
    if problem.device == "cuda":
        found["capture"] = lambda: ways.captured_step(problem)
    if compiled:
        for mode in ("default",) if problem.device == "cpu" else ("default", "max-autotune-no-cudagraphs"):
            found[f"compile:{mode}"] = lambda mode=mode: ways.compiled_step(problem, mode)  # type: ignore[misc]
    return found


def measured(
    problem: Problem,
    chosen: Mapping[str, Callable[[], Way]],
    *,
    against: Sequence[str] = ("plain", "eager"),
    deadline: float = float("inf"),
    seconds: float = 20.0,
    turn: Callable[[], AbstractContextManager[Any]] = nullcontext,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """One row for each way.

    Args:
        problem: what the step trains.
        chosen: what builds the ways (`builders`).
        against: those that each is held against, beside the fastest of torch.compile's.
        deadline: of ``time.monotonic``; nothing is compiled later.
        seconds: of rounds; compiling comes on top.
        turn: entered around the rounds, once every way is built: for processes that measure one after the other.
        tell: given a line before whatever may take long.

    Returns:
        rows with "variant", "mode", "status" ("measured", or what went wrong) and, where measured, "median_us",
        "quartiles_us", "images_s", "gflop", "gflop_s", "least_bytes", "peak_bytes", "rounds", "times_<other>" (how many
        times faster than it, the median over pairs), and "launches" on CUDA (where
        `ON_CUDA` calls are timed together, and launches are those of one).
    """
    steps, failed = {}, {}
    for name, build in chosen.items():
        if name.startswith("compile:") and time.monotonic() > deadline:
            failed[name] = "out of time"
            continue
        try:
            tell(f"{name}: building and checking it" + (", compiling takes minutes" if ":" in name else ""))
            torch.compiler.reset()
            steps[name] = build()
            difference = ways.drift(steps[name], ways.eager_step(problem))
            if not difference <= band(problem):
                raise ArithmeticError(f"its loss differs from eager's by {difference:.2g}")
        except Exception as error:
            steps.pop(name, None)
            failed[name] = f"{type(error).__name__}: {error}"[:500]
    calls = ON_CUDA if problem.device == "cuda" else 1
    pairs = Pairs({name: ways.repeated(way, calls) for name, way in steps.items()}, problem.device)
    with turn():  # probes, too: what others time must not run beside them
        if steps:
            pairs.run(seconds, tell)
        rows = list(_rows(pairs, steps, problem, against))
    missing = {**failed, **pairs.failed}
    return [*rows, *({**_named(name), "status": why} for name, why in missing.items())]


def band(problem: Problem) -> float:
    """How far a way's loss may be from eager's, relative to it."""
    if problem.precision == "fp32" and problem.device == "cuda" and torch.backends.cudnn.allow_tf32:
        return TF32_BAND
    return BANDS[problem.precision]


def _rows(pairs: Pairs, singles: Mapping[str, Way], problem: Problem, against: Sequence[str]) -> Iterator[Row]:
    """`pairs`: the ways as they were timed; `singles`: one call of each, to be looked at."""
    operations, moved = ways.work(problem)
    compiled = [name for name in pairs.times if name.startswith("compile:") and pairs.times[name]]
    best_compile = min(compiled, key=lambda name: pairs.spread(name).median, default=None)
    for name, times in pairs.times.items():
        steps = ways.steps_of(pairs.steps[name])
        median, low, high = (time / steps for time in pairs.spread(name))
        row = {
            **_named(name),
            "status": "measured",
            "rounds": len(times),
            "median_us": median * 1e6,
            "quartiles_us": [low * 1e6, high * 1e6],
            "images_s": problem.batch / median,
            "gflop": operations / 1e9,
            "gflop_s": operations / median / 1e9,
            "least_bytes": moved,
            "best": name == best_compile or not name.startswith("compile:"),
        }
        for other in (*against, best_compile):
            if other in pairs.times:
                ratio = pairs.ratio(name, str(other)) * steps / ways.steps_of(pairs.steps[str(other)])
                row[f"times_{str(other).partition(':')[0]}"] = ratio
        try:
            row["peak_bytes"] = probes.peak_bytes(singles[name], problem.device)
            if problem.device == "cuda":
                row |= probes.launches(singles[name])
        except Exception as error:
            row["not_measured"] = f"{type(error).__name__}: {error}"[:300]
        yield row


def _named(way: str) -> Row:
    return {"variant": way.partition(":")[0], "mode": way.partition(":")[2] or None}
