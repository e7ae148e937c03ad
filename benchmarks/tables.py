"""The rows of a results file as Markdown tables."""

from __future__ import annotations

from typing import Any

from benchmarks import tricks
from lit_fast.tables import markdown_table

Row = dict[str, Any]
VARIANTS = {
    "eager": "eager",
    "compile": "torch.compile, best mode",
    "triton": "lit_fast, Triton",
    "native": "lit_fast, native",
}
FUSED = ("native", "triton")


def of(results: dict[str, Any]) -> str:
    """A table for each suite that was measured."""
    makers = {"loss": loss, "step": step, "teacher": step, "tricks": tricks_table, "data": data}
    found = ((make, measured(results, suite)) for suite, make in makers.items())
    return "\n\n".join(make(rows) for make, rows in found if rows)


def measured(results: dict[str, Any], suite: str) -> list[Row]:
    """The rows of a suite that count: of torch.compile the fastest mode."""
    return [row for row in results["rows"] if row["suite"] == suite and row["status"] == "measured" and row["best"]]


def loss(rows: list[Row]) -> str:
    """Milliseconds by setting and variant, and how many times faster the fused loss is."""
    names = [name for name in VARIANTS if any(row["variant"] == name for row in rows)]
    fused = next((name for name in FUSED if name in names), None)
    columns = ["shapes", "batch", "precision", *(f"{VARIANTS[name]}, ms" for name in names)]
    columns += ["x eager", "x compile", "GB/s", "% of a copy"] if fused else []  # of the fused loss
    lines = []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        by_variant = {row["variant"]: row for row in rows if row["setting"] == setting}
        one = next(iter(by_variant.values()))
        cells = [one["family"], str(one["batch"]), one["dtype"]]
        cells += [_number(by_variant.get(name, {}).get("median_us"), 1000) for name in names]
        if fused:
            row = by_variant.get(fused, {})
            cells += [_number(row.get(key)) for key in ("times_eager", "times_compile", "gb_s", "percent_of_copy")]
        lines.append(cells)
    return markdown_table(columns, lines, left=3)


def step(rows: list[Row]) -> str:
    """Milliseconds of a step, or of the teacher's forward pass, by setting and variant; ratios of the last variant."""
    names = [
        name
        for name in ("plain", "eager", "compile", "runner", "capture")
        if any(row["variant"] == name for row in rows)
    ]
    columns = [rows[0]["suite"], *(f"{name}, ms" for name in names), "images/s", "x plain", "x eager", "x compile"]
    lines = []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        by_variant = {row["variant"]: row for row in rows if row["setting"] == setting}
        best = next((by_variant[name] for name in reversed(names) if name in by_variant), {})
        cells = [_number(by_variant.get(name, {}).get("median_us"), 1000) for name in names]
        ratios = [_number(best.get(f"times_{name}")) for name in ("plain", "eager", "compile")]
        lines.append([setting, *cells, _number(best.get("images_s")), *ratios])
    return markdown_table(columns, lines, left=1)


def tricks_table(rows: list[Row]) -> str:
    """The ladder, each rung against the one before it, then what was tried on top, against lit_fast's step."""
    columns = ["setting", "variant", "ms", "x the rung before", "x lit_fast's step", "peak memory, MiB"]
    lines = []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        by_variant = {row["variant"]: row for row in rows if row["setting"] == setting}
        ladder = [name for name in tricks.LADDER if name in by_variant]
        for name in [*ladder, *(name for name in by_variant if name not in ladder)]:
            row = by_variant[name]
            before = ladder[ladder.index(name) - 1] if name in ladder[1:] else None
            memory = row["peak_bytes"] / 2**20 if "peak_bytes" in row else None
            ratios = [_number(row.get(f"times_{before}")), _number(row.get("times_runner"))]
            lines.append([setting, name, _number(row["median_us"], 1000), *ratios, _number(memory)])
    return markdown_table(columns, lines, left=2)


def data(rows: list[Row]) -> str:
    """Images per second by dataset and loader, and the step's demand."""
    columns = ["dataset", "variant", "images/s", "x pil", "x torch", "x dali", "time lost, %"]
    lines = []
    for row in sorted(rows, key=lambda row: row["setting"]):  # stable: variants keep their order
        ratios = [_number(row.get(f"times_{name}")) for name in ("pil", "torch", "dali")]
        lines.append(
            [row["setting"], row["variant"], _number(row["images_s"]), *ratios, _number(row.get("percent_lost"))]
        )
    return markdown_table(columns, lines, left=2)


def _number(value: float | None, divisor: float = 1.0) -> str:
    return "-" if value is None else f"{value / divisor:.3g}" if value < 1000 * divisor else f"{value / divisor:.0f}"
