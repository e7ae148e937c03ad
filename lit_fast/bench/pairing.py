"""Paired timing: all variants of a setting take turns, so that whatever drifts slowly hits them alike.

A round runs every variant, in random order. On CUDA, memory as large as the L2 cache twice over is overwritten before
each variant, the device is waited for, and CUDA events around the variant give its time: from an idle device, launches
included. On the CPU the host's clock does, freeing the results is part of the time, and an untimed call comes before
each timed one: else a variant would find the caches and the allocator's pages as the one before it left them.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

FEWEST, MOST = 5, 200  # rounds
_FLUSH_BYTES = 128 << 20  # at least: more than the L2 of most GPUs


class Spread(NamedTuple):
    """Of one variant's rounds, in seconds."""

    median: float
    low: float  # first quartile
    high: float  # third quartile


class Pairs:
    """Variants and the times of their rounds.

    Attributes:
        steps: the variants; one that raises is dropped.
        times: seconds of each round, by variant.
        failed: what a dropped variant raised.
    """

    def __init__(self, steps: Mapping[str, Callable[[], object]], device: str) -> None:
        self.steps = dict(steps)
        self.times: dict[str, list[float]] = {name: [] for name in steps}
        self.failed: dict[str, str] = {}
        self._device = device
        self._order = random.Random(0)
        if device == "cuda":
            l2 = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)
            self._flush = torch.empty(max(2 * l2, _FLUSH_BYTES), dtype=torch.uint8, device=device)

    def round(self) -> None:
        """Time every variant once."""
        for name in self._order.sample(list(self.steps), len(self.steps)):
            try:
                self.times[name].append(self.time(self.steps[name]))
            except Exception as error:
                self.drop(name, f"{type(error).__name__}: {error}")

    def drop(self, name: str, why: str) -> None:
        del self.steps[name], self.times[name]
        self.failed[name] = why

    def time(self, step: Callable[[], object]) -> float:
        """Seconds of one call."""
        if self._device != "cuda":
            step()
            start = time.perf_counter()
            step()
            return time.perf_counter() - start
        self._flush.zero_()
        torch.cuda.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    def rounds_in(self, seconds: float) -> int:
        """How many rounds fill so much time, within bounds; runs one of them to know, and forgets its times."""
        start = time.monotonic()
        self.round()
        taken = time.monotonic() - start
        for times in self.times.values():
            times.clear()
        return min(max(int(seconds / taken), FEWEST), MOST)

    def run(self, seconds: float, tell: Callable[[str], None] = lambda _: None) -> None:
        """As many rounds as fill the time, within bounds; ``tell`` is given a line before what may take long."""
        tell(f"a first round of {', '.join(self.steps)}, not counted")
        start = time.monotonic()
        count = self.rounds_in(seconds)
        took = time.monotonic() - start
        tell(f"{count} rounds (at least {FEWEST}, at most {MOST}) of about {took:.1f} s: {count * took:.0f} s")
        for _ in range(count):
            self.round()

    def spread(self, name: str) -> Spread:
        return spread(self.times[name])

    def ratio(self, name: str, other: str) -> float:
        """How many times faster `name` is than `other`: the median over the rounds."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.times[name], self.times[other]))


def spread(times: list[float]) -> Spread:
    """Median and quartiles."""
    if len(times) < 2:
        return Spread(times[0], times[0], times[0])
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Spread(median, low, high)
