"""What the figures of a run share: curves over its history, axes and legends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

__all__ = [
    "BLACK",
    "DASHES",
    "GREY",
    "SECTION_COLORS",
    "Points",
    "Runs",
    "curve",
    "finite",
    "history",
    "legend",
    "nothing",
    "phase_starts",
    "plain_log",
    "whole_epochs",
]

SECTION_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f")
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (8, 2, 1, 2, 1, 2)), (0, (1, 3)))
BLACK, GREY = "#000000", "#444444"

Runs = Sequence[Mapping[str, Any]]
Points = list[tuple[float, float]]


def curve(ax: Any, runs: Runs, series: Callable[[Mapping[str, Any]], Points], color: str, dash: Any) -> None:
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


def whole_epochs(ax: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def plain_log(ax: Any, which: Literal["x", "y"] = "y") -> None:
    """A log axis that reads 0.05, 0.1, 0.2 rather than powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(ax, f"set_{which}scale")("log")
    low, high = getattr(ax, f"get_{which}lim")()
    axis = getattr(ax, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 1e3 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def nothing(ax: Any, reason: str) -> None:
    ax.set(xticks=[], yticks=[])
    ax.text(0.5, 0.5, reason, transform=ax.transAxes, ha="center", va="center", color="#666666")


def legend(ax: Any, *, below: float = -0.16) -> None:
    """One entry per label; a long legend goes below the panel, where it hides nothing."""
    handles, labels = ax.get_legend_handles_labels()
    once: dict[str, Any] = {}
    for label, handle in zip(labels, handles):
        once.setdefault(label, handle)
    place: dict[str, Any] = {"framealpha": 0.85}
    if len(once) > 6:
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, below), "ncols": 3, "frameon": False}
    ax.legend(once.values(), once.keys(), fontsize=8, **place)
