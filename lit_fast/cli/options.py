"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "BatchSize",
    "Blocks",
    "Config",
    "DataDir",
    "Dataset",
    "Device",
    "Epochs",
    "LoaderName",
    "Precision",
    "Recipe",
    "Resume",
    "RunDir",
    "Sections",
    "Settings",
    "Targets",
    "Track",
    "TrainedOn",
    "numbers",
    "override",
]


def _recipes(incomplete: str) -> list[str]:
    """What a shell completes."""
    from lit_fast import recipes

    return [name for name in recipes.names() if name.startswith(incomplete)]


Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME",
        help="A recipe of `lit-fast recipes`.",
        show_default="the file's, else digits",
        autocompletion=_recipes,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="A YAML file of settings, over the recipe's.", show_default="none"),
]
RunDir = Annotated[
    Path | None,
    typer.Option("--run-dir", metavar="DIR", help="Where everything is written.", show_default="under runs/"),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the experiment that the run folder holds.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set any key, e.g. loss.beta=0.5. Repeatable; goes last."),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        metavar="NAME",
        help="digits, cifar10, amazon-full ..., or module:function of yours (data.name; docs/data.md).",
    ),
]
TrainedOn = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        metavar="NAME",
        help="digits, cifar10, amazon-full ..., or module:function of yours (data.name; docs/data.md).",
        show_default="the recipe's",
    ),
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="Where the dataset's files lie (data.dir).")
]
LoaderName = Annotated[
    str | None,
    typer.Option(
        "--loader",
        metavar="NAME",
        help="Where batches come from: auto, resident, dali, torch (data.loader).",
        show_default="auto",
    ),
]
# Of networks of one's own, both.
Blocks = Annotated[
    str | None, typer.Option("--blocks", metavar="NAME", help="Cut your networks at this stack of blocks (blocks).")
]
Sections = Annotated[
    int | None, typer.Option("--sections", metavar="N", help="Into so many sections (sections).", min=1)
]
Targets = Annotated[
    str | None,
    typer.Option(
        "--targets",
        metavar="NAME",
        help="What the logits are of: classification, dense, tokens, causal_lm, or module:function (targets).",
        show_default="classification",
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        metavar="N",
        help="Shorten the schedules to N epochs, in proportion.",
        show_default="the recipe's",
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", metavar="N", help="Images per step (batch_size).", show_default="the recipe's"),
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", metavar="NAME", help="fp32, bf16 or fp16 (step.precision).", show_default="fp32"),
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="How steps are computed: auto, runner, eager (step.engine).",
        show_default="auto",
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="NAME",
        help="Also tell a tracker: tensorboard, wandb, mlflow. Repeatable (logging.trackers; docs/tracking.md).",
        show_default="none",
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1 ...; auto: CUDA if there.")]


def override(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mapping of the dotted keys whose value was given (is not ``None`` or an empty list)."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        if value is None or value == []:
            continue
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = str(value) if isinstance(value, Path) else value
    return tree


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """``"0.5,0.4,0.3"`` as numbers.

    Raises:
        ValueError: something else; names the option.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option}: expected numbers separated by commas, one per channel, got {text!r}") from None
