"""Which of many alike cases `make test` runs; the others are marked exhaustive, for `.ci/run`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
exhaustive = pytest.mark.exhaustive


def in_turn(cases: Sequence[T], alike: Callable[[T], Hashable]) -> list[Any]:
    """All cases as parameters, tuples as several; of those for which ``alike`` is the same, all but one are exhaustive.

    Of the first group the first is kept, of the second the second, and so on: with groups of dtypes, each thing is
    tried in some dtype, and each dtype with something.
    """
    groups: dict[Hashable, list[T]] = {}
    for case in cases:
        groups.setdefault(alike(case), []).append(case)
    kept = [group[number % len(group)] for number, group in enumerate(groups.values())]
    return [case if any(case is one for one in kept) else _exhaustive(case) for case in cases]


def but_first(cases: Sequence[Any]) -> list[Any]:
    """All cases as parameters, tuples as several; all but the first are exhaustive."""
    return [cases[0], *map(_exhaustive, cases[1:])]


def _exhaustive(case: Any) -> Any:
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=exhaustive)
