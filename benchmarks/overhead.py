"""The suite "overhead": what one call costs beside the arithmetic, on three sections and logits of a few elements."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

import lit_fast
from benchmarks import variants
from benchmarks.choice import ALL, Choice
from benchmarks.settings import TINY, Setting
from lit_fast.bench.pairing import spread

Row = dict[str, Any]
CALLS = 100  # in one round, at most; on CUDA the device is waited for after the last one
_SECONDS = 0.05  # of one round of one call, about


def calls(device: str, backend: str) -> dict[str, Callable[[], object]]:
    """The calls that are timed, by name."""
    data = variants.problem(Setting("overhead", 2, torch.float32, TINY), device)
    criterion = lit_fast.LITLoss(backend=backend)

    def function() -> torch.Tensor:
        return lit_fast.lit_loss(*data.arguments(), backend=backend)

    def module() -> torch.Tensor:
        return criterion(*data.arguments())

    def backward(loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(), data.leaves, data.grad_total)

    def without_gradient() -> torch.Tensor:
        with torch.no_grad():
            return function()

    return {
        "lit_loss, no gradient": without_gradient,
        "lit_loss, forward": function,
        "lit_loss, forward + backward": backward(function),
        "LITLoss, forward": module,
        "LITLoss, forward + backward": backward(module),
    }


def run(
    device: str, deadline: float, *, tiny: bool = False, seconds: float = 3.0, choice: Choice = ALL
) -> Iterator[Row]:
    """Microseconds of each call with each backend; the calls take turns."""
    timed: dict[tuple[str, str], Callable[[], object]] = {}
    for backend in ("native", "triton", "eager"):
        why = variants.unavailable(backend, device)
        if why is not None:
            yield {**_heading(device, backend, "all"), "status": f"not available: {why}"}
            continue
        chosen = {name: call for name, call in calls(device, backend).items() if choice.setting("overhead", name)}
        timed |= {(backend, name): call for name, call in chosen.items()}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in timed}
    counts = {}
    for key, call in timed.items():
        seconds_of(call, device, 2)
        counts[key] = 1 if tiny else min(max(int(_SECONDS / seconds_of(call, device, 1)), 1), CALLS)
    end = min(time.monotonic() + seconds, deadline)
    rounds = 0
    while rounds < 3 or (time.monotonic() < end and rounds < 100):
        for key, call in timed.items():
            times[key].append(seconds_of(call, device, counts[key]) / counts[key])
        rounds += 1
    for (backend, name), measured in times.items():
        median, low, high = spread(measured)
        yield {
            **_heading(device, backend, name),
            "status": "measured",
            "rounds": rounds,
            "calls": counts[backend, name],
            "median_us": median * 1e6,
            "quartiles_us": [low * 1e6, high * 1e6],
        }


def _heading(device: str, backend: str, name: str) -> Row:
    variant = "reference" if backend == "eager" else backend  # as in the suite "loss", where eager is plain PyTorch
    return {"suite": "overhead", "setting": name, "device": device, "variant": variant, "mode": None}


def seconds_of(call: Callable[[], object], device: str, count: int) -> float:
    """Seconds that so many calls take, one behind the other."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
