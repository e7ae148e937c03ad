"""A search's figure, from its JSON file: validation accuracy over each of the three hyperparameters."""

from __future__ import annotations

import json
from pathlib import Path

from lit_fast.training.files import atomic_write

__all__ = ["draw"]

_NAMES = ("tau", "alpha", "beta")


def draw(path: Path) -> Path:
    """Draw the search of ``path`` beside it, as a PNG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    content = json.loads(path.read_text(encoding="utf-8"))
    figure = Figure(figsize=(12.0, 4.0), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: nothing global, no display
    for ax, name in zip(figure.subplots(1, 3, sharey=content["mode"] == "joint"), _NAMES):
        rows = [row for row in content["trials"] if row["stage"] == name or content["mode"] == "joint"]
        points = sorted((row[name], row["val_accuracy"]) for row in rows)
        line = "-" if content["mode"] == "sequential" else ""
        ax.plot(*zip(*points), marker="o", linestyle=line, color="#0072b2", label="tried")
        best = content.get("best", {}).get(name)
        chosen = [accuracy for value, accuracy in points if value == best]
        if chosen:
            ax.plot([best], [max(chosen)], marker="*", markersize=15, color="#d55e00", linestyle="", label="chosen")
        ax.set_xlabel(name)
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(fontsize=8)
    figure.axes[0].set_ylabel("validation accuracy, best epoch (%)")
    experiment = content["experiment"]
    figure.suptitle(f"Search, {content['mode']}: {experiment['recipe']} on {experiment['data']['name']}", fontsize=11)
    out = path.with_suffix(".png")
    atomic_write(out, lambda p: figure.savefig(p, format="png"))
    return out
