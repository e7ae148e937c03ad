"""JSON files of a run folder, read with their types checked: a folder may be damaged, or come from somebody else."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lit_fast.errors import LitFastError
from lit_fast.files import must_be_regular

__all__ = ["checked", "read_json"]

_MOST_BYTES = 256 << 20
_DEEPEST = 40  # lists and mappings within each other: what is written here has ten at most
_LONGEST = 60  # characters of a value that a message shows


def read_json(path: Path, kind: Any, error: type[LitFastError]) -> Any:
    """The content of a JSON file, as it is there.

    Args:
        path: the file.
        kind: the type that it must have, such as a TypedDict of `lit_fast.runs.results`.
        error: what is raised for anything else; the message is one line with the file and the key.

    Raises:
        OSError: it cannot be read.
    """
    must_be_regular(path)
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise error(f"{path}: expected at most {_MOST_BYTES >> 20} MiB of JSON, got {size >> 20}")
    try:
        content = json.loads(path.read_bytes())
    except RecursionError:
        raise error(f"{path}: expected lists and mappings at most {_DEEPEST} deep") from None
    except ValueError as problem:  # of JSON, of UTF-8, or a number of thousands of digits
        raise error(f"{path} is not JSON: {problem}") from problem
    return checked(content, kind, str(path), error)


def checked(content: Any, kind: Any, named: str, error: type[LitFastError]) -> Any:
    """``content`` itself, where it is of the type ``kind``; ``error`` says of the thing ``named`` where it is not."""
    _check_depth(content, named, error)
    try:
        _adapter(kind).validate_python(content, strict=True)
    except ValidationError as problem:
        raise error(f"{named}: {_told(problem)}") from None
    return content


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _check_depth(content: Any, named: str, error: type[LitFastError]) -> None:
    level, depth = [content] if isinstance(content, dict | list) else [], 0
    while level:
        depth += 1
        if depth > _DEEPEST:
            raise error(f"{named}: expected lists and mappings at most {_DEEPEST} deep")
        inner = (value.values() if isinstance(value, dict) else value for value in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list)]


def _told(problem: ValidationError) -> str:
    """The first of the problems, in a line, and how many more there are."""
    problems = problem.errors(include_url=False, include_context=False)
    first = problems[0]
    where = ".".join(str(part + 1) if isinstance(part, int) else part for part in first["loc"])
    if first["type"] == "missing":
        lacking = [p["loc"][-1] for p in problems if p["type"] == "missing" and p["loc"][:-1] == first["loc"][:-1]]
        where = where.rpartition(".")[0]
        return f"{where or 'it'} lacks {', '.join(map(str, lacking))}"
    got = repr(first["input"])
    shown = got if len(got) <= _LONGEST else got[:_LONGEST] + " ..."
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    expected = first["msg"].replace("Input should be", "expected").replace("a valid dictionary", "a mapping")
    return f"{where + ': ' if where else ''}{expected.removeprefix('Value error, ')}, got {shown}{more}"
