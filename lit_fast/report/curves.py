"""Curves over the history of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

__all__ = ["Points", "curve", "finite", "history", "phase_starts"]

Run = TypeVar("Run", bound=Mapping[str, Any])
Points = list[tuple[float, float]]


def curve(ax: Any, runs: Sequence[Run], series: Callable[[Run], Points], color: str, dash: Any) -> None:
    """The mean over the seeds, and each seed thin behind it."""
    lines = [points for run in runs if (points := series(run))]
    if not lines:
        return
    if len(lines) > 1:
        for points in lines:
            ax.plot(*zip(*points), color=color, linestyle=dash, linewidth=0.7, alpha=0.4)
    mean = [tuple(sum(part) / len(lines) for part in zip(*together)) for together in zip(*lines)]
    ax.plot(*zip(*mean), color=color, linestyle=dash, linewidth=1.8, marker="o" if len(mean) == 1 else None)


def history(run: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return run.get("history") or ()


def finite(points: Iterable[tuple[float, float | None]]) -> Points:
    return [(x, y) for x, y in points if y is not None and math.isfinite(y)]


def phase_starts(run: Mapping[str, Any]) -> list[int]:
    """First epochs of every phase but the first."""
    return [after["epoch"] for before, after in pairwise(history(run)) if before["phase"] != after["phase"]]
