"""A search's figure, from its JSON file: validation accuracy over each of the three hyperparameters."""

from __future__ import annotations

import json
from pathlib import Path

from lit_fast.figure import BLUE, VERMILION, panels, save

__all__ = ["draw"]

_NAMES = ("tau", "alpha", "beta")


def draw(path: Path) -> Path:
    """Draw the search of ``path`` beside it, as a PNG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    figure, axes = panels(1, len(_NAMES), (12.0, 4.0), sharey=content["mode"] == "joint")
    for ax, name in zip(axes[0], _NAMES):
        rows = [row for row in content["trials"] if row["stage"] == name or content["mode"] == "joint"]
        points = sorted((row[name], row["val_accuracy"]) for row in rows)
        line = "-" if content["mode"] == "sequential" else ""
        ax.plot(*zip(*points), marker="o", linestyle=line, color=BLUE, label="tried")
        best = content.get("best", {}).get(name)
        chosen = [accuracy for value, accuracy in points if value == best]
        if chosen:
            ax.plot([best], [max(chosen)], marker="*", markersize=15, color=VERMILION, linestyle="", label="chosen")
        ax.set_xlabel(name)
        ax.legend(fontsize=8)
    axes[0, 0].set_ylabel("validation accuracy, best epoch (%)")
    experiment = content["experiment"]
    figure.suptitle(f"Search, {content['mode']}: {experiment['recipe']} on {experiment['data']['name']}", fontsize=11)
    out = path.with_suffix(".png")
    save(figure, out)
    return out
