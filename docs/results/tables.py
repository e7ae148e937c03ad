"""Print the tables of docs/results/cifar10-short/README.md from the results files beside it.

python docs/results/tables.py docs/results/cifar10-short
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

POLICIES = ("composed", "both", "teacher_fed", "recalibrate")


def students(folder: Path) -> list[dict[str, Any]]:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))["results"]
    return [result for result in results if result["role"] == "student"]


def of(results: list[dict[str, Any]], variant: str) -> list[dict[str, Any]]:
    return [result for result in results if result["variant"] == variant]


def row(label: str, runs: list[dict[str, Any]]) -> str:
    last = [run["accuracy"]["test_last"] for run in runs]
    best = [run["accuracy"]["test_best"] for run in runs]
    seeds = ", ".join(f"{value:.2f}" for value in last)
    seconds = statistics.mean(run["seconds"] for run in runs)
    cells = (
        label,
        runs[0]["epochs"],
        seeds,
        f"{statistics.mean(last):.2f}",
        f"{statistics.mean(best):.2f}",
        f"{seconds:.0f}",
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


HEAD = (
    "| variant | epochs | test %, last epoch, by seed | mean | test %, best on validation, mean | seconds, mean |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: |"
)


def equal_images(folder: Path) -> str:
    runs = students(folder / "equal-images")
    return "\n".join([HEAD, *(row(variant, of(runs, variant)) for variant in ("scratch", "kd", "lit"))])


def equal_time(folder: Path) -> str:
    lines = [HEAD]
    for variant in ("scratch", "kd"):
        lines.append(row(variant, students(folder / f"equal-time-{variant}")))
    return "\n".join([*lines, row("lit", of(students(folder / "equal-images"), "lit"))])


def bn_policies(folder: Path) -> str:
    """Validation accuracy after each epoch of the LIT phase (one trajectory, several statistics), then at the end."""
    lines = []
    for policy in POLICIES:
        place = "equal-images" if policy == "composed" else f"bn-{policy}"
        if not (folder / place).exists():
            continue
        run = next(run for run in of(students(folder / place), "lit") if run["seed"] == 0)
        history = run["history"]
        lit = [entry["val_accuracy"] for entry in history if entry["phase"] == "lit"]
        if not lines:
            epochs = [f"epoch {i + 1}" for i in range(len(lit))]
            lines.append("| " + " | ".join(["policy", *epochs, "end of fine-tuning, val %", "test %"]) + " |")
            lines.append("| --- |" + " ---: |" * (len(lit) + 2))
        cells = [
            policy,
            *(f"{value:.2f}" for value in [*lit, history[-1]["val_accuracy"], run["accuracy"]["test_last"]]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


TABLES = {"equal-images": equal_images, "equal-time": equal_time, "bn-policies": bn_policies}

if __name__ == "__main__":
    for name, table in TABLES.items():
        print(f"<!-- {name} -->\n{table(Path(sys.argv[1]))}\n")
