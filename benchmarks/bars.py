"""What the figures are held to. ``python -m benchmarks.bars RESULTS.json`` prints the bars of that file's device.

"eager" is the loss as a script writes it with torch.nn.functional; the eager backend is lit_fast's reference.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import markdown

Row = dict[str, Any]
Results = dict[str, Any]  # a results file: copy_gb_s, rows and where they come from
PASS, FAIL, NOT_MEASURED = "PASS", "FAIL", "NOT MEASURED"
FUSED = ("native", "triton")  # the first that was measured is judged: what backend="auto" takes
HALF = ("float16", "bfloat16")


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        device: "cpu" or "cuda".
        text: what is asked.
        figures: of the results, each with what it belongs to; the worst one counts.
        bound: of the figures.
        least: whether the bound is a lower one.
        unit: of the figures.
    """

    device: str
    text: str
    figures: Callable[[Results], list[tuple[float, str]]]
    bound: float
    least: bool = True
    unit: str = "x"


def fused_rows(results: Results, suite: str, **wanted: Any) -> list[Row]:
    """The rows of the backend that "auto" takes; a tuple of wanted values asks for one of them."""

    def fits(row: Row) -> bool:
        asked = ((row.get(key), value) for key, value in wanted.items())
        return all(got in value if isinstance(value, tuple) else got == value for got, value in asked)

    measured = [row for row in results["rows"] if row["suite"] == suite and row["status"] == "measured" and fits(row)]
    for variant in FUSED:
        found = [row for row in measured if row["variant"] == variant]
        if found:
            return found
    return []


def _times(other: str, batch: int, dtypes: tuple[str, ...]) -> Callable[[Results], list[tuple[float, str]]]:
    def figures(results: Results) -> list[tuple[float, str]]:
        rows = fused_rows(results, "loss", family="cifar", batch=batch, dtype=dtypes)
        return [(row[f"times_{other}"], _name(row)) for row in rows if row.get(f"times_{other}")]

    return figures


def _copy_rate(results: Results) -> list[tuple[float, str]]:
    rate = results.get("copy_gb_s")
    rows = fused_rows(results, "loss", family="cifar-large")
    return [(100 * row["kernel_gb_s"] / rate, _name(row)) for row in rows if "kernel_gb_s" in row] if rate else []


def _launches(field: str) -> Callable[[Results], list[tuple[float, str]]]:
    def figures(results: Results) -> list[tuple[float, str]]:
        rows = fused_rows(results, "loss", family=("cifar", "cifar-large"))
        return [
            (row[field], f"{_name(row)}; whole step: {', '.join(row['kernels'])}") for row in rows if row.get(field)
        ]

    return figures


def _overhead(results: Results) -> list[tuple[float, str]]:
    rows = fused_rows(results, "overhead", setting="lit_loss, forward")
    return [(row["median_us"], f"{row['variant']}, {row['setting']}") for row in rows]


def _captured(other: str, batch: int) -> Callable[[Results], list[tuple[float, str]]]:
    def figures(results: Results) -> list[tuple[float, str]]:
        rows = _rows_of(results, "step", "resnet110-resnet20", "capture", batch)
        return [(row[f"times_{other}"], _name(row)) for row in rows if row.get(f"times_{other}")]

    return figures


def _images(results: Results) -> list[tuple[float, str]]:
    rows = _rows_of(results, "step", "resnet110-resnet20", "capture", 1024)
    return [(row["images_s"], _name(row)) for row in rows if row["dtype"] == "bf16"]


def _linear(what: str) -> Callable[[Results], list[tuple[float, str]]]:
    """What the loss in chunks takes of that of whole logits: of both ways of writing it, the worse counts."""

    def figures(results: Results) -> list[tuple[float, str]]:
        rows = [row for row in results["rows"] if row["suite"] == row["variant"] == "linear"]
        fields = [f"{what}_of_{other}" for other in ("script", "kd_loss")]
        return [(row[field], f"{row['setting']}, {field}") for row in rows for field in fields if field in row]

    return figures


def _rows_of(results: Results, suite: str, family: str, variant: str, batch: int = 32) -> list[Row]:
    """The measured rows of one network and batch."""
    wanted = {"suite": suite, "family": family, "variant": variant, "batch": batch, "status": "measured", "best": True}
    return [row for row in results["rows"] if all(row.get(key) == value for key, value in wanted.items())]


def _step(other: str) -> Callable[[Results], list[tuple[float, str]]]:
    def figures(results: Results) -> list[tuple[float, str]]:
        rows = _rows_of(results, "step", "resnet110-resnet20", "runner")
        return [(row[f"times_{other}"], _name(row)) for row in rows if row.get(f"times_{other}")]

    return figures


def _step_best(results: Results) -> list[tuple[float, str]]:
    rows = _rows_of(results, "step", "resnet110-resnet20", "runner")
    return [(min(row["times_eager"], row["times_compile"]), _name(row)) for row in rows if row.get("times_compile")]


def _step_memory(results: Results) -> list[tuple[float, str]]:
    ours, eagers = (_rows_of(results, "step", "resnet110-resnet20", name) for name in ("runner", "eager"))
    return [(a["peak_bytes"] / b["peak_bytes"], _name(a)) for a, b in zip(ours, eagers) if b.get("peak_bytes")]


def _teacher(other: str) -> Callable[[Results], list[tuple[float, str]]]:
    def figures(results: Results) -> list[tuple[float, str]]:
        rows = _rows_of(results, "teacher", "resnet110", "runner")
        return [(row[f"times_{other}"], _name(row)) for row in rows if row.get(f"times_{other}")]

    return figures


def _loading(family: str, variant: str, field: str) -> Callable[[Results], list[tuple[float, str]]]:
    def figures(results: Results) -> list[tuple[float, str]]:
        wanted = {"suite": "data", "family": family, "variant": variant, "status": "measured"}
        rows = [row for row in results["rows"] if all(row.get(key) == value for key, value in wanted.items())]
        return [(row[field], _name(row)) for row in rows if field in row]

    return figures


def _name(row: Row) -> str:
    return f"{row['variant']}, {row['setting']}"


BARS = (
    Bar("cuda", "GB/s of the kernels at >= 64 MB per section against a device copy", _copy_rate, 90.0, unit="%"),
    Bar("cuda", "AMP, batch 1024, against eager", _times("eager", 1024, HALF), 6.0),
    Bar("cuda", "AMP, batch 1024, against torch.compile", _times("compile", 1024, HALF), 1.5),
    Bar("cuda", "AMP, batch 32, against eager", _times("eager", 32, HALF), 5.0),
    Bar("cuda", "AMP, batch 32, against torch.compile", _times("compile", 32, HALF), 2.0),
    Bar("cuda", "launches of loss and gradients (forward)", _launches("launches_forward"), 2, least=False, unit=""),
    Bar("cuda", "launches of forward + backward", _launches("launches"), 2, least=False, unit=""),
    *(
        Bar("cpu", f"{dtype}, batch {batch}, against {words}", _times(other, batch, (dtype,)), bound)
        for dtype, other, words, bound in (
            ("float32", "eager", "eager", 5.0),
            ("float32", "reference", "the eager backend", 5.0),
            ("float32", "compile", "torch.compile", 2.5),
            ("bfloat16", "eager", "eager", 5.0),
            ("bfloat16", "reference", "the eager backend", 5.0),
        )
        for batch in (32, 128)
    ),
    *(
        Bar("cuda", f"step, captured, ResNet-110 -> 20, batch {batch}, against {words}", _captured(other, batch), bound)
        for other, words, bounds in (
            ("plain", "the plain step", {32: 5.0, 128: 3.0}),
            ("compile", "torch.compile", {32: 1.5, 128: 1.5}),
        )
        for batch, bound in bounds.items()
    ),
    Bar("cuda", "step, captured, ResNet-110 -> 20, batch 1024, bf16", _images, 60_000.0, unit="images/s"),
    Bar("cpu", "step, ResNet-110 -> 20, batch 32, against the plain step", _step("plain"), 1.5),
    Bar("cpu", "step, ResNet-110 -> 20, batch 32, against the better of eager and torch.compile", _step_best, 1.2),
    Bar("cpu", "step, ResNet-110 -> 20, batch 32, peak memory against eager", _step_memory, 1.0, least=False),
    Bar("cpu", "teacher, ResNet-110, batch 32, against eager", _teacher("eager"), 1.4),
    Bar("cpu", "teacher, ResNet-110, batch 32, against torch.compile with freezing", _teacher("compile"), 1.1),
    Bar("cpu", "CIFAR, resident against the DataLoader with Pillow", _loading("cifar", "resident", "times_pil"), 10.0),
    Bar("cpu", "CIFAR, resident against DALI", _loading("cifar", "resident", "times_dali"), 1.5),
    Bar("cpu", "JPEG files, DALI against the loader torch", _loading("jpeg", "dali", "times_torch"), 1.2),
    Bar(
        "cuda",
        "captured step on resident data against the step on one batch: time lost",
        _loading("cifar", "step+resident", "percent_lost"),
        5.0,
        least=False,
        unit="%",
    ),
    Bar("cpu", "linear_kd_loss, memory of that of whole logits", _linear("memory"), 0.1, least=False),
    Bar("cpu", "linear_kd_loss, time of that of whole logits", _linear("time"), 1.1, least=False),
    Bar("cpu", "overhead of one call, tiny tensors", _overhead, 60.0, least=False, unit="us"),
)


def judge(results: Results, device: str | None = None) -> list[dict[str, Any]]:
    """Every bar of a device (of the results' own by default), with the worst figure and a verdict."""
    return [_judge(bar, results) for bar in BARS if bar.device == (device or results["kind"])]


def _judge(bar: Bar, results: Results) -> dict[str, Any]:
    asked = f"{'>=' if bar.least else '<='} {bar.bound:g} {bar.unit}".strip()
    counts = results.get("kind") == bar.device and not results.get("tiny")
    figures = bar.figures(results) if counts else []
    if not figures:
        return {"bar": bar.text, "asked": asked, "value": None, "of": None, "verdict": NOT_MEASURED}
    value, of = (min if bar.least else max)(figures)
    held = value >= bar.bound if bar.least else value <= bar.bound
    return {"bar": bar.text, "asked": asked, "value": value, "of": of, "verdict": PASS if held else FAIL}


def table(verdicts: list[dict[str, Any]]) -> str:
    """The bars as a Markdown table."""
    lines = []
    for bar in verdicts:
        value = "-" if bar["value"] is None else f"{bar['value']:.3g}"
        lines.append([bar["bar"], bar["asked"], value, bar["verdict"], bar["of"] or "-"])
    return markdown.table(("bar", "asked", "measured", "verdict", "worst of"), lines)


if __name__ == "__main__":
    print(table(judge(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
