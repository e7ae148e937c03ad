"""``lit-fast bench``: one training step of a pair of networks, in all the ways it can be computed."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lit_fast.cli.options import Blocks, Device, Sections, Targets
from lit_fast.cli.output import Quiet
from lit_fast.cli.own import CutSettings, Example, batch_of, cut_settings, shapes, split_network
from lit_fast.cli.subject import Domains, ImageSize, InChannels, Length, NumClasses, Sizes, Subject, Width

if TYPE_CHECKING:
    from torch import Tensor

    from lit_fast.bench.ways import Problem
    from lit_fast.sections.model import SplitModel

__all__ = ["bench"]

_WAYS = {
    "plain": "modules, unfused losses, section 1 twice, the loss read at every step",
    "eager": "lit_fast on modules and plain PyTorch operations (--engine eager)",
    "compile": "eager under torch.compile",
    "runner": "the teacher lowered, the fused loss (the default)",
    "fused": "the teacher's modules, the fused loss (the default of a recorded teacher)",
    "capture": "the default, replayed as one CUDA graph",
}


def bench(
    teacher: Annotated[
        str,
        typer.Option("--teacher", metavar="NET", help="A network's name, or module:function of yours."),
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
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="MODULE:FUNCTION", help="A dataset of yours to take a batch of.")
    ] = None,
    example: Example = None,
    blocks: Blocks = None,
    sections: Sections = None,
    targets: Targets = None,
    settings: CutSettings = None,
    seconds: Annotated[float, typer.Option("--seconds", metavar="S", help="Of measuring.", min=0.0)] = 20.0,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="With torch.compile, which takes long.")
    ] = True,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write what was measured as JSON.")] = None,
    profile: Annotated[
        Path | None,
        typer.Option("--profile", metavar="FILE", help="Draw where the time of a step goes (.png) instead of timing."),
    ] = None,
    quiet: Quiet = False,
) -> dict[str, Any]:
    """Measure one training step of two networks: plain PyTorch against lit_fast, on random images or texts.

    Every way is checked against the eager one, then all take turns, so that what drifts hits them alike. Run it with
    nothing else on the machine.
    """
    import torch

    from lit_fast import models
    from lit_fast.bench import step
    from lit_fast.bench.ways import Problem
    from lit_fast.files import refuse_odd, write_json
    from lit_fast.runs.environment import describe_environment, resolve_device
    from lit_fast.runs.export import random_input
    from lit_fast.sections.inputs import replaced
    from lit_fast.step.lit_model import PRECISIONS

    if precision not in PRECISIONS:
        raise ValueError(f"--precision: expected {', '.join(PRECISIONS)}, got {precision!r}")
    for option, path in (("--out", out), ("--profile", profile)):
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"{option} {path}: there is no folder {path.parent}")
        if path is not None:
            refuse_odd(path)
    if profile is not None and profile.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--profile: expected a file ending in .png, .svg or .pdf, got {profile}")
    if threads is not None:
        torch.set_num_threads(threads)
    where = resolve_device(device)
    torch.manual_seed(0)
    sizes = Sizes(num_classes, image_size, in_channels, length, domains, width)
    subject = Subject.of(models.Network.parse(teacher), sizes)
    if dataset is not None and ":" not in dataset:
        raise ValueError(f"--dataset: expected module:function of a dataset of yours, got {dataset!r}")
    flags = {"blocks": blocks, "sections": sections, "targets": targets}
    chosen = cut_settings((teacher, student), flags, settings)
    batch = batch_of(example, dataset, batch_size)
    inputs = random_input(batch_size, subject.shape) if batch is None else batch.inputs
    pair = [
        split_network(teacher, "teacher", subject, chosen, inputs),
        split_network(student, "student", subject, chosen, inputs),
    ]
    if pair[0].num_sections != pair[1].num_sections:
        raise ValueError(
            f"--student: expected {pair[0].num_sections} sections as --teacher, got {pair[1].num_sections}"
        )
    pair = [model.to(where) for model in pair]
    inputs = replaced(inputs, lambda value: value.to(where) if isinstance(value, torch.Tensor) else value)
    if batch is not None and batch.labels is not None:
        labels: Tensor | None = batch.labels.to(where)
    elif subject.generates:
        labels = None
    elif batch is None and chosen.targets == "classification":
        labels = torch.randint(0, num_classes, (batch_size,)).to(where)
    else:
        labels = _random_labels(pair[0], inputs, chosen.targets)
    problem = Problem(
        pair[0],
        pair[1],
        inputs,
        labels,
        precision,
        beta=0.0 if subject.generates else 0.75,  # a generator has no logits: the IR loss alone
        name=f"{teacher} to {student}",
        targets=chosen.loss_targets,
    )
    machine = describe_environment(where)
    named = f"{machine['processor']}, {machine['threads']} threads" if where.type == "cpu" else machine["device"]
    fed = f"batch {batch_size} of {' x '.join(map(str, subject.shape))}" if batch is None else shapes(inputs)
    heading = f"{problem.name}, {fed}, {precision}, {named}"
    typer.echo(heading)
    if profile is not None:
        return {"heading": heading, **_draw(problem, profile, heading)}
    tell = (lambda line: None) if quiet else (lambda line: typer.echo(line, err=True))
    rows = step.measured(problem, step.builders(problem, compiled=compiled), seconds=seconds, tell=tell)
    _print_rows(rows)
    content = {"heading": heading, "rows": rows}
    if out is not None:
        write_json(out, content)
        typer.echo(f"written to {out}")
    return content


def _random_labels(teacher: SplitModel, inputs: Any, targets: str) -> Tensor | None:
    """Of the shape that goes with the teacher's logits; None where targets need none."""
    import torch

    from lit_fast.loss.targets import logits_of
    from lit_fast.sections.inputs import call

    if targets == "causal_lm":
        return None
    if targets not in ("classification", "dense", "tokens"):
        raise ValueError(
            f"--targets {targets}: expected a batch with labels; give --dataset, or --example with 'labels'"
        )
    with torch.no_grad():
        logits = logits_of(call(teacher, inputs))
    classes = logits.shape[-1 if targets == "tokens" else 1]
    shape = logits.shape[:2] if targets == "tokens" else (len(logits), *logits.shape[2:])
    return torch.randint(0, classes, shape, device=logits.device)


def _print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    from lit_fast.tables import aligned

    measured = [row for row in rows if row["status"] == "measured"]
    typer.echo("")
    lines = [["", "ms", "images/s", "memory", "x plain", "x eager", "x compile"]]
    for row in sorted(measured, key=lambda row: -row["median_us"]):
        memory = f"{row['peak_bytes'] / 2**20:,.0f} MiB" if "peak_bytes" in row else ""
        ratios = [f"{row[key]:.2f}" if key in row else "" for key in ("times_plain", "times_eager", "times_compile")]
        lines.append([row["variant"], f"{row['median_us'] / 1e3:.2f}", f"{row['images_s']:,.0f}", memory, *ratios])
    typer.echo(aligned(lines, left=1, least=(10, 7, 9, 9, 7, 7, 9)))
    typer.echo("")
    if measured:
        typer.echo("x ...: times as fast as that way, the median of the ratios of each round (ms: the median time)")
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


def _draw(problem: Problem, path: Path, heading: str) -> dict[str, Any]:
    from lit_fast.bench import timeline, ways

    problem.mark = timeline.mark
    chosen = {"plain": ways.plain_step(problem)}
    for capture in (False, True) if problem.device == "cuda" else (False,):
        step = ways.lit_step(problem, "auto", "auto", capture=capture)
        step.mark = timeline.mark
        chosen["capture" if capture else step.engine] = functools.partial(step, problem.inputs, problem.labels)
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
    return {"figure": path, "total_us": {recorded.title: recorded.total for recorded in found}}
