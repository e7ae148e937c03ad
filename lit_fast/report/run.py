"""``report.md`` and ``report.png`` of a run folder, rendered from its ``results.json`` alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from lit_fast.files import atomic_write
from lit_fast.report import plots
from lit_fast.report.section_plots import draw_sections
from lit_fast.report.section_table import SECTION_COLUMNS, looked_at, section_rows
from lit_fast.runs.results import Row, Runs, behind_labels, headers, left_out_lines, legend, load_results, table
from lit_fast.runs.schema import Results, RunResult
from lit_fast.tables import fenced, markdown_table, markdown_text

__all__ = ["ReportPaths", "load_results", "table", "write_report"]

SECTIONS_PNG = "sections.png"


@dataclass(frozen=True)
class ReportPaths:
    """What was written; ``figure`` is ``None`` where it could not be drawn, and ``note`` says why."""

    markdown: Path
    figure: Path | None
    note: str | None = None


def write_report(run_dir: str | os.PathLike[str]) -> ReportPaths:
    """Render ``report.md`` and ``report.png`` from ``run_dir/results.json``, replacing those of before.

    Where students' sections were looked at (`section_diagnostics`), ``sections.png`` too.

    Without matplotlib the figure is left out, and the report says so.

    Raises:
        ReportError: no results, or unreadable ones; names the file.
        OSError: the folder cannot be written to.
    """
    folder = Path(run_dir)
    content = load_results(folder)
    figure: Path | None = folder / "report.png"
    note = None
    try:
        plots.draw(content, folder / "report.png")
        if looked_at(content["results"]):
            draw_sections(content["results"], folder / SECTIONS_PNG)
    except ImportError:
        figure = None
        note = "no figure: matplotlib is not installed (pip install matplotlib), then `lit-fast report` draws it"
    markdown = folder / "report.md"
    text = _markdown(content, figure, note)
    atomic_write(markdown, lambda p: p.write_text(text, encoding="utf-8"))
    return ReportPaths(markdown, figure, note)


def _markdown(content: Results, figure: Path | None, note: str | None) -> str:
    results = content["results"]
    experiment: Mapping[str, Any] = content.get("experiment", {})
    environment: Mapping[str, Any] = content.get("environment", {})
    rows = table(results)
    dataset = experiment.get("data", {}).get("name", "")
    title = " on ".join(part for part in (experiment.get("recipe", ""), dataset) if part)
    parts = [
        f"# lit_fast: {markdown_text(title) or 'results'}",
        markdown_table(_columns(rows), [_cells(row) for row in rows]),
        legend(rows) + " Compression: the first teacher's parameters over the network's own. MMACs: millions of "
        "multiply-accumulates for one image. Seconds and images/s: training alone, without evaluation.",
        *(f"**Note:** {markdown_text(sentence)}." for sentence in behind_labels(results)),
        "## Curves",
        f"![accuracy against size, losses, IR losses, accuracy against time]({figure.name})" if figure else f"({note})",
        *_sections(results, figure),
        "## Runs",
        markdown_table(
            (
                "run",
                "val %, last",
                "val %, best (epoch)",
                "test %, last",
                "test %, best",
                "epochs",
                "engine",
                "weights",
            ),
            [_run_cells(result) for result in results],
        ),
        *left_out_lines(content.get("left_out") or ()),
        "## Environment",
        markdown_table(("", ""), [(_inline(key), _inline(value)) for key, value in environment.items()], left=2),
        "## Config",
        "As resolved from recipe, file and command line; `lit-fast distill --config FILE` repeats it.",
        fenced(yaml.safe_dump(dict(experiment), sort_keys=False, allow_unicode=True).rstrip(), "yaml"),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _sections(results: Runs, figure: Path | None) -> list[str]:
    rows = section_rows(results)
    if not rows:
        return []
    return [
        "## Sections",
        "On a batch of the validation split, in training mode, after the last epoch of each phase. Teacher-fed, "
        "composed: IR error of a section that is given the teacher's IR, or the student's own, mean over the elements; "
        "gap: their difference. Cosine: between the gradients of the KD and the IR loss in that section.",
        markdown_table(SECTION_COLUMNS, [tuple(map(markdown_text, row)) for row in rows], left=3),
        *([f"![IR errors, assembly gaps, cosines]({SECTIONS_PNG})"] if figure else []),
    ]


def _columns(rows: Sequence[Row]) -> tuple[str, ...]:
    network, training, layers, _, *others = (_joined(above, name) for above, name in headers(rows))
    return (network, training, "seeds", layers, "parameters", *others)


def _joined(above: str, name: str) -> str:
    """The two lines of a header as one: "compres-", "sion" and "test %", "last"."""
    return above[:-1] + name if above.endswith("-") else ", ".join(filter(None, (above, name)))


def _cells(row: Row) -> tuple[str, ...]:
    network, training, layers, _, *others = row.cells()
    names = (markdown_text(network), markdown_text(training))
    return (*names, str(row.seeds), layers, f"{row.parameters:,}", *others)


def _run_cells(result: RunResult) -> tuple[str, ...]:
    accuracy = result["accuracy"]
    epoch = accuracy.get("best_epoch")
    files = result.get("files") or {}
    return (
        markdown_text(result["name"]),
        _percent(accuracy.get("val_last")),
        _percent(accuracy.get("val_best")) + ("" if epoch is None else f" ({epoch})"),
        _percent(accuracy.get("test_last")),
        _percent(accuracy.get("test_best")),
        str(result.get("epochs") or "-"),
        str(result.get("engine") or "-"),
        ", ".join(f"[{markdown_text(name)}]({quote(path)})" for name, path in files.items() if path) or "-",
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        value = ", ".join(f"{key} {item}" for key, item in value.items())
    return markdown_text(str(value).replace("\n", " "))
