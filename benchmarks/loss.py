"""The suite "loss": forward and backward of the whole loss, in all variants, paired, at one setting after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks import settings, variants
from benchmarks.choice import ALL, Choice, in_time
from benchmarks.settings import Setting
from lit_fast.bench import probes
from lit_fast.bench.pairing import Pairs

Row = dict[str, Any]
_WARM_UPS = 3  # calls: torch.compile's CUDA graphs are recorded in the second
_INTERPRETED_ELEMENTS = 5000  # Triton's interpreter takes seconds for more


class Measurement:
    """One setting on one device: its variants, ready to be timed.

    Attributes:
        pairs: the variants' rounds. The variants are "copy", "eager" (plain PyTorch), "reference" (lit_fast's eager
            backend), "compile:MODE", "native" and "triton".
        missing: why a variant is not among them.
    """

    def __init__(self, setting: Setting, device: str, deadline: float = float("inf"), choice: Choice = ALL) -> None:
        self.setting, self.device = setting, device
        self.missing: dict[str, str] = {}
        self._compile_seconds: dict[str, float] = {}
        data = variants.problem(setting, device)
        self._losses = {"eager": variants.eager_loss(data)}  # what all others are held to
        if choice.variant("reference"):
            self._losses["reference"] = variants.backend_loss(data, "eager")
        for name in filter(choice.variant, variants.FUSED):
            why = variants.unavailable(name, device) or self._too_slow(name)
            if why is None:
                self._losses[name] = variants.backend_loss(data, name)
            else:
                self.missing[name] = f"not available: {why}"
        torch.compiler.reset()
        for mode in (mode for mode in setting.modes if choice.variant(f"compile:{mode}")):
            self._losses[f"compile:{mode}"] = variants.compiled_loss(data, mode)
        self._steps = {name: variants.step_of(data, loss) for name, loss in self._losses.items()}
        self.pairs = Pairs({"copy": variants.copy_step(setting, device), **self._steps}, device)
        for name in self._steps:
            self._prepare(name, deadline)

    def _too_slow(self, name: str) -> str | None:
        slow = name == "triton" and self.device == "cpu" and self.setting.elements > _INTERPRETED_ELEMENTS
        return "the interpreter is too slow for this size" if slow else None

    def _prepare(self, name: str, deadline: float) -> None:
        """Compile, compare with eager, warm up; a variant that fails is dropped and says why."""
        compiled = name.startswith("compile:")
        if compiled and time.monotonic() > deadline:
            self.pairs.drop(name, "out of time")
            return
        start = time.monotonic()
        try:
            wrong = variants.disagreement(self._steps[name], self._steps["eager"], self.setting.dtype)
            if wrong is not None:
                raise ArithmeticError(wrong)
            for _ in range(_WARM_UPS - 1):
                self._steps[name]()
        except Exception as error:
            self.pairs.drop(name, f"{type(error).__name__}: {error}"[:500])
        if compiled:
            self._compile_seconds[name] = time.monotonic() - start

    def rows(self) -> Iterator[Row]:
        """One row for every variant, missing ones included; after the rounds."""
        best = min(self._timed("compile:"), key=lambda name: self.pairs.spread(name).median, default=None)
        for name in self._timed(""):
            yield self._row(name, best)
        for name, why in {**self.missing, **self.pairs.failed}.items():
            yield {**self._heading(name), "status": why}

    def _timed(self, prefix: str) -> list[str]:
        return [name for name, times in self.pairs.times.items() if times and name.startswith(prefix)]

    def _heading(self, name: str) -> Row:
        one = self.setting
        return {
            "suite": "loss",
            "setting": one.name,
            "family": one.family,
            "device": self.device,
            "batch": one.batch,
            "dtype": one.precision,
            "sections": [list(shape) for shape in one.sections],
            "classes": one.classes,
            "variant": name.partition(":")[0],
            "mode": name.partition(":")[2] or None,
        }

    def _row(self, name: str, best_compile: str | None) -> Row:
        one, pairs = self.setting, self.pairs
        median, low, high = pairs.spread(name)
        row = {
            **self._heading(name),
            "status": "measured",
            "rounds": len(pairs.times[name]),
            "median_us": median * 1e6,
            "quartiles_us": [low * 1e6, high * 1e6],
            "elements": one.elements,
            "bytes_per_element": one.bytes_per_element,
            "gb_s": one.bytes / median / 1e9,
            "best": name == best_compile or not name.startswith("compile:"),
            "compile_seconds": self._compile_seconds.get(name),
        }
        others = {"times_eager": "eager", "times_reference": "reference", "times_compile": best_compile}
        for field, other in {"percent_of_copy": "copy", **others}.items():
            ratio = pairs.ratio(name, other) if other in pairs.times and name != "copy" else None
            row[field] = ratio and (100 * ratio if field == "percent_of_copy" else ratio)
        if name != "copy":
            row |= _probed(self._steps[name], self._losses[name], self.device)
        if "kernel_us" in row:
            row["kernel_gb_s"] = one.bytes / row["kernel_us"] / 1e3
        return row


def _probed(step: variants.Step, loss: variants.Loss, device: str) -> Row:
    """Peak memory and, on CUDA, launches of the step and of its forward; what cannot be measured says why."""
    found: Row = {}
    try:
        found["peak_bytes"] = probes.peak_bytes(step, device)
        if device == "cuda":
            found |= probes.launches(step)
            found["launches_forward"] = probes.launches(loss)["launches"]
    except Exception as error:
        found["not_measured"] = f"{type(error).__name__}: {error}"[:300]
    return found


def run(
    device: str, deadline: float, *, tiny: bool = False, seconds: float = 5.0, choice: Choice = ALL
) -> Iterator[Row]:
    """Measure every setting until `deadline` (of ``time.monotonic``); settings that come later say so.

    Args:
        seconds: of rounds at one setting; compiling comes on top.
    """
    for setting in settings.settings(device, tiny=tiny):
        if not choice.setting("loss", setting.name):
            continue
        heading = {"suite": "loss", "setting": setting.name, "device": device, "mode": None}
        yield from in_time(heading, deadline, partial(_measured, setting, device, deadline, seconds, choice))


def _measured(setting: Setting, device: str, deadline: float, seconds: float, choice: Choice) -> list[Row]:
    measurement = Measurement(setting, device, deadline, choice)
    with choice.turn():
        measurement.pairs.run(seconds)
        return list(measurement.rows())  # the tensors of this setting are freed before those of the next are made
