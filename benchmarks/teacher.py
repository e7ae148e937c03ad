"""The suite "teacher": the frozen teacher's forward alone, as modules, compiled with frozen weights, and lowered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

import lit_fast as lf
from benchmarks.choice import ALL, Choice, in_time
from benchmarks.pairs import PAIRS, TINY, Pair
from lit_fast.bench import probes
from lit_fast.bench.pairing import Pairs

Row = dict[str, Any]
TOLERANCE = 1e-4  # relative to the largest logit, float32


def run(
    device: str, deadline: float, *, tiny: bool = False, seconds: float = 15.0, choice: Choice = ALL
) -> Iterator[Row]:
    """Measure every network and batch until `deadline` (of ``time.monotonic``)."""
    pairs = (TINY,) if tiny else PAIRS[: 1 if device == "cpu" else 3]
    batches = (4,) if tiny else (32, 128) if device == "cpu" else (32, 128, 1024)
    for pair in pairs:
        for batch in batches:
            heading = {"suite": "teacher", "setting": f"{_network(pair)}, batch {batch}", "family": _network(pair)}
            heading |= {"device": device, "batch": batch, "dtype": "fp32", "mode": None}
            if not choice.setting("teacher", heading["setting"]):
                continue
            compiled = not tiny and choice.variant("compile")
            measure = partial(_measured, heading, pair, batch, device, seconds, compiled=compiled)
            yield from in_time(heading, deadline, measure)


def _network(pair: Pair) -> str:
    return pair.name.partition("-")[0]


def _measured(heading: Row, pair: Pair, batch: int, device: str, seconds: float, *, compiled: bool) -> list[Row]:
    torch.manual_seed(0)
    teacher = lf.split(pair.teacher().to(device).eval().requires_grad_(False))
    images = torch.randn(batch, *pair.image, device=device)
    frozen = lf.FrozenTeacher(teacher)
    steps: dict[str, Callable[[], Any]] = {"eager": lambda: teacher.run(images), "runner": lambda: frozen.run(images)}
    failed = {}
    if compiled:
        torch.compiler.reset()
        with torch._inductor.config.patch(freezing=True):
            whole = torch.compile(teacher.run)
            try:
                with torch.no_grad():
                    whole(images)
                steps["compile"] = lambda: whole(images)
            except Exception as error:
                failed["compile"] = f"{type(error).__name__}: {error}"[:500]
    with torch.no_grad():
        right = teacher.run(images)[1]
        for name, step in list(steps.items()):
            error = ((step()[1] - right).abs().max() / right.abs().max()).item()
            if not error <= TOLERANCE:
                failed[name] = f"its logits differ from the modules' by {error:.2g}"
                del steps[name]
        paired = Pairs(steps, device)
        paired.run(seconds)
        rows = [_row(heading, name, batch, paired, device) for name in paired.times]
    return [*rows, *({**heading, "variant": name, "status": why} for name, why in {**failed, **paired.failed}.items())]


def _row(heading: Row, name: str, batch: int, pairs: Pairs, device: str) -> Row:
    median, low, high = pairs.spread(name)
    row = {
        **heading,
        "variant": name,
        "status": "measured",
        "best": True,
        "rounds": len(pairs.times[name]),
        "median_us": median * 1e6,
        "quartiles_us": [low * 1e6, high * 1e6],
        "images_s": batch / median,
    }
    for other in ("eager", "compile"):
        if other in pairs.times:
            row[f"times_{other}"] = pairs.ratio(name, other)
    if device == "cuda":
        row |= probes.launches(pairs.steps[name])
    return row
