"""What no CPU can tell, in a minute: fused convolutions, the teacher, the captured step kernel by kernel, the loss.

``python -m benchmarks.gpu.probe`` adds one line for each finding to the journal (LIT_FAST_JOURNAL); what is there
already is not looked at again. ``--tiny`` tries the code on the CPU.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lit_fast as lf
from benchmarks import journal
from benchmarks.overhead import seconds_of
from benchmarks.pairs import PAIRS, TINY
from lit_fast import float32
from lit_fast.bench import ways

Fields = dict[str, Any]
Finding = tuple[str, Callable[[], Fields]]
_TOP = 40  # kernels, by time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument(
        "--search", action="store_true", help="captured steps with the algorithms that cuDNN found fastest"
    )
    options = parser.parse_args()
    tiny = options.tiny
    # For a process as a whole: what cuDNN has chosen for a shape it keeps, however it was chosen.
    torch.backends.cudnn.benchmark = options.search
    path = Path(os.environ["LIT_FAST_JOURNAL"])
    known = {entry["name"] for entry in journal.read(path, "probe") if "failed" not in entry}
    for name, look in findings("cpu" if tiny else "cuda", tiny=tiny, search=options.search):
        if name not in known:
            start = time.monotonic()
            try:
                fields = look()
            except Exception as error:
                fields = {"failed": f"{type(error).__name__}: {error}"[:800]}
            fields["seconds"] = round(time.monotonic() - start, 1)
            journal.append(path, "probe", stage="probe", name=name, **fields)
            print(name, {key: value for key, value in fields.items() if key != "top"}, flush=True)


def findings(device: str, *, tiny: bool, search: bool = False) -> list[Finding]:
    """What is looked at, most important first."""
    if search:
        return _captured_steps(device, ", cuDNN's search", tiny=tiny)
    if tiny:
        return [
            ("teacher, fp32", lambda: teacher(device, 2, torch.float32, tf32=True)),
            *_captured_steps(device, "", tiny=True),
            ("loss, batch 2, native", lambda: loss(device, 2, "native", 10)),
        ]
    found: list[Finding] = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for channels, groups in ((16, 1), (64, 1), (128, 32)):
            name = f"fused convolution, {dtype}, {channels} channels, {groups} groups, memory full of NaN"
            found.append((name, functools.partial(fused_convolution, dtype, channels, groups)))
    for tf32 in (True, False):
        words = f"teacher, fp32, TF32 {'on' if tf32 else 'off'}"
        found.append((words, functools.partial(teacher, device, 32, torch.float32, tf32=tf32)))
    found += _captured_steps(device, "", tiny=False)
    for batch in (32, 128, 1024):
        words = f"teacher, bf16, batch {batch}"
        found.append((words, functools.partial(teacher, device, batch, torch.bfloat16, tf32=True)))
    for batch in (32, 128, 1024, 8192):
        for backend in ("native", "triton"):
            found.append((f"loss, batch {batch}, {backend}", functools.partial(loss, device, batch, backend, 10)))
    for beta, part in ((0.0, "IRs alone"), (1.0, "logits alone")):
        for batch in (32, 1024):
            words = f"loss, batch {batch}, native, {part}"
            found.append((words, functools.partial(loss, device, batch, "native", 10, beta=beta)))
    for classes in (1000, 50257):
        for backend in ("native", "triton"):
            name = f"loss, 1024 rows of {classes} classes, {backend}"
            found.append((name, functools.partial(loss, device, 1024, backend, classes, beta=1.0)))
    return found


def _captured_steps(device: str, words: str, *, tiny: bool) -> list[Finding]:
    found: list[Finding] = []
    for batch in (2,) if tiny else (32, 1024, 128):
        for name, options in STEPS.items() if not tiny else [("", {})]:
            look = functools.partial(captured_step, device, batch, "fp32" if tiny else "bf16", tiny=tiny, **options)
            found.append((f"captured step, batch {batch}, {'fp32' if tiny else 'bf16'}{name}{words}", look))
    return found


# -- cuDNN -------------------------------------------------------------------------------------------------------------


def fused_convolution(dtype: torch.dtype, channels: int, groups: int) -> Fields:
    """cuDNN's fused convolutions where the memory that it gets for the result holds NaN: alpha = 0 must not read it."""
    shape = (32, channels, 32, 32)
    x = torch.randn(shape, device="cuda").to(dtype, memory_format=torch.channels_last)
    z = torch.randn_like(x)
    weight = torch.randn(channels, channels // groups, 3, 3, device="cuda").div(12)
    weight = weight.to(dtype, memory_format=torch.channels_last)
    bias = torch.randn(channels, device="cuda").to(dtype)
    right = torch.conv2d(x.double(), weight.double(), bias.double(), 1, 1, 1, groups)
    sizes = ([1, 1], [1, 1], [1, 1])
    _leave_nan_behind(x)
    alone = torch.cudnn_convolution_relu(x, weight, bias, *sizes, groups)
    _leave_nan_behind(x)
    added = torch.cudnn_convolution_add_relu(x, weight, z, 1.0, bias, *sizes, groups)
    pairs = ((alone, right), (added, right + z.double()))
    off = [((ours.double() - exact.relu()).abs().max() / exact.abs().max()).item() for ours, exact in pairs]
    return {"off": off, "channels_last": alone.is_contiguous(memory_format=torch.channels_last)}


def _leave_nan_behind(like: Tensor) -> None:
    held = [torch.full_like(like, float("nan")) for _ in range(8)]
    torch.cuda.synchronize()
    del held


# -- the teacher and the step ------------------------------------------------------------------------------------------


def teacher(device: str, batch: int, dtype: torch.dtype, *, tf32: bool) -> Fields:
    """The lowered teacher: how far its parts are from the modules, and its time."""
    with float32.tf32(tf32):
        pair = TINY if device == "cpu" else PAIRS[0]
        module = lf.split(pair.teacher().to(device))
        frozen = lf.FrozenTeacher(module, dtype)
        images = torch.randn(batch, *pair.image, device=device)
        frozen.run(images)
        parts = [part._asdict() for part in frozen.parts]
        times = {"runner_ms": _ms(lambda: frozen.run(images), device)}
        with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype is not torch.float32):
            times["modules_ms"] = _ms(lambda: module.run(images), device)
        return {"parts": parts, **times}


# What a captured step is tried with.
STEPS: dict[str, dict[str, bool]] = {
    "": {"side_by_side": False, "fused_norm": False},
    ", a launch for each parameter": {"side_by_side": False, "fused_norm": False, "separate_launches": True},
    ", side by side": {"side_by_side": True, "fused_norm": False},
    ", fused norm": {"side_by_side": False, "fused_norm": True},
    ", side by side, fused norm": {"side_by_side": True, "fused_norm": True},
}


def captured_step(
    device: str,
    batch: int,
    precision: str,
    *,
    tiny: bool = False,
    separate_launches: bool = False,
    **options: bool,
) -> Fields:
    """A captured step's time, and the device's time by the names of kernels."""
    problem = (TINY if tiny else PAIRS[0]).problem(batch, precision, device)
    step = ways.lit_step(problem, "auto", "auto", capture=device == "cuda", **options)
    step.passes.weights.on = not separate_launches

    def train() -> None:
        step(problem.inputs, problem.labels)

    ms = _ms(train, device, calls=20 if device == "cuda" else 1)
    found = {"ms": ms, "images_s": batch / ms * 1e3, "captured": step.captured, "why": step.capture_reason}
    return {**found, "engine": step.engine_reason, **(_kernels(train) if device == "cuda" else {})}


# -- the loss ----------------------------------------------------------------------------------------------------------


def loss(device: str, batch: int, backend: str, classes: int, *, beta: float = 0.75) -> Fields:
    """Loss and gradients in bfloat16, CIFAR's sections (none if beta is 1): the host's time, and the kernels'."""
    shapes = ((16, 32, 32), (32, 16, 16), (64, 8, 8)) if beta < 1 else ()
    half = torch.bfloat16
    student = [torch.randn(batch, *shape, device=device).to(half).requires_grad_() for shape in shapes]
    target = [torch.randn_like(ir) for ir in student]
    logits = torch.randn(batch, classes, device=device).to(half).requires_grad_()
    soft, labels = torch.randn_like(logits), torch.randint(0, classes, (batch,), device=device)
    one = torch.ones((), device=device)
    leaves = [*student, logits] if beta > 0 else student

    def run() -> Any:
        total = lf.lit_loss(student, target, logits, soft, labels, beta=beta, backend=backend)
        return torch.autograd.grad(total, leaves, one)

    found: Fields = {"us": 1000 * _ms(run, device, calls=50 if device == "cuda" else 1)}
    if device == "cuda":
        found |= _kernels(run)
        moved = 6 * sum(leaf.numel() for leaf in leaves)
        found["gb_s"] = moved / found["kernels_us"] / 1e3
    return found


# -- measuring ---------------------------------------------------------------------------------------------------------


def _ms(call: Callable[[], object], device: str, calls: int = 10) -> float:
    """Milliseconds of one of several calls, one behind the other."""
    for _ in range(3):
        call()
    return seconds_of(call, device, calls) / calls * 1e3


def _kernels(call: Callable[[], object], calls: int = 3) -> Fields:
    """Kernels, copies and fills of one call, and the longest of them: [microseconds, how many, name]."""
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    by_name: dict[str, tuple[float, float]] = {}
    for event in seen.events():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.endswith(" Sync"):
            count, total = by_name.get(event.name, (0.0, 0.0))
            by_name[event.name] = (count + 1 / calls, total + event.time_range.elapsed_us() / calls)
    top = sorted(((round(us, 2), round(count, 1), name[:120]) for name, (count, us) in by_name.items()), reverse=True)
    nodes, total = (sum(one[i] for one in by_name.values()) for i in (0, 1))
    return {"nodes": nodes, "kernels_us": total, "top": top[:_TOP]}


if __name__ == "__main__":
    main()
