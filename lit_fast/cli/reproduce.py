"""``lit-fast reproduce``: the paper's studies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lit_fast.cli.about import listed
from lit_fast.cli.options import DataDir, Settings
from lit_fast.cli.output import Quiet
from lit_fast.tables import printable_lines

__all__ = ["reproduce"]


def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A study, or a YAML file of one; without: list them.")
    ] = None,
    data_dir: DataDir = None,
    budget: Annotated[
        str,
        typer.Option("--budget", metavar="NAME", help="smoke (digits), cpu (hours), short (20 epochs) or paper."),
    ] = "smoke",
    seeds: Annotated[
        int | None, typer.Option("--seeds", metavar="N", help="Runs of everything, seeds 0 to N - 1.", min=1)
    ] = None,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="FAMILY", help="Groups of this family: resnet, resnext, vdcnn, stargan."),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", metavar="MODEL", help="Another teacher, with --teacher-checkpoint.")
    ] = None,
    teacher_checkpoint: Annotated[
        Path | None, typer.Option("--teacher-checkpoint", metavar="FILE", help="Its weights.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", metavar="N", help="Runs at a time. Default: one for each GPU.", min=1)
    ] = None,
    run_dir: Annotated[
        Path, typer.Option("--run-dir", metavar="DIR", help="Where all studies lie; they share runs.")
    ] = Path("studies"),
    overview: Annotated[
        bool, typer.Option("--overview", help="Run nothing: all studies with the results in --run-dir.")
    ] = False,
    settings: Settings = None,
    quiet: Quiet = False,
) -> dict[str, Any]:
    """Run a study of the paper, or go on with it, and render its table beside the paper's numbers."""
    from rich.console import Console

    from lit_fast.paper import studies

    if overview:
        from lit_fast.paper.overview import overview as overview_of

        if name is not None:
            raise ValueError(f"--overview shows all studies: leave out {name}")
        everything = overview_of(run_dir)
        typer.echo(printable_lines("\n\n\n".join(f"{study}\n{tables}" for study, tables in everything.items())))
        return everything
    if name is None:
        return listed(studies)
    from lit_fast.paper.budgets import BUDGETS, budgets
    from lit_fast.paper.plan import load_study, plan

    if budget not in BUDGETS:
        raise ValueError(f"--budget: expected {', '.join(BUDGETS)}, got {budget!r}")
    if (teacher is None) != (teacher_checkpoint is None):
        raise ValueError("--teacher and --teacher-checkpoint belong together: give both or neither")
    study = load_study(name)
    chosen = budgets(study.task)[budget]
    given = None if teacher is None or teacher_checkpoint is None else (teacher, teacher_checkpoint)
    runs = plan(study, chosen, seeds=seeds, data_dir=data_dir, teacher=given, overrides=settings or (), only=only)
    # Only now: a wrong setting is told before everything that trains is loaded.
    from lit_fast.paper.report import write_report
    from lit_fast.paper.run import run_study

    typer.echo(f"{study.title} ({study.source}): {len(runs)} runs, budget {budget}: {chosen.about}")
    console = Console(stderr=True, quiet=quiet)
    path = run_study(Path(name).stem, study, (budget, chosen), runs, run_dir, jobs=jobs, console=console)
    report = write_report(path)
    typer.echo("")
    typer.echo(printable_lines(report.text))
    typer.echo(f"\nresults  {path}\nreport   {report.markdown}")
    if report.figure is not None:
        typer.echo(f"figure   {report.figure}")
    if report.note is not None:
        typer.echo(f"note: {report.note}", err=True)
    files = {"results_file": path, "report": report.markdown, "figure": report.figure}
    return {**files, **json.loads(path.read_text(encoding="utf-8"))}
