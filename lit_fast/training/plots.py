"""``report.png``: accuracy against size, loss and IR curves, validation accuracy against training time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_fast.training.files import atomic_write
from lit_fast.training.results import Row, grouped, table

__all__ = ["draw"]

# Okabe and Ito's palette: told apart with any colour vision; markers say the same again for print.
_COLORS = {
    "scratch": "#7f7f7f",
    "kd": "#0072b2",
    "lit": "#d55e00",
    "hint": "#009e73",
    "one_ir_teacher_input": "#cc79a7",
    "multi_ir": "#e69f00",
}
_MARKERS = {"scratch": "s", "kd": "^", "lit": "o", "hint": "D", "one_ir_teacher_input": "v", "multi_ir": "P"}
_SECTION_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000")
_DASHES = ("-", "--", ":", "-.")
_TEACHER = "#000000"

Runs = Sequence[Mapping[str, Any]]
Points = list[tuple[float, float]]


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Write the four panels of ``content`` (what ``results.json`` holds) to the PNG ``path``.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 9.0), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: nothing global, no display
    axes = figure.subplots(2, 2)
    groups = grouped(content["results"])
    _accuracy_against_size(axes[0, 0], table(content["results"]))
    _losses(axes[0, 1], groups)
    _irs(axes[1, 0], groups)
    _accuracy_against_time(axes[1, 1], groups)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.set_axisbelow(True)
    atomic_write(path, lambda p: figure.savefig(p, format="png"))


def _accuracy_against_size(ax: Any, rows: Sequence[Row]) -> None:
    ax.set_title("Test accuracy against size")
    ax.set_xlabel("parameters (log scale)")
    ax.set_ylabel("test accuracy, last epoch (%)")
    ax.set_xscale("log")
    shown = [row for row in rows if row.last is not None]
    if not shown:
        _say_nothing(ax, "no accuracy yet")
        return
    sizes = {row.network: row.parameters for row in rows}
    variants = list(dict.fromkeys(row.training for row in shown if row.role != "teacher"))
    for row in shown:
        assert row.last is not None
        teacher = row.role == "teacher"
        # Ways of training one network share its size: side by side, so that no error bar hides another.
        shift = 0.0 if teacher else 0.02 * (variants.index(row.training) - (len(variants) - 1) / 2)
        ax.errorbar(
            row.parameters * 10**shift,
            row.last.mean,
            yerr=row.last.deviation,
            fmt="*" if teacher else _MARKERS.get(row.training, "o"),
            color=_TEACHER if teacher else _COLORS.get(row.training, "#000000"),
            markersize=13 if teacher else 8,
            capsize=3,
            label="teacher" if teacher else row.training,
        )
    ax.set_xticks(list(sizes.values()), [f"{name}\n{size / 1e6:.2f} M" for name, size in sizes.items()])
    ax.minorticks_off()
    ax.margins(x=0.15, y=0.12)
    _separate_tick_labels(ax, sorted(sizes.values()))
    _legend(ax)


def _separate_tick_labels(ax: Any, sizes: Sequence[int]) -> None:
    """Slant the labels where two networks are so near in size that they would overlap."""
    span = math.log(sizes[-1] / sizes[0]) if len(sizes) > 1 else 0.0
    nearest = min((math.log(b / a) for a, b in zip(sizes, sizes[1:], strict=False)), default=span)
    if span and nearest / span < 0.2:
        ax.tick_params(axis="x", labelrotation=30)


def _losses(ax: Any, groups: Mapping[tuple[str, str, str], Runs]) -> None:
    ax.set_title("Training loss (each way of training has its own)")
    ax.set_xlabel("epoch")
    ax.set_ylabel("mean loss of the epoch (log scale)")
    ax.set_yscale("log")
    styles = _styles(groups)
    drawn = False
    for key, runs in groups.items():
        color, dash, label = styles[key]
        drawn |= _curves(ax, runs, _series("epoch", "loss"), color, dash, label)
        starts = {boundary for run in runs for boundary in _phase_starts(run)}
        for boundary in starts:
            marks = [dict(_series("epoch", "loss")(run)).get(boundary) for run in runs]
            known = [mark for mark in marks if mark is not None]
            if known:
                ax.plot(boundary, sum(known) / len(known), marker="|", markersize=13, markeredgewidth=2, color=color)
    if not drawn:
        _say_nothing(ax, "no training curve")
        return
    if any(_phase_starts(run) for runs in groups.values() for run in runs):
        ax.plot([], [], "|", color="#444444", markersize=11, markeredgewidth=2, label="start of the next phase")
    _legend(ax)


def _irs(ax: Any, groups: Mapping[tuple[str, str, str], Runs]) -> None:
    """One curve per section; where several ways of training have IR losses, dashes tell them apart."""
    ax.set_title("IR loss per section")
    ax.set_xlabel("epoch")
    ax.set_ylabel("IR loss (log scale)")
    ax.set_yscale("log")
    with_irs = {key: runs for key, runs in groups.items() if any(e["ir"] for run in runs for e in _history(run))}
    if not with_irs:
        _say_nothing(ax, "no run had an IR loss")
        return
    several_models = len({model for _, model, _ in with_irs}) > 1
    for n, ((_, model, variant), runs) in enumerate(with_irs.items()):
        sections = max(len(entry["ir"]) for run in runs for entry in _history(run))
        for i in range(sections):
            name = f"{model} {variant}" if several_models else variant
            where = f"section {i + 1}" if sections > 1 else "the one section"
            color = _SECTION_COLORS[i % len(_SECTION_COLORS)] if sections > 1 else "#000000"
            _curves(ax, runs, _ir_series(i), color, _DASHES[n % len(_DASHES)], f"{name}, {where}")
    _legend(ax)


def _accuracy_against_time(ax: Any, groups: Mapping[tuple[str, str, str], Runs]) -> None:
    ax.set_title("Validation accuracy against training time")
    ax.set_xlabel("seconds of training (evaluation not counted)")
    ax.set_ylabel("validation accuracy (%)")
    styles = _styles(groups)
    drawn = False
    for key, runs in groups.items():
        color, dash, label = styles[key]
        if key[0] == "teacher":  # its own training time would squeeze the students' curves: a level says enough
            level = runs[0]["accuracy"].get("val_last")
            if level is not None:
                ax.axhline(level, color=color, linewidth=1.1, linestyle=(0, (6, 4)), label=f"{label}, at its end")
            continue
        drawn |= _curves(ax, runs, _series("seconds", "val_accuracy"), color, dash, label)
    if not drawn:
        _say_nothing(ax, "no training curve of a student")
        return
    ax.set_xlim(left=0)
    _legend(ax)


def _styles(groups: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str, str], tuple[str, str, str]]:
    """(colour, dashes, label) of each group: colour for the way of training, dashes for the network."""
    keys = list(groups)
    students = list(dict.fromkeys(model for role, model, _ in keys if role != "teacher"))
    styles = {}
    for role, model, variant in keys:
        if role == "teacher":
            styles[role, model, variant] = (_TEACHER, "-", f"teacher {model}")
        else:
            label = f"{model} {variant}" if len(students) > 1 else variant
            dash = _DASHES[students.index(model) % len(_DASHES)]
            styles[role, model, variant] = (_COLORS.get(variant, "#000000"), dash, label)
    return styles


def _curves(ax: Any, runs: Runs, series: Callable[[Any], Points], color: str, dash: str, label: str) -> bool:
    """The mean over the seeds; each seed thin behind it. False where there is nothing to draw."""
    lines = [points for run in runs if (points := series(run))]
    if not lines:
        return False
    if len(lines) > 1:
        for points in lines:
            ax.plot(*zip(*points, strict=True), color=color, linestyle=dash, linewidth=0.7, alpha=0.4)
    common = min(len(points) for points in lines)
    mean = [
        (sum(points[i][0] for points in lines) / len(lines), sum(points[i][1] for points in lines) / len(lines))
        for i in range(common)
    ]
    marker = "o" if common == 1 else None
    ax.plot(*zip(*mean, strict=True), color=color, linestyle=dash, linewidth=1.8, marker=marker, label=label)
    return True


def _history(run: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return run.get("history") or ()


def _series(x: str, y: str) -> Callable[[Mapping[str, Any]], Points]:
    return lambda run: [(e[x], e[y]) for e in _history(run) if e.get(y) is not None and math.isfinite(e[y])]


def _ir_series(section: int) -> Callable[[Mapping[str, Any]], Points]:
    return lambda run: [(e["epoch"], e["ir"][section]) for e in _history(run) if len(e["ir"]) > section]


def _phase_starts(run: Mapping[str, Any]) -> list[float]:
    """First epochs of every phase but the first."""
    history = _history(run)
    return [b["epoch"] for a, b in zip(history, history[1:], strict=False) if a["phase"] != b["phase"]]


def _say_nothing(ax: Any, reason: str) -> None:
    ax.text(0.5, 0.5, reason, transform=ax.transAxes, ha="center", va="center", color="#666666")


def _legend(ax: Any) -> None:
    """One entry per label, over as many columns as keep the panel visible."""
    handles, labels = ax.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    columns = 1 if len(once) <= 5 else 2
    ax.legend(once.values(), once.keys(), fontsize=8 if len(once) <= 8 else 7, framealpha=0.85, ncols=columns)
