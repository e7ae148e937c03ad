"""The summary, as Markdown: stages, bars, probe, steps, losses."""

from __future__ import annotations

from typing import Any

from benchmarks import bars, markdown

Results = dict[str, Any]


def sections(results: Results) -> list[str]:
    """Heading, stages, bars, findings and times, most important first."""
    versions = results.get("versions", {})
    known = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "cuda", "triton", "driver") if versions.get(name)
    )
    head = [
        f"# lit_fast on {results['device']}",
        "",
        f"{results['date']}, commit {results['commit']}; {known or 'versions unknown'}; `{results['command']}`",
    ]
    stages = [
        (stage["name"], stage["status"], f"{stage['seconds']:.1f}", _cell(stage["detail"]))
        for stage in results["stages"]
    ]
    parts = ["\n".join(head), markdown.table(("stage", "status", "seconds", ""), stages), bars.table(results["bars"])]
    if results["tests"]["failures"]:
        parts.append(failures(results["tests"]["failures"]))
    if results["probe"]:
        parts.append(probe(results["probe"]))
    if results["rows"]:
        parts += [steps(results["rows"]), times(results["rows"])]
    return parts


def failures(tests: list[dict[str, Any]]) -> str:
    """Tests that failed, with the end of what they said."""
    lines = ["Tests that failed:", ""]
    for test in tests:
        said = [line for line in (test.get("why") or "").splitlines() if line.startswith("E ")]
        lines.append(f"- `{test['id']}`: {_cell(' '.join(said[:2]))[:300]}")
    return "\n".join(lines)


def probe(findings: list[dict[str, Any]]) -> str:
    """A line for each finding of the probe, without the lists of kernels."""
    lines = []
    for finding in findings:
        shown = {k: v for k, v in finding.items() if k not in ("name", "stage", "top", "seconds")}
        if "parts" in shown:
            shown["errors"] = [f"{part['error']:.1e}" for part in shown.pop("parts")]
        words = ", ".join(f"{key} {_value(value)}" for key, value in shown.items())
        lines.append((finding["name"], _cell(words)[:400]))
    return markdown.table(("probe", ""), lines)


def steps(rows: list[dict[str, Any]]) -> str:
    """The rows of the step, its tricks, the teacher and the loaders."""
    columns = ("suite", "setting", "variant", "us", "images/s", "x plain", "x eager", "x compile", "launches")
    lines = []
    for row in rows:
        if row["suite"] in ("loss", "overhead"):
            continue
        mode = f" ({row['mode']})" if row.get("mode") else ""
        figures = ("median_us", "images_s", "times_plain", "times_eager", "times_compile", "launches", "kernel_us")
        cells = [_number(row.get(figure)) for figure in figures]
        lost = f"{row['percent_lost']:.1f} % lost" if "percent_lost" in row else ""
        said = lost if row["status"] == "measured" else row["status"]
        lines.append((row["suite"], row["setting"], row["variant"] + mode, *cells, _cell(said)))
    return markdown.table((*columns, "kernels, us", ""), lines)


def times(rows: list[dict[str, Any]]) -> str:
    """The rows of the loss, a line for each variant that counts, and what is missing."""
    columns = ("setting", "variant", "us", "kernels, GB/s", "% of copy", "x eager", "x compile", "launches")
    lines = []
    for row in rows:
        if row["suite"] == "loss" and row["status"] == "measured" and row["best"]:
            mode = f" ({row['mode']})" if row["mode"] else ""
            cells = (
                row["setting"],
                row["variant"] + mode,
                f"{row['median_us']:.1f}",
                _number(row.get("kernel_gb_s")),
                _number(row.get("percent_of_copy")),
                _number(row.get("times_eager")),
                _number(row.get("times_compile")),
                _number(row.get("launches")),
                _number(row.get("kernel_us")),
                _number(row["peak_bytes"] / 1e6 if "peak_bytes" in row else None),
            )
            lines.append(cells)
    calls = [
        (row["setting"], row["variant"], f"{row['median_us']:.1f}")
        for row in rows
        if row["suite"] == "overhead" and row["status"] == "measured"
    ]
    tables = (
        markdown.table((*columns, "kernels, us", "MB"), lines),
        markdown.table(("one call, tiny tensors", "variant", "us"), calls),
    )
    return "\n\n".join(tables)


def _number(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.4g}"


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(map(_value, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
