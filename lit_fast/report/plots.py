"""``report.png``: accuracy against size, loss and IR curves, validation accuracy against training time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lit_fast.figure import (
    BLACK,
    DARK,
    DASHES,
    LIGHT,
    SERIES,
    WAY_COLORS,
    WAY_MARKERS,
    legend,
    nothing,
    panels,
    plain_log,
    save,
    whole_epochs,
)
from lit_fast.report.curves import Points, curve, finite, history, phase_starts
from lit_fast.runs.results import Row, Runs, grouped, table
from lit_fast.runs.schema import Results, RunResult

__all__ = ["draw"]

Key = tuple[str, str, str]  # role, network, way of training


_LEAST_FACTOR = 4.0  # that the axis of sizes shows at least: equal ones lie together
_LEAST_SPAN = 2.0  # percentage points that the accuracy axis shows at least: a tenth is noise, and should look it


def draw(content: Results, path: Path) -> None:
    """Write the four panels of ``content`` (what ``results.json`` holds) to the PNG ``path``.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure, axes = panels(2, 2, (12.5, 9.0))
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, wspace=0.03, hspace=0.04)
    everything = grouped(content["results"])
    # The curves of a pruned student are those of its fine-tuning alone, and several for each student.
    whole = grouped([result for result in content["results"] if result.get("sparsity") is None])
    for ax, panel, groups in zip(axes.flat, (_sizes, _losses, _irs, _times), (everything, whole, whole, whole)):
        panel(ax, groups)
    save(figure, path)


# -- panels ----------------------------------------------------------------------------------------------------


def _sizes(ax: Any, groups: Mapping[Key, Runs]) -> None:
    rows = [row for row in table([run for runs in groups.values() for run in runs]) if row.last is not None]
    split = "validation" if rows and rows[0].split == "val" else "test"
    ax.set_title(f"{split.capitalize()} accuracy against size (parameters, log scale)")
    if not rows:
        return nothing(ax, "no accuracy yet")
    ax.set_ylabel(f"{split} accuracy, last epoch (%)")
    ax.set_xscale("log")
    ways = list(dict.fromkeys(row.training for row in rows if row.role != "teacher"))
    for row in rows:
        _point(ax, row, ways)
    ticks: dict[int, list[str]] = {}  # networks of one size share a tick, and sizes may share a network's name
    for row in sorted((row for row in rows if row.sparsity is None), key=lambda row: row.parameters):
        ticks.setdefault(row.parameters, []).append(row.network)
    ax.set_xticks(list(ticks), [f"{', '.join(dict.fromkeys(names))}\n{_size(size)}" for size, names in ticks.items()])
    ax.minorticks_off()
    ax.margins(x=0.15, y=0.12)
    left, right = ax.get_xlim()
    narrow = max(1.0, _LEAST_FACTOR / (right / left)) ** 0.5
    ax.set_xlim(left / narrow, right * narrow)
    low, high = ax.get_ylim()
    short = max(0.0, _LEAST_SPAN - (high - low)) / 2
    ax.set_ylim(low - short, high + short)
    span = math.log(max(ticks) / min(ticks))
    nearest = min((math.log(b / a) for a, b in pairwise(ticks)), default=0.0)
    if span and nearest < 0.18 * span:  # their names would overlap
        ax.tick_params(axis="x", labelrotation=30)
    legend(ax, below=-0.2, most=0)


def _size(parameters: int) -> str:
    return f"{parameters / 1e6:.2f} M" if parameters >= 10_000 else f"{parameters:,}"


def _point(ax: Any, row: Row, ways: Sequence[str]) -> None:
    assert row.last is not None
    teacher = row.role == "teacher"
    # Ways of training one network share its size: side by side, so that no error bar hides another.
    shift = 0.0 if teacher else 0.02 * (ways.index(row.training) - (len(ways) - 1) / 2)
    ax.errorbar(
        row.parameters * 10**shift,
        row.last.mean,
        yerr=row.last.deviation,
        fmt="*" if teacher else WAY_MARKERS.get(row.training, "o"),
        color=BLACK if teacher else WAY_COLORS.get(row.training, BLACK),
        markerfacecolor=None if row.sparsity is None else "none",
        markersize=14 if teacher else 8,
        capsize=3,
        label="teacher" if teacher else row.training + ("" if row.sparsity is None else ", pruned"),
    )


def _losses(ax: Any, groups: Mapping[Key, Runs]) -> None:
    ax.set_title("Training loss (each way of training has its own)")
    drawn = {key: runs for key, runs in groups.items() if any(map(_loss, runs))}
    if not drawn:
        return nothing(ax, "no training curve")
    ax.set_xlabel("epoch")
    ax.set_ylabel("mean loss of the epoch (log scale)")
    dashes = _dashes(drawn)
    for key, runs in drawn.items():
        curve(ax, runs, _loss, _color(key), dashes[key])
        for start in sorted({epoch for run in runs for epoch in phase_starts(run)}):
            heights = [height for run in runs for epoch, height in _loss(run) if epoch == start]
            if heights:
                middle = sum(heights) / len(heights)
                ax.plot(start, middle, marker="|", markersize=14, markeredgewidth=2, color=_color(key))
    whole_epochs(ax)
    plain_log(ax)
    _keys(ax, drawn, dashes)
    if any(phase_starts(run) for runs in drawn.values() for run in runs):
        ax.plot([], [], "|", color=DARK, markersize=11, markeredgewidth=2, label="next phase begins")
    legend(ax)


def _irs(ax: Any, groups: Mapping[Key, Runs]) -> None:
    """Colours are sections; where several ways of training have IR losses, dashes tell them apart."""
    ax.set_title("IR loss per section")
    counts = {key: max(map(_ir_count, runs)) for key, runs in groups.items() if any(map(_ir_count, runs))}
    if not counts:
        return nothing(ax, "no run had an IR loss")
    ax.set_xlabel("epoch")
    ax.set_ylabel("IR loss, mean over elements (log scale)")
    for name, color in dict(_section_style(i, count) for count in counts.values() for i in range(count)).items():
        ax.plot([], [], color=color, linewidth=1.8, label=name)
    networks = {network for _, network, _ in counts}
    for n, (key, count) in enumerate(counts.items()):
        dash = DASHES[n % len(DASHES)]
        for i in range(count):
            curve(ax, groups[key], _ir(i), _section_style(i, count)[1], dash)
        if len(counts) > 1:
            name = f"{key[1]} {key[2]}" if len(networks) > 1 else key[2]
            ax.plot([], [], color=LIGHT, linestyle=dash, linewidth=1.8, label=name)
    whole_epochs(ax)
    plain_log(ax)
    legend(ax)


def _times(ax: Any, groups: Mapping[Key, Runs]) -> None:
    ax.set_title("Validation accuracy against training time")
    students = {key: runs for key, runs in groups.items() if key[0] != "teacher" and any(map(_accuracy, runs))}
    if not students:
        return nothing(ax, "no training curve of a student")
    ax.set_xlabel("seconds of training (evaluation not counted)")
    ax.set_ylabel("validation accuracy (%)")
    dashes = _dashes(students)
    for key, runs in students.items():
        curve(ax, runs, _accuracy, _color(key), dashes[key])
    for (role, network, _), runs in groups.items():
        # The teacher's own training time would squeeze the students' curves: where it ended says enough.
        level = runs[0]["accuracy"].get("val_last")
        if role == "teacher" and level is not None:
            ax.axhline(level, color=BLACK, linewidth=1.1, linestyle=(0, (6, 4)), label=f"teacher {network}, trained")
    ax.set_xlim(left=0)
    _keys(ax, students, dashes)
    legend(ax)


# -- series and style ---------------------------------------------------------------------------------------------


def _loss(run: RunResult) -> Points:
    return finite((entry["epoch"], entry["loss"]) for entry in history(run))


def _accuracy(run: RunResult) -> Points:
    return finite((entry["seconds"], entry["val_accuracy"]) for entry in history(run))


def _ir_count(run: RunResult) -> int:
    return max((len(entry["ir"]) for entry in history(run)), default=0)


def _ir(section: int) -> Callable[[RunResult], Points]:
    return lambda run: finite((e["epoch"], e["ir"][section]) for e in history(run) if len(e["ir"]) > section)


def _color(key: Key) -> str:
    role, _, way = key
    return BLACK if role == "teacher" else WAY_COLORS.get(way, BLACK)


def _section_style(section: int, count: int) -> tuple[str, str]:
    """Name and colour of an IR, 0-based; where a run has a single one, it is the middle section's."""
    if count == 1:
        return "middle section alone", BLACK
    return f"section {section + 1}", SERIES[section % len(SERIES)]


def _dashes(keys: Iterable[Key]) -> dict[Key, Any]:
    """A dash pattern for each student network; solid where there is only one, and for teachers."""
    networks = list(dict.fromkeys(network for role, network, _ in keys if role != "teacher"))
    return {key: "-" if key[0] == "teacher" else DASHES[networks.index(key[1]) % len(DASHES)] for key in keys}


def _keys(ax: Any, keys: Iterable[Key], dashes: Mapping[Key, Any]) -> None:
    """Legend entries: one for each colour, and one for each dash pattern where there are several."""
    students = [key for key in keys if key[0] != "teacher"]
    for key in keys:
        name = f"teacher {key[1]}" if key[0] == "teacher" else key[2]
        ax.plot([], [], color=_color(key), linewidth=1.8, label=name)
    if len({key[1] for key in students}) > 1:
        for key in students:
            ax.plot([], [], color=LIGHT, linestyle=dashes[key], linewidth=1.8, label=key[1])
