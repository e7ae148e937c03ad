"""The summary, as Markdown: stages, bars, times of the loss."""

from __future__ import annotations

from typing import Any

from benchmarks import bars

Results = dict[str, Any]


def sections(results: Results) -> list[str]:
    """Heading, stages, bars and times, most important first."""
    versions = results.get("versions", {})
    known = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "cuda", "triton", "driver") if versions.get(name)
    )
    head = [
        f"# lit_fast on {results['device']}",
        "",
        f"{results['date']}, commit {results['commit']}; {known or 'versions unknown'}; `{results['command']}`",
    ]
    stages = ["| stage | status | seconds | |", "|---|---|---|---|"]
    for stage in results["stages"]:
        stages.append(f"| {stage['name']} | {stage['status']} | {stage['seconds']:.1f} | {_cell(stage['detail'])} |")
    parts = ["\n".join(head), "\n".join(stages)]
    if results.get("bars"):
        parts.append(bars.table(results["bars"]))
    if results.get("rows"):
        parts.append(times(results["rows"]))
    return parts


def times(rows: list[dict[str, Any]]) -> str:
    """The rows of the loss, a line for each variant that counts, and what is missing."""
    lines = [
        "| setting | variant | us | GB/s | % of copy | x eager | x compile | launches | kernels, us | peak MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["suite"] == "loss" and row["status"] == "measured" and row["best"]:
            mode = f" ({row['mode']})" if row["mode"] else ""
            cells = (
                row["setting"],
                row["variant"] + mode,
                f"{row['median_us']:.1f}",
                _number(row["gb_s"]),
                _number(row.get("percent_of_copy")),
                _number(row.get("times_eager")),
                _number(row.get("times_compile")),
                _number(row.get("launches")),
                _number(row.get("kernel_us")),
                _number(row["peak_bytes"] / 1e6 if "peak_bytes" in row else None),
            )
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| one call, tiny tensors | variant | us |", "|---|---|---|"]
    for row in rows:
        if row["suite"] == "overhead" and row["status"] == "measured":
            lines.append(f"| {row['setting']} | {row['variant']} | {row['median_us']:.1f} |")
    return "\n".join(lines)


def _number(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.3g}"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
