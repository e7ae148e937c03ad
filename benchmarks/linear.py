"""The suite "linear": the KD loss of a large vocabulary from hidden states and heads, against whole logits.

``python -m benchmarks.linear SETTING VARIANT`` prints the memory of one call in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import lit_fast as lf
from benchmarks.checkout import ROOT
from benchmarks.choice import ALL, Choice, in_time
from lit_fast.bench import probes
from lit_fast.bench.pairing import Pairs

Row = dict[str, Any]
Step = Callable[[], tuple[Tensor, ...]]  # the loss, the gradients of the hidden states and of the head's weight
ALPHA, TAU = 0.5, 2.0
UNFUSED = ("script", "kd_loss")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # relative to the largest number


@dataclass(frozen=True)
class Setting:
    """Hidden states [rows, width] of both networks, heads [classes, width] without bias."""

    name: str
    rows: int
    width: int
    classes: int
    dtype: torch.dtype = torch.float32


SETTINGS = {
    "cpu": (Setting("2048x256x32000-float32", 2048, 256, 32_000),),
    "cuda": (Setting("8192x2048x128000-bfloat16", 8192, 2048, 128_000, torch.bfloat16),),
}
TINY = Setting("tiny-64x8x500-float32", 64, 8, 500)


def steps(setting: Setting, device: str) -> dict[str, Step]:
    """Forward and backward in each variant, on the same tensors."""
    torch.manual_seed(0)
    states = [torch.randn(setting.rows, setting.width, device=device).to(setting.dtype) for _ in range(2)]
    weights = [torch.randn(setting.classes, setting.width, device=device).to(setting.dtype) for _ in range(2)]
    for weight in weights:
        weight /= setting.width**0.5
    labels = torch.randint(setting.classes, (setting.rows,), device=device)
    leaves = states[0].requires_grad_(), weights[0].requires_grad_()

    def logits() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            teacher = F.linear(states[1], weights[1])
        return F.linear(*leaves), teacher

    def script() -> Tensor:
        z_s, z_t = (z.float() for z in logits())
        hard = F.cross_entropy(z_s, labels)
        log_q, log_p = F.log_softmax(z_s / TAU, 1), F.log_softmax(z_t / TAU, 1)
        return ALPHA * hard + (1 - ALPHA) * TAU**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

    def kd_loss() -> Tensor:
        return lf.kd_loss(*logits(), labels, alpha=ALPHA, tau=TAU)

    def linear() -> Tensor:
        return lf.functional.linear_kd_loss(*leaves, states[1], weights[1], labels, alpha=ALPHA, tau=TAU)

    def step_of(loss: Callable[[], Tensor]) -> Step:
        def step() -> tuple[Tensor, ...]:
            total = loss()
            return total.detach(), *torch.autograd.grad(total, leaves)

        return step

    return {loss.__name__: step_of(loss) for loss in (script, kd_loss, linear)}


def run(
    device: str, deadline: float, *, tiny: bool = False, seconds: float = 60.0, choice: Choice = ALL
) -> Iterator[Row]:
    """Measure every setting until `deadline` (of ``time.monotonic``)."""
    for setting in (TINY,) if tiny else SETTINGS[device]:
        heading = {"suite": "linear", "setting": setting.name, "family": "linear", "device": device, "mode": None}
        heading |= {"batch": setting.rows, "classes": setting.classes, "dtype": str(setting.dtype).partition(".")[2]}
        if choice.setting("linear", setting.name):
            yield from in_time(
                heading, deadline, partial(_measured, heading, setting, device, seconds, choice, tiny=tiny)
            )


def _measured(heading: Row, setting: Setting, device: str, seconds: float, choice: Choice, *, tiny: bool) -> list[Row]:
    variants = {name: step for name, step in steps(setting, device).items() if name == "script" or choice.variant(name)}
    failed = {}
    for name in list(variants):
        wrong = _disagreement(variants[name](), variants["script"](), TOLERANCE[setting.dtype])
        if wrong is not None:
            failed[name] = wrong
            del variants[name]
    with choice.turn():
        pairs = Pairs(variants, device)
        pairs.run(seconds)
        timed = [name for name in variants if name in pairs.times]
        here = tiny or device == "cuda"
        extra = {name: extra_bytes(variants[name], device) if here else alone(setting, name) for name in timed}
    rows = [_row(heading, name, pairs, extra) for name in timed]
    return [*rows, *({**heading, "variant": name, "status": why} for name, why in {**failed, **pairs.failed}.items())]


def _row(heading: Row, name: str, pairs: Pairs, extra: dict[str, int]) -> Row:
    median, low, high = pairs.spread(name)
    row = {
        **heading,
        "variant": name,
        "status": "measured",
        "best": True,
        "rounds": len(pairs.times[name]),
        "median_us": median * 1e6,
        "quartiles_us": [low * 1e6, high * 1e6],
        "extra_bytes": extra[name],
    }
    for other in UNFUSED:
        if other in extra and other != name:
            row[f"time_of_{other}"] = 1 / pairs.ratio(name, other)
            row[f"memory_of_{other}"] = extra[name] / max(extra[other], 1)
    return row


def _disagreement(found: tuple[Tensor, ...], right: tuple[Tensor, ...], tolerance: float) -> str | None:
    for ours, theirs in zip(found, right):
        error = ((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()).item()
        if not error <= tolerance:
            return f"differs from the script by {error:.2g}"
    return None


# --- memory


def extra_bytes(step: Step, device: str) -> int:
    """The most that a call holds above its inputs and its results, as the allocator knows it."""
    results = sum(tensor.nbytes for tensor in step())
    return max(probes.peak_bytes(step, device) - results, 0)


def alone(setting: Setting, variant: str) -> int:
    """The same on a CPU, as the system knows it: of a process that makes one call, with all that libraries take."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks.linear", setting.name, variant]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
    return int(json.loads(done.stdout)["extra_bytes"])


def resident(field: str) -> int:
    """Bytes of this process in memory, on Linux: "VmRSS" now, "VmHWM" the most since it began."""
    # Not getrusage: its peak begins with that of the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition(f"{field}:")[2].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    known = {setting.name: setting for setting in (*SETTINGS["cpu"], TINY)}
    parser.add_argument("setting", choices=known)
    parser.add_argument("variant", choices=("script", "kd_loss", "linear"))
    options = parser.parse_args()
    steps(TINY, "cpu")[options.variant]()  # threads and libraries are there
    step = steps(known[options.setting], "cpu")[options.variant]
    before = resident("VmRSS")
    results = sum(tensor.nbytes for tensor in step())
    found = {"extra_bytes": max(resident("VmHWM") - before - results, 0), "before": before, "results": results}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
