"""What is wrong with settings, in words: every key with what it got and what it takes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from lit_fast.errors import choose_from

__all__ = ["explained"]

_MOST = 2  # keys of one name in several places that are worth naming


def explained(error: ValidationError, kind: type[BaseModel]) -> str:
    """All that keeps settings from being of this kind."""
    lines = []
    problems = error.errors()
    for problem in problems:
        key = ".".join(str(part) for part in problem["loc"]) or "experiment"
        if _follows(problem, problems):
            continue
        got = problem.get("input")
        shown = "" if isinstance(got, dict) or problem["type"] == "missing" else f" (got {got!r})"
        if problem["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key{_likely(kind, problem['loc'])}")
        elif problem["type"] == "literal_error":
            lines.append(f"{key}: {problem['msg']}{_close(got, problem)}{shown}")
        else:
            lines.append(f"{key}: {problem['msg'].removeprefix('Value error, ')}{shown}")
    return "impossible config:\n  " + "\n  ".join(lines)


def _follows(problem: Any, problems: list[Any]) -> bool:
    """Whether a list is only too short because its entries are wrong, which are told themselves."""
    place = problem["loc"]
    inner = (other["loc"] for other in problems if other is not problem)
    return problem["type"] == "too_short" and any(loc[: len(place)] == place for loc in inner)


def _close(got: Any, problem: Any) -> str:
    allowed = re.findall(r"'([^']*)'", problem["msg"])
    return choose_from(got, allowed).partition("? ")[0] + "?" if difflib.get_close_matches(str(got), allowed) else ""


def _likely(kind: type[BaseModel], place: tuple[int | str, ...]) -> str:
    """Keys that may be meant by one that there is not: alike ones beside it, or of that very name elsewhere."""
    name, beside = str(place[-1]), kind
    prefix = ".".join(map(str, place[:-1]))
    for part in place[:-1]:
        if isinstance(part, str):
            beside = _model_of(beside.model_fields[part].annotation) or beside
    alike = difflib.get_close_matches(name, beside.model_fields, n=2)
    known = dict.fromkeys([f"{prefix}.{key}" if prefix else key for key in alike])
    elsewhere = [key for key in _keys(kind) if key.rpartition(".")[2] == name]
    known |= dict.fromkeys(elsewhere if len(elsewhere) <= _MOST else ())
    hint = f"; did you mean {' or '.join(known)}?" if known else ""
    return hint + ("; s" if not hint else " S") + "ee `lit-fast recipes --show NAME` for those there are"


def _keys(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        inner = _model_of(field.annotation)
        if inner is None:
            yield prefix + name
        else:
            yield from _keys(inner, f"{prefix}{name}.")


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The settings that an annotation holds, perhaps in a tuple or a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for inner in get_args(annotation) if (model := _model_of(inner)) is not None), None)
