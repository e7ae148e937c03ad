"""Table and figure of students of one teacher, from the results files of one folder.

    python docs/results/evidence.py docs/results/bert-reviews

`FOLDER/runs/START-BUDGET-seedN.json` is the results.json of an experiment: START is how students began, `random` or
`copied`, BUDGET `steps` (all variants for the same steps) or `time` (as many epochs as LIT's time allows). The table is
printed, the figure written to `FOLDER/students.png`.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_fast.figure import WAY_COLORS, panels

STARTS = {"random": "random blocks", "copied": "blocks of the teacher"}
VARIANTS = ("scratch", "kd", "hint", "multi_ir", "lit")
LABELS = {"scratch": "labels alone", "kd": "KD", "hint": "hint", "multi_ir": "multi IR", "lit": "LIT"}
MARKS = {"steps": "o", "time": "D"}
Key = tuple[str, str, str]  # start, budget, variant


def score(result: Mapping[str, Any]) -> float:
    """What is compared: perplexity of a language model, else accuracy (%), on the test split, after the last epoch."""
    scores = result.get("scores", {})
    return float(scores["perplexity"] if "perplexity" in scores else result["accuracy"]["test_last"])


def found(folder: Path) -> tuple[dict[Key, dict[int, dict[str, Any]]], dict[str, Any]]:
    """The students' results by start, budget and variant, then by seed; and the teacher's."""
    students: dict[Key, dict[int, dict[str, Any]]] = defaultdict(dict)
    teacher: dict[str, Any] = {}
    for path in sorted((folder / "runs").glob("*-seed*.json")):
        start, budget, _ = path.stem.split("-")
        for result in json.loads(path.read_text(encoding="utf-8"))["results"]:
            if result["role"] == "teacher":
                teacher = result
            else:
                students[start, budget, result["variant"]][result["seed"]] = result
    return students, teacher


def table(folder: Path) -> str:
    students, teacher = found(folder)
    unit = "perplexity" if "scores" in teacher else "test %"
    lines = [
        f"| students start with | training | epochs | {unit}, by seed | mean | best on validation, mean |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for budget in ("steps", "time"):
        for start, words in STARTS.items():
            for variant in VARIANTS:
                runs = students.get((start, budget, variant))
                if not runs:
                    continue
                scores = [score(runs[seed]) for seed in sorted(runs)]
                best = statistics.mean(run["accuracy"]["val_best"] for run in runs.values())
                cells = [words, LABELS[variant] + (", LIT's time" if budget == "time" else "")]
                cells += [str(next(iter(runs.values()))["epochs"]), ", ".join(f"{value:.2f}" for value in scores)]
                lines.append("| " + " | ".join([*cells, f"{statistics.mean(scores):.2f}", f"{best:.2f}"]) + " |")
    return "\n".join(lines)


def draw(folder: Path) -> None:
    students, teacher = found(folder)
    figure, axes = panels(1, 2, (9.0, 3.2), sharex=True, sharey=True)
    for ax, (start, words) in zip(axes[0], STARTS.items()):
        for budget, mark in MARKS.items():
            for place, variant in enumerate(VARIANTS):
                runs = students.get((start, budget, variant))
                if not runs:
                    continue
                scores = [score(run) for run in runs.values()]
                at = place + (0.2 if budget == "time" else -0.2 if (start, "time", variant) in students else 0.0)
                ax.plot([at] * len(scores), scores, mark, color=WAY_COLORS[variant], markersize=5, alpha=0.8)
                ax.hlines(statistics.mean(scores), at - 0.15, at + 0.15, color=WAY_COLORS[variant])
        ax.axhline(score(teacher), color="0.4", linestyle=":", label="teacher")
        ax.plot([], [], MARKS["steps"], color="0.4", label="the same steps")
        ax.plot([], [], MARKS["time"], color="0.4", label="LIT's time")
        ax.set_xticks(range(len(VARIANTS)), [LABELS[variant] for variant in VARIANTS])
        ax.set(title=f"students start with {words}")
    axes[0][0].set_ylabel("test perplexity" if "scores" in teacher else "test accuracy, %")
    axes[0][1].legend(loc="lower right", fontsize=8)
    figure.savefig(folder / "students.png")


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
    draw(Path(sys.argv[1]))
