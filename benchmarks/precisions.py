"""bf16 against fp32 on this device: ``python -m benchmarks.precisions --out DIR``.

Teacher, student and step of an image pair and of a transformer, the same weights and batch, in turns; beside the times,
how far the bf16 results are from those of fp32. On a CPU the gain depends on its instructions for bf16, which the
results file lists: AMX has tiles, AVX512_BF16 a dot product, and without either PyTorch widens to fp32.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import lit_fast as lf
from benchmarks import machine, run
from benchmarks.pairs import PAIRS, TINY
from benchmarks.recording import Transformer
from lit_fast.bench.pairing import Pairs

PRECISIONS = ("fp32", "bf16")
CLASSES = 4
WIDTH = 256


class Batch(NamedTuple):
    """What the two networks are given."""

    inputs: Any
    labels: Tensor


class Subject(NamedTuple):
    """A pair of networks whose precisions are compared."""

    name: str
    teacher: lf.SplitModel
    student: lf.SplitModel
    batch: Batch


def images(size: int, device: str, *, tiny: bool) -> Subject:
    torch.manual_seed(0)
    pair = TINY if tiny else PAIRS[0]
    teacher, student = (
        lf.split(build().to(device, memory_format=torch.channels_last)) for build in (pair.teacher, pair.student)
    )
    pixels = torch.randn(size, *pair.image, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, pair.classes, (size,), device=device)
    return Subject(f"{pair.name}, batch {size}", teacher, student, Batch(pixels, labels))


def texts(size: int, device: str, *, tiny: bool) -> Subject:
    torch.manual_seed(0)
    width, tokens = (8, 8) if tiny else (WIDTH, 64)
    teacher, student = (
        lf.split(Transformer(width, blocks).to(device), blocks="layers", sections=2, how="recorded")
        for blocks in (8, 2)
    )
    ids = torch.randint(1000, (size, tokens), device=device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = torch.randint(0, CLASSES, (size,), device=device)
    return Subject(
        f"transformer of 8 blocks to 2, width {width}, batch {size}", teacher, student, Batch(inputs, labels)
    )


def autocast(precision: str, device: str) -> Any:
    return torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext()


def teachers(subject: Subject, device: str) -> dict[str, Callable[[], Tensor]]:
    """The teacher's forward as a step runs it: lowered where it is traced, else its own."""
    ways: dict[str, Callable[[], Tensor]] = {}
    subject.teacher.eval().requires_grad_(False)
    for precision in PRECISIONS:
        if subject.teacher.how == "traced":
            frozen = lf.FrozenTeacher(subject.teacher, torch.bfloat16 if precision == "bf16" else None, strict=False)
            ways[precision] = lambda frozen=frozen: frozen.run(subject.batch.inputs)[1]
        else:

            def own(precision: str = precision) -> Tensor:
                with torch.no_grad(), autocast(precision, device):
                    logits = subject.teacher.run(subject.batch.inputs)[1]
                subject.teacher.release()
                return logits

            ways[precision] = own
    return ways


def students(subject: Subject, device: str) -> dict[str, Callable[[], Tensor]]:
    """Forward and backward of the student alone, by the labels."""
    student = subject.student.train()
    inputs = subject.batch.inputs

    def trained(precision: str) -> Tensor:
        student.model.zero_grad()
        with autocast(precision, device):
            logits = student.model(**inputs) if isinstance(inputs, dict) else student.model(inputs)
            loss = nn.functional.cross_entropy(logits, subject.batch.labels)
        loss.backward()
        return logits.detach()

    return {precision: lambda precision=precision: trained(precision) for precision in PRECISIONS}


def steps(subject: Subject) -> dict[str, Callable[[], Tensor]]:
    """Whole steps of LIT."""
    ways: dict[str, Callable[[], Tensor]] = {}
    for precision in PRECISIONS:
        student = deepcopy(subject.student).train()
        optimizer = torch.optim.SGD(student.parameters(), lr=1e-4, momentum=0.9)
        criterion = lf.LITLoss(alpha=0.5, beta=0.5, tau=4.0)
        step = lf.LITStep(subject.teacher, student, criterion, optimizer, precision=precision)
        ways[precision] = lambda step=step: step(*subject.batch).total.detach()
    return ways


def rows(device: str, seconds: float, sizes: tuple[int, ...], *, tiny: bool) -> Iterator[dict[str, Any]]:
    for make in (images, texts):
        for size in sizes:
            subject = make(size, device, tiny=tiny)
            for part, ways in (
                ("teacher", teachers(subject, device)),
                ("student", students(subject, device)),
                ("step", steps(subject)),
            ):
                right, other = (ways[precision]().float() for precision in PRECISIONS)
                error = ((other - right).norm() / right.norm()).item()
                pairs = Pairs(ways, device)
                pairs.run(seconds)
                gain = pairs.ratio("bf16", "fp32")
                for precision in pairs.times:
                    median, low, high = (1e3 * value for value in pairs.spread(precision))
                    row = {"suite": "precisions", "setting": subject.name, "part": part, "variant": precision}
                    yield {
                        **row,
                        "median_ms": median,
                        "low_ms": low,
                        "high_ms": high,
                        "times_fp32": gain,
                        "error": error,
                    }
                print(f"{subject.name:<50} {part:<8} bf16 {gain:.2f} x as fast, relative error {error:.2g}", flush=True)


def instructions() -> list[str]:
    """Those for bf16 that this CPU says it has."""
    try:
        known = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return []
    return [name for name in ("amx_bf16", "avx512_bf16", "avx_ne_convert", "bf16") if name in known]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="write DIR/<device>-precisions.json")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="of rounds at one setting")
    parser.add_argument("--tiny", action="store_true", help="sizes that only try the code")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = (4,) if options.tiny else (32, 128)
    measured = list(rows(options.device, options.seconds, sizes, tiny=options.tiny))
    if options.out:
        command = f"python -m benchmarks.precisions {' '.join(sys.argv[1:])}"
        content = run.results(options.device, command, measured, tiny=options.tiny)
        content["instructions"] = instructions()
        run.write(options.out / f"{machine.slug(options.device)}-precisions.json", content)


if __name__ == "__main__":
    main()
