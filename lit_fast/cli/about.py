"""What is installed: version, build, recipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from lit_fast.version import __version__

__all__ = ["build_info", "list_recipes", "show_version"]


def show_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        typer.echo(f"lit-fast {__version__}")
        raise typer.Exit


def build_info() -> Mapping[str, Any]:
    """Tell what was built, for which devices, and what is used."""
    import lit_fast

    info = lit_fast.build_info()
    width = max(len(key) for key in info)
    for key, value in info.items():
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        typer.echo(f"{key:<{width}}  {text or '-'}")
    return info


def list_recipes(
    show: Annotated[str | None, typer.Option("--show", metavar="NAME", help="Print this recipe's YAML.")] = None,
) -> Any:
    """List the recipes, or show one."""
    from lit_fast import recipes

    if show is not None:
        try:
            typer.echo(recipes.text(show).rstrip())
        except KeyError as error:
            raise ValueError(error.args[0]) from None
        return recipes.load(show)
    return listed(recipes)


def listed(source: Any) -> dict[str, str]:
    """Print the names of YAML files that come ready, each with the first line of its text; returns these."""
    names = source.names()
    abouts = {name: source.text(name).partition("\n")[0].removeprefix("#").strip() for name in names}
    width = max(map(len, names))
    for name, about in abouts.items():
        typer.echo(f"{name:<{width}}  {about}")
    return abouts
