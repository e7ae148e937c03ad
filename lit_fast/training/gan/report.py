"""``report.md`` and ``report.png`` of a StarGAN experiment, rendered from its ``results.json`` alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_fast.training.files import atomic_write
from lit_fast.training.results import aligned, left_out_lines

__all__ = ["LEGEND", "conclude", "draw", "is_gan", "table"]

_COLUMNS = (
    "network", "training", "seed", "layers", "params", "MMACs", "MACs ratio",
    "attributes %", "reconstruction", "to teacher", "IS", "FID", "seconds",
)  # fmt: skip
LEGEND = (
    "Over the test images in every domain. attributes: share of those asked for that the teacher's discriminator sees; "
    "reconstruction: mean absolute difference of an image translated there and back, of values in -1..1; to teacher: "
    "the same between the network's and the teacher's translations. IS, FID: inception score and Fréchet distance."
)
_COLORS = {"scratch": "#7f7f7f", "lit": "#d55e00", "teacher": "#0072b2"}


def is_gan(folder: Path) -> bool:
    """Whether ``results.json`` of ``folder`` is of a StarGAN experiment; false where it cannot be read."""
    try:
        content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        return bool(content["experiment"].get("task") == "gan")
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def conclude(folder: Path) -> str:
    """Write the report of ``folder``; returns the table and where everything lies, as text."""
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    results: Sequence[Mapping[str, Any]] = content["results"]
    lines = [table(results), LEGEND, ""]
    figure: Path | None = folder / "report.png"
    try:
        draw(results, folder / "report.png")
    except ImportError:
        figure = None
        lines.append("note: no figure: matplotlib is not installed (pip install matplotlib)")
    markdown = folder / "report.md"
    text = _markdown(content, figure)
    atomic_write(markdown, lambda p: p.write_text(text, encoding="utf-8"))
    lines.append(f"report   {markdown}")
    shown = [("figure", figure), ("samples", folder / "samples.png")]
    shown += [("weights", folder / result["files"]["generator"]) for result in results if result["files"]]
    lines += [f"{what:<8} {path}" for what, path in shown if path is not None and path.is_file()]
    return "\n".join(lines)


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """One aligned line per run."""
    return aligned([_COLUMNS, *(_cells(result) for result in results)], left=2, rule=1)


def _cells(result: Mapping[str, Any]) -> tuple[str, ...]:
    scores: Mapping[str, float | None] = result.get("scores") or {}
    return (
        result["model"],
        "teacher" if result["role"] == "teacher" else result["variant"],
        "-" if result["seed"] is None else str(result["seed"]),
        str(result["layers"]),
        f"{result['parameters'] / 1e6:.3f}M",
        f"{result['mmacs']:.1f}",
        f"{result['macs_ratio']:.2f}x",
        _number(scores.get("attributes"), 1),
        _number(scores.get("reconstruction"), 4),
        _number(scores.get("teacher_l1"), 4),
        _number(scores.get("inception_score"), 2),
        _number(scores.get("fid"), 2),
        f"{result['seconds']:,.0f}",
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def draw(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Losses over the epochs: the IR loss of the LIT phases, and cycle and attributes of the adversarial ones.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    titles = {
        "lit": "IR loss (LIT phase)",
        "generator_reconstruction": "reconstruction loss",
        "generator_attributes": "attribute loss of generated images",
    }
    for place, (key, title) in zip(figure.subplots(1, len(titles)), titles.items()):
        for result in results:
            name = "teacher" if result["role"] == "teacher" else result["variant"]
            for field, style in ((key, "-"), (f"val_{'ir' if key == 'lit' else key}", ":")):
                points = [
                    (e["epoch"], e[field])
                    for e in result["history"]
                    if field in e and not (key == "lit" and e["phase"] != "lit")
                ]
                if points:
                    label = f"{name}, {result['model']}" + (" (validation)" if style == ":" else "")
                    marker = "o" if len(points) < 2 else None
                    place.plot(*zip(*points), style, color=_COLORS[name], label=label, marker=marker)
        place.set_title(title)
        place.set_xlabel("epoch of the run")
        place.set_yscale("log" if key == "lit" else "linear")
        if place.lines:
            place.legend(fontsize="small")
    atomic_write(path, lambda p: figure.savefig(p, format="png", dpi=110))


def _markdown(content: Mapping[str, Any], figure: Path | None) -> str:
    results = content["results"]
    rule = "|" + "---|" * len(_COLUMNS)
    rows = ["| " + " | ".join(row) + " |" for row in (_COLUMNS, *(_cells(result) for result in results))]
    environment = [f"| {key} | {value} |" for key, value in content["environment"].items()]
    experiment = yaml.safe_dump(content["experiment"], sort_keys=False, allow_unicode=True).rstrip()
    parts = [
        f"# lit_fast: {content['experiment']['recipe']} on {content['experiment']['data']['name']}",
        "\n".join([rows[0], rule, *rows[1:]]),
        LEGEND,
        "## Curves",
        f"![losses over the epochs]({figure.name})" if figure else "(no figure: matplotlib is not installed)",
        *left_out_lines(content.get("left_out") or ()),
        "## Environment",
        "\n".join(["| | |", "|---|---|", *environment]),
        "## Config",
        f"```yaml\n{experiment}\n```",
    ]
    return "\n\n".join(parts) + "\n"
