"""``lit-fast search``: tau, alpha and beta by validation accuracy."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from lit_fast.cli.options import Config, DataDir, Epochs, Recipe, Settings, TrainedOn, numbers, override
from lit_fast.cli.output import Quiet

__all__ = ["search"]


class Mode(str, Enum):
    """Ways to search."""

    sequential = "sequential"
    joint = "joint"


def search(
    recipe: Recipe = None,
    config: Config = None,
    dataset: TrainedOn = None,
    data_dir: DataDir = None,
    student: Annotated[
        str | None,
        typer.Option("--student", metavar="MODEL", help="The student to search with.", show_default="the recipe's"),
    ] = None,
    mode: Annotated[
        Mode, typer.Option("--mode", help="The paper's, one after another, or all at once by Optuna.")
    ] = Mode.sequential,
    tau: Annotated[
        str | None,
        typer.Option("--tau", metavar="T1,T2", help="Values; joint: their range.", show_default="1,2,4,6,8,10"),
    ] = None,
    alpha: Annotated[
        str | None,
        typer.Option("--alpha", metavar="A1,A2", help="Likewise.", show_default="0,0.25,0.5,0.75,0.9,0.95,0.98"),
    ] = None,
    beta: Annotated[
        str | None, typer.Option("--beta", metavar="B1,B2", help="Likewise.", show_default="0.02,0.25,0.5,0.75")
    ] = None,
    trials: Annotated[int, typer.Option("--trials", metavar="N", help="Of the joint search, in all.", min=1)] = 20,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="Runs of each candidate.", min=1)] = 1,
    epochs: Epochs = None,
    run_dir: Annotated[Path, typer.Option("--run-dir", metavar="DIR", help="Of the search.")] = Path("search"),
    settings: Settings = None,
    quiet: Quiet = False,
) -> dict[str, Any]:
    """Choose tau, alpha and beta on the validation split. The test split is not touched.

    The same command goes on with a search that was interrupted.
    """
    from rich.console import Console

    from lit_fast.settings.classifier import load_experiment

    flags = {"data.name": dataset, "data.dir": data_dir, "epochs": epochs, "student.models": student}
    experiment = load_experiment(recipe, config, [override(flags), {"seeds": list(range(seeds))}, *(settings or ())])
    # Only now: a wrong setting is told before everything that trains is loaded.
    from lit_fast.paper.search.plot import draw
    from lit_fast.paper.search.run import Space, joint, sequential, settings_of

    given = {"tau": numbers(tau, "--tau"), "alpha": numbers(alpha, "--alpha"), "beta": numbers(beta, "--beta")}
    space = Space(**{name: values for name, values in given.items() if values is not None})
    console = Console(stderr=True, quiet=quiet)
    if mode is Mode.sequential:
        found = sequential(experiment, run_dir, space, console=console)
    else:
        found = joint(experiment, run_dir, space, count=trials, console=console)
    chosen = ", ".join(f"{name} {value:.4g}" for name, value in sorted(found.best.items()))
    typer.echo(f"chosen: {chosen}; validation accuracy {found.accuracy:.2f} %")
    typer.echo(f"train with it: lit-fast distill {' '.join(settings_of(found.best))} ...")
    typer.echo(f"results  {found.path}")
    figure = None
    try:
        figure = draw(found.path)
        typer.echo(f"figure   {figure}")
    except ImportError:
        typer.echo("note: no figure: matplotlib is not installed (pip install matplotlib)", err=True)
    return {"best": found.best, "val_accuracy": found.accuracy, "results_file": found.path, "figure": figure}
