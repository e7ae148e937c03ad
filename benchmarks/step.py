"""The suite "step": one training step, images to updated weights, in all variants, paired.

| variant | what |
|---|---|
| plain | as the original code does it: modules, unfused losses, section 1 twice, the loss read on the host |
| eager | lit_fast's step of modules and plain PyTorch operations |
| compile | the same under torch.compile |
| runner | the teacher lowered and run in C++, the fused loss, channels_last |
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from benchmarks import probes, step_variants
from benchmarks.pairing import Pairs
from benchmarks.step_variants import Pair, Problem

Row = dict[str, Any]
# A first step's loss against eager's: rounding through a hundred layers. Half precision differs where values round.
BANDS = {"fp32": 1e-4, "bf16": 0.05, "fp16": 0.05}


class Setting(NamedTuple):
    pair: Pair
    batch: int
    precision: str

    @property
    def name(self) -> str:
        return f"{self.pair.name}, batch {self.batch}, {self.precision}"


def settings(device: str, *, tiny: bool) -> list[Setting]:
    """What is measured, the settings that the bars need first."""
    if tiny:
        return [Setting(step_variants.TINY, 4, "fp32")]
    big, middle, wide = step_variants.PAIRS
    if device == "cpu":
        return [Setting(big, 32, "fp32"), Setting(middle, 32, "fp32"), Setting(big, 128, "fp32")]
    half = "bf16" if torch.cuda.get_device_capability(0) >= (8, 0) else "fp16"
    first = [Setting(big, batch, half) for batch in (32, 128, 1024)]
    rest = [Setting(pair, batch, half) for pair in (middle, wide) for batch in (32, 128, 1024)]
    return [*first, *[Setting(big, batch, "fp32") for batch in (32, 128)], *rest]


def run(device: str, deadline: float, *, tiny: bool = False, seconds: float = 20.0) -> Iterator[Row]:
    """Measure every setting until `deadline` (of ``time.monotonic``); settings that come later say so.

    Args:
        seconds: of rounds at one setting; compiling comes on top.
    """
    for setting in settings(device, tiny=tiny):
        if time.monotonic() > deadline:
            yield {**_heading(setting, device, "all"), "status": "out of time"}
            continue
        try:
            yield from measured(setting, device, deadline, seconds, compiled=not tiny)
        except Exception as error:
            yield {**_heading(setting, device, "all"), "status": f"{type(error).__name__}: {error}"[:500]}


def measured(setting: Setting, device: str, deadline: float, seconds: float, *, compiled: bool = True) -> list[Row]:
    """The rows of one setting."""
    problem = Problem(*setting, device)
    builders = {
        "plain": lambda: step_variants.plain_step(problem),
        "eager": lambda: step_variants.eager_step(problem),
        "runner": lambda: step_variants.runner_step(problem),
    }
    if compiled:
        for mode in ("default",) if device == "cpu" else ("default", "max-autotune-no-cudagraphs"):
            builders[f"compile:{mode}"] = lambda mode=mode: step_variants.compiled_step(problem, mode)
    steps, failed = {}, {}
    for name, build in builders.items():
        if name.startswith("compile:") and time.monotonic() > deadline:
            failed[name] = "out of time"
            continue
        try:
            torch.compiler.reset()
            steps[name] = build()
            difference = step_variants.drift(steps[name], step_variants.eager_step(problem))
            if not difference <= BANDS[setting.precision]:
                raise ArithmeticError(f"its loss differs from eager's by {difference:.2g}")
        except Exception as error:
            steps.pop(name, None)
            failed[name] = f"{type(error).__name__}: {error}"[:500]
    pairs = Pairs(steps, device)
    pairs.run(seconds)
    return [*_rows(setting, device, pairs, problem), *_missing(setting, device, {**failed, **pairs.failed})]


def _rows(setting: Setting, device: str, pairs: Pairs, problem: Problem) -> Iterator[Row]:
    operations, moved = step_variants.work(problem)
    compiled = [name for name in pairs.times if name.startswith("compile:") and pairs.times[name]]
    best_compile = min(compiled, key=lambda name: pairs.spread(name).median, default=None)
    for name, times in pairs.times.items():
        median, low, high = pairs.spread(name)
        row = {
            **_heading(setting, device, name),
            "status": "measured",
            "rounds": len(times),
            "median_us": median * 1e6,
            "quartiles_us": [low * 1e6, high * 1e6],
            "images_s": setting.batch / median,
            "gflop": operations / 1e9,
            "gflop_s": operations / median / 1e9,
            "least_bytes": moved,
            "best": name == best_compile or not name.startswith("compile:"),
        }
        for other in ("plain", "eager", best_compile):
            if other in pairs.times:
                row[f"times_{str(other).partition(':')[0]}"] = pairs.ratio(name, str(other))
        try:
            row["peak_bytes"] = probes.peak_bytes(pairs.steps[name], device)
            if device == "cuda":
                row |= probes.launches(pairs.steps[name])
        except Exception as error:
            row["not_measured"] = f"{type(error).__name__}: {error}"[:300]
        yield row


def _missing(setting: Setting, device: str, failed: dict[str, str]) -> Iterator[Row]:
    for name, why in failed.items():
        yield {**_heading(setting, device, name), "status": why}


def _heading(setting: Setting, device: str, variant: str) -> Row:
    return {
        "suite": "step",
        "setting": setting.name,
        "family": setting.pair.name,
        "device": device,
        "batch": setting.batch,
        "dtype": setting.precision,
        "variant": variant.partition(":")[0],
        "mode": variant.partition(":")[2] or None,
    }
