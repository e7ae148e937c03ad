"""``report.md`` and ``report.png`` of a StarGAN experiment, rendered from its ``results.json`` alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from lit_fast.figure import BLACK, WAY_COLORS, legend, panels, plain_log, save, whole_epochs
from lit_fast.files import atomic_write
from lit_fast.runs.results import Runs, left_out_lines, load_results
from lit_fast.runs.schema import Results, RunResult
from lit_fast.tables import aligned, fenced, markdown_table, markdown_text

__all__ = ["LEGEND", "conclude", "draw", "table"]

_COLUMNS = (
    "network", "training", "seed", "layers", "params", "MMACs", "MACs ratio",
    "attributes %", "reconstruction", "to teacher", "IS", "FID", "seconds",
)  # fmt: skip
LEGEND = (
    "Over the test images in every domain. attributes: share of those asked for that the teacher's discriminator sees; "
    "reconstruction: mean absolute difference of an image translated there and back, of values in -1..1; to teacher: "
    "the same between the network's and the teacher's translations. IS, FID: inception score and Fréchet distance."
)


def conclude(folder: Path) -> str:
    """Write the report of ``folder``; returns the table and where everything lies, as text."""
    content = load_results(folder, generators=True)
    results = content["results"]
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
    shown += [("weights", folder / r["files"]["generator"]) for r in results if "generator" in r["files"]]
    lines += [f"{what:<8} {path}" for what, path in shown if path is not None and path.is_file()]
    return "\n".join(lines)


def table(results: Runs) -> str:
    """One aligned line per run."""
    return aligned([_COLUMNS, *(_cells(result) for result in results)], left=2, rule=1)


def _cells(result: RunResult) -> tuple[str, ...]:
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


def draw(results: Runs, path: Path) -> None:
    """Losses over the epochs: the IR loss of the LIT phases, and cycle and attributes of the adversarial ones.

    Raises:
        ImportError: matplotlib is not installed.
    """
    titles = {
        "lit": "IR loss (LIT phase)",
        "generator_reconstruction": "reconstruction loss",
        "generator_attributes": "attribute loss of generated images",
    }
    figure, axes = panels(1, len(titles), (12.0, 3.6))
    for ax, (key, title) in zip(axes[0], titles.items()):
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
                    ax.plot(*zip(*points), style, color=WAY_COLORS.get(name, BLACK), label=label, marker=marker)
        ax.set_title(title)
        ax.set_xlabel("epoch of the run")
        whole_epochs(ax)
        if key == "lit":
            plain_log(ax)
        if ax.lines:
            legend(ax)
    save(figure, path)


def _markdown(content: Results, figure: Path | None) -> str:
    environment = [(markdown_text(key), markdown_text(str(value))) for key, value in content["environment"].items()]
    experiment = yaml.safe_dump(content["experiment"], sort_keys=False, allow_unicode=True).rstrip()
    settings = content["experiment"]
    parts = [
        markdown_text(f"# lit_fast: {settings.get('recipe', '')} on {settings.get('data', {}).get('name', '')}"),
        markdown_table(_COLUMNS, [tuple(map(markdown_text, _cells(r))) for r in content["results"]], left=None),
        LEGEND,
        "## Curves",
        f"![losses over the epochs]({figure.name})" if figure else "(no figure: matplotlib is not installed)",
        *left_out_lines(content.get("left_out") or ()),
        "## Environment",
        markdown_table(("", ""), environment, left=None),
        "## Config",
        fenced(experiment, "yaml"),
    ]
    return "\n\n".join(parts) + "\n"
