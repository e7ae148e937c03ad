"""What commands print: ``--json``, one document alone on standard output, and ``--quiet``."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["Quiet", "with_json"]

Json = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON document, alone on stdout; all else on stderr.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


def with_json(command: Callable[..., Any]) -> Callable[..., None]:
    """The command with an option ``--json`` that prints what it returns, and on stderr what it prints otherwise.

    What is None is not printed: of several processes one returns the result.
    """

    @functools.wraps(command)
    def run(*, as_json: bool, **options: Any) -> None:
        if not as_json:
            command(**options)
            return
        with contextlib.redirect_stdout(sys.stderr):
            result = command(**options)
        if result is not None:
            typer.echo(json.dumps(_plain(result), indent=1, allow_nan=False, default=str))

    signature = inspect.signature(command, eval_str=True)
    option = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json)
    shown = signature.replace(parameters=[*signature.parameters.values(), option])
    run.__signature__ = shown  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in shown.parameters.items()}
    return run


def _plain(value: Any) -> Any:
    """As JSON has it: what is not finite is null, a path is text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
