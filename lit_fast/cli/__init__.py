"""``lit-fast``: distill, train, evaluate, inspect, export and report from the command line.

Torch and everything that needs it is imported inside the commands, so that ``--help`` is immediate.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lit_fast.cli.about import build_info, list_recipes, show_version
from lit_fast.cli.bench import bench
from lit_fast.cli.errors import explain
from lit_fast.cli.experiments import distill, report, train
from lit_fast.cli.networks import evaluate, export, inspect
from lit_fast.cli.output import with_json
from lit_fast.cli.reproduce import reproduce
from lit_fast.cli.search import search
from lit_fast.openmp import share_cores
from lit_fast.tables import printable_lines
from lit_fast.training.interrupt import stop_with_stdin

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """Turns every error a user can cause into one paragraph on stderr and an exit code."""

    def main(self, *args: Any, **options: Any) -> Any:
        options |= {"prog_name": "lit-fast", "standalone_mode": False}
        try:
            code = super().main(*args, **options)
        except Exception as error:
            code = explain(error)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Abort from None  # versions of Typer differ in what they make of it


app = typer.Typer(
    cls=_Commands,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _lit_fast(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and leave.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Compress networks by Learned Intermediate Representation Training (LIT, ICML 2019).

    "lit-fast distill" alone trains a teacher and three students on handwritten digits; "lit-fast recipes" lists what
    else comes ready.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


_COMMANDS: dict[str, Callable[..., Any]] = {
    "distill": distill,
    "train": train,
    "evaluate": evaluate,
    "inspect": inspect,
    "bench": bench,
    "export": export,
    "report": report,
    "reproduce": reproduce,
    "search": search,
    "recipes": list_recipes,
    "build-info": build_info,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(with_json(_command))


def main(arguments: Sequence[str] | None = None) -> None:
    """Console entry point; ends with SystemExit.

    Args:
        arguments: without the program's name; None: those of the process.
    """
    share_cores()
    stop_with_stdin()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # "±" on a terminal that has no such sign
    warnings.showwarning = lambda message, *_args, **_kwargs: print(
        printable_lines(f"warning: {message}"), file=sys.stderr
    )
    app(args=arguments)
