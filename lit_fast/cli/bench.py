"""``lit-fast bench``: one training step of a pair of networks, in all the ways it can be computed."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lit_fast.cli.options import Device
from lit_fast.cli.subject import Domains, ImageSize, InChannels, Length, NumClasses, Sizes, Subject, Width

if TYPE_CHECKING:
    from lit_fast.bench.ways import Problem
    from lit_fast.sections.model import SplitModel

__all__ = ["bench"]

_WAYS = {
    "plain": "modules, unfused losses, section 1 twice, the loss read at every step",
    "eager": "lit_fast on modules and plain PyTorch operations (--engine eager)",
    "compile": "eager under torch.compile",
    "runner": "the teacher lowered, the fused loss (the default)",
    "capture": "runner, replayed as one CUDA graph",
}


def bench(
    teacher: Annotated[
        str,
        typer.Option("--teacher", metavar="NET", help="A network's name, or module:function that returns a split one."),
    ],
    student: Annotated[str, typer.Option("--student", metavar="NET", help="The student's, likewise.")],
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Images per step.", min=1)] = 32,
    precision: Annotated[str, typer.Option("--precision", metavar="NAME", help="fp32, bf16 or fp16.")] = "fp32",
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option("--threads", metavar="N", help="Of the CPU.", min=1)] = None,
    num_classes: NumClasses = 10,
    image_size: ImageSize = 32,
    in_channels: InChannels = 3,
    length: Length = 1014,
    domains: Domains = 5,
    width: Width = 64,
    seconds: Annotated[float, typer.Option("--seconds", metavar="S", help="Of measuring.", min=0.0)] = 20.0,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="With torch.compile, which takes long.")
    ] = True,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write what was measured as JSON.")] = None,
    profile: Annotated[
        Path | None,
        typer.Option("--profile", metavar="FILE", help="Draw where the time of a step goes (.png) instead of timing."),
    ] = None,
) -> None:
    """Measure one training step of two networks: plain PyTorch against lit_fast, on random images or texts.

    Every way is checked against the eager one, then all take turns, so that what drifts hits them alike. Run it with
    nothing else on the machine.
    """
    import torch

    from lit_fast import models
    from lit_fast.bench.ways import Problem
    from lit_fast.runs.environment import describe_environment, resolve_device
    from lit_fast.runs.export import random_input
    from lit_fast.step.lit_model import PRECISIONS

    if precision not in PRECISIONS:
        raise ValueError(f"--precision: expected {', '.join(PRECISIONS)}, got {precision!r}")
    for option, path in (("--out", out), ("--profile", profile)):
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"{option} {path}: there is no folder {path.parent}")
    if profile is not None and profile.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--profile: expected a file ending in .png, .svg or .pdf, got {profile}")
    if threads is not None:
        torch.set_num_threads(threads)
    where = resolve_device(device)
    torch.manual_seed(0)
    sizes = Sizes(num_classes, image_size, in_channels, length, domains, width)
    subject = Subject.of(models.Network.parse(teacher), sizes)
    pair = [_split(name, option, subject) for name, option in ((teacher, "--teacher"), (student, "--student"))]
    if pair[0].num_sections != pair[1].num_sections:
        raise ValueError(
            f"--student: expected {pair[0].num_sections} sections as --teacher, got {pair[1].num_sections}"
        )
    images = random_input(batch_size, subject.shape).to(where)
    labels = None if subject.generates else torch.randint(0, num_classes, (batch_size,)).to(where)
    problem = Problem(
        pair[0].to(where),
        pair[1].to(where),
        images,
        labels,
        precision,
        beta=0.0 if subject.generates else 0.75,  # a generator has no logits: the IR loss alone
        name=f"{teacher} to {student}",
    )
    machine = describe_environment(where)
    named = f"{machine['processor']}, {machine['threads']} threads" if where.type == "cpu" else machine["device"]
    heading = f"{problem.name}, batch {batch_size} of {' x '.join(map(str, subject.shape))}, {precision}, {named}"
    typer.echo(heading)
    if profile is not None:
        _draw(problem, profile, heading)
        return
    _time(problem, seconds, compiled, out, heading)


def _split(name: str, option: str, subject: Subject) -> SplitModel:
    """A built-in network of the subject's sizes, or what a function of the user's returns; split."""
    from lit_fast.models import Network
    from lit_fast.sections.cutting import split
    from lit_fast.sections.model import SplitModel

    if ":" not in name:
        return split(replace(subject, network=Network.parse(name)).build())
    found = _own_function(name, option)()
    if isinstance(found, SplitModel):
        return found
    if not getattr(found, "sections", None):
        raise ValueError(
            f"{option} {name}: expected a split network, got {type(found).__name__}: return lf.split(net, at=[...])"
        )
    return split(found)


def _own_function(name: str, option: str) -> Any:
    import importlib
    import sys

    module, _, function = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` has it
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise ValueError(f"{option} {name}: there is no module {module!r} here or in the environment") from None
    finally:
        sys.path.remove(str(Path.cwd()))
    if not callable(found):
        raise ValueError(f"{option} {name}: module {module!r} has no function {function!r}")
    return found


def _time(problem: Problem, seconds: float, compiled: bool, out: Path | None, heading: str) -> None:
    from lit_fast.bench import step
    from lit_fast.files import write_json
    from lit_fast.tables import aligned

    rows = step.measured(problem, step.builders(problem, compiled=compiled), seconds=seconds)
    measured = [row for row in rows if row["status"] == "measured"]
    typer.echo("")
    lines = [["", "ms", "images/s", "memory", "x plain", "x eager", "x compile"]]
    for row in sorted(measured, key=lambda row: -row["median_us"]):
        memory = f"{row['peak_bytes'] / 2**20:,.0f} MiB" if "peak_bytes" in row else ""
        ratios = [f"{row[key]:.2f}" if key in row else "" for key in ("times_plain", "times_eager", "times_compile")]
        lines.append([row["variant"], f"{row['median_us'] / 1e3:.2f}", f"{row['images_s']:,.0f}", memory, *ratios])
    typer.echo(aligned(lines, left=1, least=(10, 7, 9, 9, 7, 7, 9)))
    typer.echo("")
    for row in measured:
        typer.echo(f"{row['variant']:<9} {_WAYS[row['variant']]}")
    for row in rows:
        if row["status"] != "measured":
            typer.echo(f"{row['variant']:<9} not measured: {row['status']}")
    if measured:
        best = min(measured, key=lambda row: row["median_us"])
        typer.echo(
            f"A step takes at least {best['gflop']:.1f} GFLOP and {best['least_bytes'] / 1e6:.0f} MB: "
            f"{best['variant']} does {best['gflop_s']:,.0f} GFLOP/s."
        )
    if out is not None:
        write_json(out, {"heading": heading, "rows": rows})
        typer.echo(f"written to {out}")


def _draw(problem: Problem, path: Path, heading: str) -> None:
    from lit_fast.bench import timeline, ways

    problem.mark = timeline.mark
    chosen = {"plain": ways.plain_step(problem)}
    for capture in (False, True) if problem.device == "cuda" else (False,):
        step = ways.lit_step(problem, "auto", "auto", capture=capture)
        step.mark = timeline.mark
        chosen["capture" if capture else step.engine] = functools.partial(step, problem.images, problem.labels)
    found = []
    for name, way in chosen.items():
        trace = path.with_name(f"{path.stem}-{name}.json")
        recorded = timeline.record(way, name, trace)
        found.append(recorded)
        typer.echo(f"\n{name}: {recorded.total / 1e3:.2f} ms under the profiler; {_WAYS[name]}")
        for row in recorded.rows:
            busy = recorded.busy(row)
            typer.echo(f"  {row}: " + ", ".join(f"{part} {time / 1e3:.2f}" for part, time in busy.items()))
        typer.echo(f"  trace: {trace}")
    timeline.draw(found, path, heading)
    typer.echo(f"\n{path}")
