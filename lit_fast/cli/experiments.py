"""Commands that train, and the report of what they found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lit_fast.cli.errors import rank
from lit_fast.cli.options import (
    BatchSize,
    Blocks,
    Config,
    DataDir,
    Engine,
    Epochs,
    LoaderName,
    Precision,
    Recipe,
    Resume,
    RunDir,
    Sections,
    Settings,
    Targets,
    Track,
    TrainedOn,
    override,
)
from lit_fast.cli.output import Quiet

if TYPE_CHECKING:
    from rich.table import Table

    from lit_fast.runs.results import Row, Runs

__all__ = ["distill", "report", "train"]

_WIDTH = 96  # columns below which the rich table would cut numbers


def distill(
    recipe: Recipe = None,
    config: Config = None,
    run_dir: RunDir = None,
    resume: Resume = False,
    dataset: TrainedOn = None,
    data_dir: DataDir = None,
    loader: LoaderName = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="MODEL",
            help="The teacher's network, or module:function of yours (teacher.model).",
            show_default="the recipe's",
        ),
    ] = None,
    teacher_checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--teacher-checkpoint",
            metavar="FILE",
            help="Its weights. Without: it is trained first; yours is trained.",
            show_default="none",
        ),
    ] = None,
    student: Annotated[
        list[str] | None,
        typer.Option(
            "--student",
            metavar="MODEL",
            help="A student; resnext20-c16: of cardinality 16. Repeatable.",
            show_default="the recipe's",
        ),
    ] = None,
    blocks: Blocks = None,
    sections: Sections = None,
    targets: Targets = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            metavar="NAME",
            help="scratch, kd, hint, one_ir_teacher_input, multi_ir, lit. Repeatable (variants).",
            show_default="the recipe's, else lit",
        ),
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option("--seed", metavar="N", help="Seed of the students. Repeatable (seeds).", show_default="0"),
    ] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    precision: Precision = None,
    engine: Engine = None,
    track: Track = None,
    settings: Settings = None,
    quiet: Quiet = False,
) -> dict[str, Any] | None:
    """Train students from a teacher, compare them in one table, write report and weights."""
    from rich.console import Console

    from lit_fast.models import Network
    from lit_fast.settings.classifier import load_any_experiment

    students = [Network.parse(label)._asdict() for label in student or ()]
    teacher_model, teacher_cardinality = (None, None) if teacher is None else Network.parse(teacher)
    flags = {
        "data.name": dataset,
        "data.dir": data_dir,
        "data.loader": loader,
        "teacher.model": teacher_model,
        "teacher.cardinality": teacher_cardinality,
        "teacher.checkpoint": teacher_checkpoint,
        "student.models": students,
        "blocks": blocks,
        "sections": sections,
        "targets": targets,
        "variants": variant,
        "seeds": seed,
        "epochs": epochs,
        "batch_size": batch_size,
        "step.precision": precision,
        "step.engine": engine,
        "logging.trackers": track,
    }
    experiment = load_any_experiment(recipe, config, [override(flags), *(settings or ())])
    folder = run_dir or Path("runs") / _default_name(recipe, config, experiment.recipe)
    # Imported only now: a wrong setting is told before everything that trains is loaded.
    from lit_fast.gan.any_experiment import run_any_experiment

    run_any_experiment(experiment, folder, resume=resume, console=Console(stderr=True, quiet=quiet))
    return _conclude(folder) if rank() == 0 else None


def train(
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="The network.", show_default="the recipe's teacher"),
    ] = None,
    recipe: Recipe = None,
    config: Config = None,
    run_dir: RunDir = None,
    resume: Resume = False,
    dataset: TrainedOn = None,
    data_dir: DataDir = None,
    loader: LoaderName = None,
    blocks: Blocks = None,
    sections: Sections = None,
    targets: Targets = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Of weights and data order.", show_default="1000")
    ] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    precision: Precision = None,
    track: Track = None,
    settings: Settings = None,
    quiet: Quiet = False,
) -> dict[str, Any] | None:
    """Train one network from scratch, for example a teacher, by the recipe's scratch schedule."""
    from rich.console import Console

    from lit_fast.models import Network
    from lit_fast.settings.classifier import load_experiment

    name, cardinality = (None, None) if model is None else Network.parse(model)
    flags = {
        "data.name": dataset,
        "data.dir": data_dir,
        "data.loader": loader,
        "teacher.model": name,
        "teacher.cardinality": cardinality,
        "blocks": blocks,
        "sections": sections,
        "targets": targets,
        "teacher.seed": seed,
        "teacher.epochs": epochs,
        "batch_size": batch_size,
        "step.precision": precision,
        "logging.trackers": track,
    }
    experiment = load_experiment(recipe, config, [override(flags), *(settings or ())])
    folder = run_dir or Path("runs") / f"{_default_name(recipe, config, experiment.recipe)}-{experiment.teacher.label}"

    from lit_fast.training.experiment import train_model

    train_model(experiment, folder, resume=resume, console=Console(stderr=True, quiet=quiet))
    return _conclude(folder) if rank() == 0 else None


def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The run folder of an experiment.")],
) -> dict[str, Any]:
    """Render report.md and report.png of a run folder again, from its results.json."""
    return _conclude(run_dir)


def _default_name(recipe: str | None, config: Path | None, resolved: str) -> str:
    return config.stem if config is not None and recipe is None else resolved


def _conclude(folder: Path) -> dict[str, Any]:
    """Write the report; print the table and where everything lies. Returns the results without their histories."""
    from lit_fast.gan import report as gan_report
    from lit_fast.report.run import load_results, table, write_report
    from lit_fast.runs.results import behind_labels, legend, read_results, trains_generators
    from lit_fast.tables import printable, printable_lines

    if trains_generators(folder):
        typer.echo(printable_lines(gan_report.conclude(folder)))
        return _found(folder, read_results(folder, generators=True)["results"], folder / "report.png")

    results = load_results(folder)["results"]
    rows = table(results)
    paths = write_report(folder)
    _print_table(rows)
    typer.echo(legend(rows))
    for sentence in behind_labels(results):
        typer.echo(f"note: {printable(sentence)}", err=True)
    typer.echo("")
    typer.echo(f"report   {paths.markdown}")
    if paths.figure is not None:
        typer.echo(f"figure   {paths.figure}")
    if paths.note is not None:
        typer.echo(f"note: {paths.note}", err=True)
    for result in results:
        last = (result.get("files") or {}).get("last")
        if last and (folder / last).is_file():  # results are read without their weights, too
            typer.echo(printable(f"weights  {folder / last}"))
    return _found(folder, results, paths.figure)


def _found(folder: Path, results: Runs, figure: Path | None) -> dict[str, Any]:
    without = [{key: value for key, value in result.items() if key != "history"} for result in results]
    drawn = figure if figure is not None and figure.is_file() else None
    return {"run_dir": folder, "report": folder / "report.md", "figure": drawn, "results": without}


def _print_table(rows: Sequence[Row]) -> None:
    from rich.console import Console

    from lit_fast.runs.results import plain_table

    console = Console()
    if console.is_terminal and console.width >= _WIDTH:
        console.print(_rich_table(rows))
    elif console.is_terminal:
        typer.echo(plain_table(rows, console.width))
    else:
        typer.echo(plain_table(rows))


def _rich_table(rows: Sequence[Row]) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from lit_fast.runs.results import headers
    from lit_fast.tables import printable

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, (above, name) in enumerate(headers(rows)):
        # Only the way of training may wrap: its longest name is the one thing that outgrows a narrow terminal.
        shown.add_column(f"{above}\n{name}", justify="left" if i < 2 else "right", no_wrap=i != 1, overflow="fold")
    for row in rows:
        shown.add_row(*(escape(printable(cell)) for cell in row.cells()), style="bold" if row.training == "lit" else "")
    return shown
