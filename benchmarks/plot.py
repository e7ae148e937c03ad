"""Draws the losses of a results file, prints all of it as Markdown tables: ``python -m benchmarks.plot RESULTS.json``.

The figure has a panel for each precision: time of forward + backward by batch and variant, and how many times faster
the fused loss is. PNG, SVG or whatever matplotlib knows the ending of.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.tables import FUSED, VARIANTS, measured
from lit_fast.figure import DARK, GREEN, GREY, ORANGE, SKY, panels, plain_log, save

Row = dict[str, Any]
COLORS = {"eager": GREY, "compile": SKY, "triton": ORANGE, "native": GREEN}
FAMILIES = ("cifar", "tiny")  # the first that was measured is drawn


def draw(results: dict[str, Any], out: Path) -> None:
    """Write the figure."""
    family = next((f for f in FAMILIES if any(row["family"] == f for row in measured(results, "loss"))), None)
    rows = [row for row in measured(results, "loss") if row["family"] == family and row["variant"] in VARIANTS]
    precisions = [p for p in ("float32", "bfloat16", "float16") if any(row["dtype"] == p for row in rows)]
    if not rows:
        raise SystemExit("nothing to draw: no setting was measured")
    figure, axes = panels(1, len(precisions), (1.2 + 5.2 * len(precisions), 4.6), sharey=True)
    for axis, precision in zip(axes[0], precisions):
        _panel(axis, [row for row in rows if row["dtype"] == precision], precision)
    axes[0][0].set_ylabel("forward + backward, ms (log scale)")
    handles = {label: bar for axis in axes[0] for bar, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    threads = f", {results['threads']} threads" if results["kind"] == "cpu" else ""
    shapes = "sections of ResNet-110 to 20, CIFAR" if family == "cifar" else "tiny sections (a trial of the code)"
    title = f"The whole LIT loss, {shapes}: {results['device']}{threads}"
    fused = next((VARIANTS[name] for name in FUSED if any(row["variant"] == name for row in rows)), None)
    meaning = f"\nnumbers: how many times faster {fused} is" if fused else ""
    figure.suptitle(title + meaning, fontsize=11)
    figure.set_dpi(150)
    save(figure, out)


def _panel(axis: Any, rows: list[Row], precision: str) -> None:
    batches = sorted({row["batch"] for row in rows})
    names = [name for name in VARIANTS if any(row["variant"] == name for row in rows)]
    width = 0.8 / len(names)
    fused = next((name for name in FUSED if name in names), None)
    for place, name in enumerate(names):
        label, color = VARIANTS[name], COLORS[name]
        own = [row for row in rows if row["variant"] == name]
        x = [batches.index(row["batch"]) + (place - (len(names) - 1) / 2) * width for row in own]
        y = [row["median_us"] / 1000 for row in own]
        spread = [[m - row["quartiles_us"][0] / 1000 for m, row in zip(y, own)]]
        spread.append([row["quartiles_us"][1] / 1000 - m for m, row in zip(y, own)])
        axis.bar(x, y, width * 0.94, color=color, label=label, yerr=spread, ecolor=DARK, error_kw={"lw": 0.8})
    for number, batch in enumerate(batches):
        here = [row for row in rows if row["batch"] == batch]
        row = next((row for row in here if row["variant"] == fused), None)
        if row is not None:
            top = max(max(one["quartiles_us"][1], one["median_us"]) for one in here) / 1000
            ratios = [(row.get("times_eager"), "eager"), (row.get("times_compile"), "compile")]
            text = "\n".join(f"{ratio:.1f}x {of}" for ratio, of in ratios if ratio)
            axis.text(number, top * 1.12, text, ha="center", va="bottom", fontsize=8.5, color=DARK)
    axis.margins(y=0.16)
    plain_log(axis)
    axis.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    axis.set_xlabel("batch")
    axis.set_title(precision, fontsize=11)
    axis.grid(visible=False, axis="x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, help="the figure (default: beside the results, as PNG)")
    options = parser.parse_args()
    results = json.loads(options.results.read_text(encoding="utf-8"))
    print(tables.of(results))
    draw(results, options.out or options.results.with_suffix(".png"))


if __name__ == "__main__":
    main()
