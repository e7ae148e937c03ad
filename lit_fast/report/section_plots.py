"""``sections.png``: IR errors, assembly gaps and the cosine between the gradients, over the epochs of each run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lit_fast.figure import BLACK, DARK, LIGHT, SERIES, legend, nothing, panels, plain_log, save, whole_epochs
from lit_fast.report.curves import Points, curve, finite, history, phase_starts
from lit_fast.report.section_table import looked_at
from lit_fast.runs.results import Runs
from lit_fast.runs.schema import RunResult

__all__ = ["draw_sections"]

Series = Callable[[RunResult], Points]


def draw_sections(results: Runs, path: Path) -> None:
    """A row of three panels for each network and way of training whose sections were looked at.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no run's sections were looked at.
    """
    groups = looked_at(results)
    if not groups:
        raise ValueError("no run has section diagnostics")
    contents = {"IR error": _errors, "assembly gap": _gaps, "KD and IR gradients": _cosines}
    figure, axes = panels(len(groups), len(contents), (15.0, 4.2 * len(groups)))
    for row, ((network, way), runs) in zip(axes, groups.items()):
        for ax, (what, panel) in zip(row, contents.items()):
            ax.set_title(f"{network} {way}: {what}", fontsize=11)
            ax.set_xlabel("epoch")
            panel(ax, runs)
    save(figure, path)


def _errors(ax: Any, runs: Runs) -> None:
    ax.set_ylabel("mean over elements (log scale)")
    for i in range(_count(runs)):
        curve(ax, runs, _of("teacher_fed", i), _color(i), "-")
        curve(ax, runs, _of("composed", i), _color(i), "--")
        ax.plot([], [], color=_color(i), label=f"section {i + 1}")
    ax.plot([], [], color=LIGHT, linestyle="-", label="teacher-fed")
    ax.plot([], [], color=LIGHT, linestyle="--", label="composed")
    plain_log(ax)
    _finish(ax, runs)


def _gaps(ax: Any, runs: Runs) -> None:
    """As a ratio: errors of different sections differ by their scale. Section 1 has the same input in both passes."""
    ax.set_ylabel("composed / teacher-fed error")
    for i in range(1, _count(runs)):
        curve(ax, runs, _ratio(i), _color(i), "-")
        ax.plot([], [], color=_color(i), label=f"section {i + 1}")
    ax.axhline(1.0, color=DARK, linewidth=0.8)
    if _count(runs) == 1:
        return nothing(ax, "one section: nothing to put together")
    _finish(ax, runs)


def _cosines(ax: Any, runs: Runs) -> None:
    total = _cosine_of_all
    if not any(map(total, runs)):
        return nothing(ax, "trained on one of the two losses alone")
    ax.set_ylabel("cosine between the gradients")
    ax.axhline(0.0, color=DARK, linewidth=0.8)
    for i in range(_count(runs)):
        if any(map(_of("cosines", i), runs)):
            curve(ax, runs, _of("cosines", i), _color(i), "-")
            ax.plot([], [], color=_color(i), label=f"section {i + 1}")
    curve(ax, runs, total, BLACK, ":")
    ax.plot([], [], color=BLACK, linestyle=":", label="all together")
    low, high = ax.get_ylim()
    ax.set_ylim(max(-1.05, min(low, -0.1)), min(1.05, max(high, 0.1)))
    _finish(ax, runs)


def _finish(ax: Any, runs: Runs) -> None:
    for start in sorted({start for run in runs for start in phase_starts(run)}):
        ax.axvline(start - 0.5, color=DARK, linewidth=1.0, linestyle=(0, (2, 3)))
    whole_epochs(ax)
    legend(ax, most=0)  # there is hardly a place where it would cover no line


def _color(section: int) -> str:
    return SERIES[section % len(SERIES)]


def _looks(run: RunResult) -> list[tuple[int, Mapping[str, Any]]]:
    return [(entry["epoch"], entry["sections"]) for entry in history(run) if "sections" in entry]


def _count(runs: Runs) -> int:
    return min(len(look["teacher_fed"]) for run in runs for _, look in _looks(run))


def _of(field: str, section: int) -> Series:
    return lambda run: finite((epoch, look[field][section]) for epoch, look in _looks(run))


def _ratio(section: int) -> Series:
    return lambda run: finite(
        (epoch, look["composed"][section] / look["teacher_fed"][section])
        for epoch, look in _looks(run)
        if look["teacher_fed"][section] > 0.0
    )


def _cosine_of_all(run: RunResult) -> Points:
    return finite((epoch, look["cosine"]) for epoch, look in _looks(run))
