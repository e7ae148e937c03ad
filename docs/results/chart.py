"""Draw the chart of README.md from the results files of docs/results/cifar10-short.

python docs/results/chart.py docs/results/cifar10-short docs/results/accuracy.svg
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import matplotlib
from tables import of, students

from lit_fast.figure import WAY_COLORS, panels

WAYS = {"scratch": "labels alone", "kd": "distillation (KD)", "lit": "LIT"}
BUDGET = (
    "ResNet-56 (93.4 %) to ResNet-20 on CIFAR-10: 10,000 training images, one thread of an AMD EPYC CPU; dots are seeds"
)
MIDDLE = "#7a828c"  # read on white and on black


def bars(folder: Path) -> dict[str, dict[str, tuple[int, list[float]]]]:
    """Of each panel, by its title, and each way of training: epochs, and test accuracies by seed."""
    equal = students(folder / "equal-images")
    lit = of(equal, "lit")
    long = {way: students(folder / f"equal-time-{way}") for way in ("scratch", "kd")} | {"lit": lit}
    budgets = {"the same 8 epochs": {way: of(equal, way) for way in WAYS}, "as much time as LIT's 8 epochs": long}
    return {
        title: {way: (runs[way][0]["epochs"], [run["accuracy"]["test_last"] for run in runs[way]]) for way in WAYS}
        for title, runs in budgets.items()
    }


def draw(folder: Path, out: Path) -> None:
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "lit_fast", "font.family": "sans-serif"})
    matplotlib.rcParams.update(dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), MIDDLE))
    figure, axes = panels(1, 2, (9.0, 2.9), sharex=True)
    figure.patch.set_alpha(0.0)
    for ax, (title, ways) in zip(axes[0], bars(folder).items()):
        ax.patch.set_alpha(0.0)
        ax.spines[:].set_color(MIDDLE)
        ax.grid(visible=False)
        for place, (way, (epochs, found)) in enumerate(ways.items()):
            mean = statistics.mean(found)
            ax.barh(-place, mean, 0.62, color=WAY_COLORS[way])
            ax.plot(found, [-place] * len(found), "o", color="white", markeredgecolor="black", markersize=4)
            ax.text(max(found) + 1.5, -place, f"{mean:.1f} %", va="center")
            ax.text(1.5, -place, f"{epochs} epochs", va="center", color="white")
        ax.set_yticks([0, -1, -2], WAYS.values())
        ax.set(title=title, xlim=(0, 85), xlabel="test accuracy of ResNet-20, %")
    axes[0][1].set_yticks([])
    figure.suptitle(BUDGET, fontsize=10)
    figure.savefig(out, metadata={"Date": None})  # the same file whenever it is drawn


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
