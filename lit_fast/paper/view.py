"""What the report of a study is made of, whatever it trains, and what its figures share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lit_fast.figure import MARKERS, SERIES
from lit_fast.runs.results import Spread

__all__ = ["View", "dots"]


class View(NamedTuple):
    """A study's results, ready to be written down.

    Attributes:
        columns: of the tables; the first three hold names, the others numbers.
        rows: (group, cells) of each line, the groups together.
        warning: what a reader must know first, or nothing.
        below: paragraphs that explain the tables.
        panels: each draws its part of the figure into matplotlib's axes; none where no run has ended.
    """

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, tuple[str, ...]]]
    warning: str | None
    below: Sequence[str]
    panels: Sequence[Callable[[Any], None]]


def dots(ax: Any, labels: Sequence[str], series: Mapping[str, Sequence[Spread | None]], title: str) -> None:
    """A row for each label, a colour for each of the series; deviations are bars."""
    known = {name: spreads for name, spreads in series.items() if any(spreads)}
    for number, (name, spreads) in enumerate(known.items()):
        there = [(place, spread) for place, spread in enumerate(spreads) if spread is not None]
        ax.errorbar(
            [spread.mean for _, spread in there],
            [place + 0.12 * (2 * number - len(known) + 1) for place, _ in there],
            xerr=[spread.deviation or 0.0 for _, spread in there],
            fmt=MARKERS[number],
            color=SERIES[number],
            capsize=3,
            label=name,
        )
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.set_xlabel(title)
    ax.legend(fontsize=8)
