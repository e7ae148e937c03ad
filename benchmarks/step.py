"""The suite "step": one training step, images to updated weights, in all variants, paired.

| variant | what |
|---|---|
| plain | as the original code does it: modules, unfused losses, section 1 twice, the loss read on the host |
| eager | lit_fast's step of modules and plain PyTorch operations |
| compile | the same under torch.compile |
| runner | the teacher lowered and run in C++, the fused loss, channels_last |
| capture | the same, replayed as one CUDA graph (CUDA) |
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch

from benchmarks.choice import ALL, Choice, in_time
from benchmarks.pairs import PAIRS, TINY, Pair
from lit_fast.bench import step
from lit_fast.bench.step import Row


class Setting(NamedTuple):
    pair: Pair
    batch: int
    precision: str

    @property
    def name(self) -> str:
        return f"{self.pair.name}, batch {self.batch}, {self.precision}"

    def heading(self, suite: str, device: str) -> Row:
        """What a row says of the setting."""
        return {
            "suite": suite,
            "setting": self.name,
            "family": self.pair.name,
            "device": device,
            "batch": self.batch,
            "dtype": self.precision,
        }


def settings(device: str, *, tiny: bool) -> list[Setting]:
    """What is measured, the settings that the bars need first."""
    if tiny:
        return [Setting(TINY, 4, "fp32")]
    big, middle, wide = PAIRS
    if device == "cpu":
        return [Setting(big, 32, "fp32"), Setting(middle, 32, "fp32"), Setting(big, 128, "fp32")]
    half = half_precision()
    first = [Setting(big, batch, half) for batch in (32, 128, 1024)]
    rest = [Setting(pair, batch, half) for pair in (middle, wide) for batch in (32, 128, 1024)]
    return [*first, *[Setting(big, batch, "fp32") for batch in (32, 128)], *rest]


def half_precision() -> str:
    """That of this GPU."""
    return "bf16" if torch.cuda.get_device_capability(0) >= (8, 0) else "fp16"


def run(
    device: str, deadline: float, *, tiny: bool = False, seconds: float = 20.0, choice: Choice = ALL
) -> Iterator[Row]:
    """Measure every setting until `deadline` (of ``time.monotonic``); settings that come later say so.

    Args:
        seconds: of rounds at one setting; compiling comes on top.
    """
    for setting in settings(device, tiny=tiny):
        if not choice.setting("step", setting.name):
            continue
        heading = setting.heading("step", device)
        measure = partial(measured, setting, device, deadline, seconds, compiled=not tiny, choice=choice)
        yield from in_time({**heading, "mode": None}, deadline, measure)


def measured(
    setting: Setting, device: str, deadline: float, seconds: float, *, compiled: bool = True, choice: Choice = ALL
) -> list[Row]:
    """The rows of one setting."""
    problem = setting.pair.problem(setting.batch, setting.precision, device)
    ways = {name: way for name, way in step.builders(problem, compiled=compiled).items() if choice.variant(name)}
    rows = step.measured(problem, ways, deadline=deadline, seconds=seconds, turn=choice.turn)
    return [{**setting.heading("step", device), **row} for row in rows]
