"""The suite "data": an epoch of training batches through every loader, and what the step would take of them.

| variant | what |
|---|---|
| pil | as the original code does it: torch's DataLoader, Pillow and per-image transforms in worker processes |
| torch | the loader "torch": batches of bytes, augmented and normalised on the device |
| dali | the loader "dali" on the device |
| dali-cpu | the loader "dali" on the CPU, batches moved to the device (CUDA) |
| resident | the loader "resident" |
| step | the demand: one training step of ResNet-110 to 20 on a batch that does not change |
| step+LOADER | the same step on an epoch of a loader's batches (CUDA): `percent_lost` is what that costs |

All but the steps end with a batch on the device and do nothing with it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.choice import ALL, Choice, in_time
from benchmarks.data_sources import OneByOne, Setting, arrays, settings
from benchmarks.pairs import PAIRS, TINY
from benchmarks.step import half_precision
from lit_fast.bench import ways
from lit_fast.bench.pairing import Pairs
from lit_fast.data import Data, DataError
from lit_fast.data.loaders import Loader, open_loader
from lit_fast.data.loaders.resident import ResidentLoader
from lit_fast.step.lit_step import LITStep

Row = dict[str, Any]
Epoch = Callable[[], object]
AGAINST = ("pil", "torch", "dali")
WORKERS = 2  # processes of the DataLoader
STEPS = 50  # of an epoch with the step


def run(
    device: str, deadline: float, *, tiny: bool = False, seconds: float = 20.0, choice: Choice = ALL
) -> Iterator[Row]:
    """Measure every setting until `deadline` (of ``time.monotonic``); settings that come later say so."""
    for setting in settings(tiny=tiny):
        if not choice.setting("data", setting.name):
            continue
        heading = _heading(setting, device)
        measure = partial(measured, setting, device, seconds, tiny=tiny, choice=choice)
        yield from in_time(heading, deadline, measure)


def measured(
    setting: Setting, device: str, seconds: float, *, tiny: bool = False, choice: Choice = ALL
) -> Iterator[Row]:
    """The rows of one setting."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        absent: dict[str, str] = {}
        if setting.family == "cifar" and choice.variant("step"):  # in rounds of their own: a step takes far longer
            yield from _rows(setting, device, _steps(setting, device, stack, absent, choice, tiny=tiny), seconds)
        data = setting.make(Path(folder))
        count = len(data.train)
        epochs: dict[str, tuple[Epoch, int]] = {}
        if choice.variant("pil"):
            epochs["pil"] = (_pil(setting, data, device, 0 if tiny else WORKERS), count)
        places = {"torch": device, "dali": device, "resident": device}
        if device == "cuda":
            places["dali-cpu"] = "cpu"
        for name in filter(choice.variant, places):
            where = places[name]
            loader = _opened(name, data, where, stack, absent)
            if loader is not None:
                epochs[name] = (_epochs(loader, setting.batch, device), count)
        if epochs:
            yield from _rows(setting, device, epochs, seconds)
        yield from ({**_heading(setting, device), "variant": name, "status": why} for name, why in absent.items())


def _opened(variant: str, data: Data, device: str, stack: ExitStack, absent: dict[str, str]) -> Loader | None:
    """The loader of a variant, closed with the stack; one that cannot be had here is `absent`."""
    name = variant.removeprefix("step+").partition("+")[0].partition("-")[0]
    try:
        return stack.enter_context(open_loader(data, name, device=device, channels_last="+" in variant))
    except DataError as error:
        absent[variant] = f"not available: {error}"
        return None


def _pil(setting: Setting, data: Data, device: str, workers: int) -> Epoch:
    loader = torch.utils.data.DataLoader(
        OneByOne(data),
        setting.batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="spawn" if workers else None,  # threads of other suites are about: no fork
        pin_memory=device == "cuda",
    )

    def epoch() -> None:
        for images, labels in loader:
            images.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    return epoch


def _epochs(loader: Loader, batch: int, device: str) -> Epoch:
    number = 0

    def epoch() -> None:
        nonlocal number
        for images, labels in loader.train_batches(number, batch_size=batch, seed=0):
            images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        number += 1

    return epoch


def _steps(
    setting: Setting, device: str, stack: ExitStack, absent: dict[str, str], choice: Choice, *, tiny: bool
) -> dict[str, tuple[Epoch, int]]:
    """The step on a fixed batch and, on CUDA, on the batches of each loader, which has `STEPS` of them."""
    capture = device == "cuda"
    pair, precision = (TINY, "fp32") if tiny else (PAIRS[0], half_precision() if capture else "fp32")
    batch = 2 if tiny else setting.batch
    problem = pair.problem(batch, precision, device)
    fixed = ways.lit_step(problem, "runner", "auto", capture=capture)
    count = STEPS if capture and not tiny else 1

    def same() -> None:
        for _ in range(count):
            fixed(problem.inputs, problem.labels)

    found: dict[str, tuple[Epoch, int]] = {"step": (same, count * batch)}
    if not capture and not tiny:
        return found
    data = arrays(count * batch, pair.image[1])
    for name in filter(choice.variant, ("step+resident", "step+resident+ahead", "step+torch", "step+dali")):
        loader = _opened(name, data, device, stack, absent)
        if loader is not None:
            ahead = name.endswith("+ahead")
            step = ways.lit_step(problem, "runner", "auto", capture=capture, teacher_ahead=ahead)
            found[name] = (_trained(step, loader, batch), count * batch)
    return found


def _trained(step: LITStep, loader: Loader, batch: int) -> Epoch:
    number = 0

    def epoch() -> None:
        nonlocal number
        if step.captured and isinstance(loader, ResidentLoader):
            for rows in loader.begin(number, batch_size=batch, seed=0):
                step.train_on(loader.training, rows)
        else:
            for images, labels in loader.train_batches(number, batch_size=batch, seed=0):
                step(images, labels)
        number += 1

    return epoch


def _rows(setting: Setting, device: str, epochs: dict[str, tuple[Epoch, int]], seconds: float) -> list[Row]:
    pairs = Pairs({name: epoch for name, (epoch, _) in epochs.items()}, device)
    pairs.run(seconds)
    rows = []
    for name, times in pairs.times.items():
        median, low, high = pairs.spread(name)
        row = {
            **_heading(setting, device),
            "variant": name,
            "status": "measured",
            "best": True,
            "rounds": len(times),
            "median_us": median * 1e6,
            "quartiles_us": [low * 1e6, high * 1e6],
            "images_s": epochs[name][1] / median,
        }
        for other in AGAINST:
            if other in pairs.times:
                row[f"times_{other}"] = pairs.ratio(name, other)
        if name != "step" and "step" in pairs.times:
            row["percent_lost"] = 100 * (1 - pairs.ratio(name, "step"))
        rows.append(row)
    return [*rows, *({**_heading(setting, device), "variant": k, "status": why} for k, why in pairs.failed.items())]


def _heading(setting: Setting, device: str) -> Row:
    return {
        "suite": "data",
        "setting": setting.name,
        "family": setting.family,
        "device": device,
        "batch": setting.batch,
        "dtype": "uint8",
        "mode": None,
    }
