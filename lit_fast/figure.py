"""What all figures share: their colours, panels, axes, legends, and how they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lit_fast.files import atomic_write

__all__ = [
    "BLACK",
    "BLUE",
    "DARK",
    "DASHES",
    "GREEN",
    "GREY",
    "LIGHT",
    "MARKERS",
    "ORANGE",
    "PURPLE",
    "SERIES",
    "SKY",
    "VERMILION",
    "WAY_COLORS",
    "WAY_MARKERS",
    "legend",
    "nothing",
    "panels",
    "plain_log",
    "save",
    "whole_epochs",
]

# Okabe and Ito's palette: told apart with any colour vision; markers and dashes say the same again for print.
BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"
BLACK, GREY = "#000000", "#606060"  # a lighter grey is green to one of the colour-blind, or purple
# What is no series: lines that mark something, error bars, remarks; and the keys to dashes of any colour.
DARK, LIGHT = "#444444", "#b0b0b0"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, GREY)  # for what has no colour of its own, in this order
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (8, 2, 1, 2, 1, 2)), (0, (1, 3)))

WAY_COLORS = {
    "teacher": BLACK,
    "scratch": GREY,
    "kd": BLUE,
    "lit": VERMILION,
    "hint": GREEN,
    "one_ir_teacher_input": PURPLE,
    "multi_ir": ORANGE,
}
WAY_MARKERS = {"scratch": "s", "kd": "^", "lit": "o", "hint": "D", "one_ir_teacher_input": "v", "multi_ir": "P"}


def panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """A figure of ``size`` inches and the array [rows, columns] of its axes: a light grid, no box around it.

    Args:
        options: of ``Figure.subplots``.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: nothing global, no display
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def save(figure: Any, path: Path) -> None:
    """Write a figure, whole or not at all, in the format of the path's ending."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a dollar in a name begins no formula
    atomic_write(path, lambda p: figure.savefig(p, format=path.suffix.removeprefix(".")))


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
    """A panel without axes that says why there is nothing in it."""
    ax.set(xticks=[], yticks=[])
    ax.text(0.5, 0.5, reason, transform=ax.transAxes, ha="center", va="center", color=DARK)


def legend(ax: Any, *, below: float = -0.16, most: int = 4) -> None:
    """One entry per label; one of more than ``most`` goes below the panel, where it hides nothing."""
    handles, labels = ax.get_legend_handles_labels()
    once: dict[str, Any] = {}
    for label, handle in zip(labels, handles):
        once.setdefault(label, handle)
    options: dict[str, Any] = {"framealpha": 0.85}
    if len(once) > most:
        options = {"loc": "upper center", "bbox_to_anchor": (0.5, below), "ncols": 3, "frameon": False}
    ax.legend(once.values(), once.keys(), fontsize=8, **options)
