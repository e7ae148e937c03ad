"""What an experiment found, as in ``results.json``, and one table row per network and way of training it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_fast.errors import ReportError
from lit_fast.files import write_json
from lit_fast.runs.schema import ClassifierResults, GeneratorResults, Results, RunResult
from lit_fast.runs.stored import read_json
from lit_fast.tables import aligned, markdown_text

__all__ = [
    "HEADERS",
    "Row",
    "Runs",
    "Spread",
    "behind_labels",
    "grouped",
    "headers",
    "left_out_lines",
    "legend",
    "load_results",
    "percent",
    "picked",
    "plain_table",
    "read_results",
    "table",
    "trains_generators",
    "way_of",
    "write_results",
]

# Two lines each, so that the table stays readable on a terminal of 100 columns.
HEADERS = (
    ("", "network"),
    ("", "training"),
    ("", "layers"),
    ("", "params"),
    ("", "MMACs"),
    ("compres-", "sion"),
    ("test %", "last"),
    ("test %", "best"),
    ("", "seconds"),
    ("", "images/s"),
)
_LEFT_OUT = ("images/s", "MMACs", "layers", "best", "params", "seconds")  # of columns, in turn, where there is no room
# What the accuracy is of, by targets: of an image, a pixel, a token, the next token, or rows as one's own targets make.
_MEASURED = {"classification": "test %", "dense": "pixel %", "tokens": "token %", "causal_lm": "next %", "own": "row %"}
_ACCURACY_OF = {
    "dense": "pixel %: right classes, of the pixels whose label counts.",
    "tokens": "token %: right classes, of the tokens whose label counts.",
    "causal_lm": "next %: next tokens that are the likeliest; perplexity: exp of their mean cross-entropy, last epoch.",
    "own": "row %: right classes, of the rows that your targets give.",
}

_AHEAD = 0.5  # points of validation accuracy: less says nothing

Runs = Sequence[RunResult]
_FILE = "results.json"


@dataclass(frozen=True)
class Spread:
    """A mean, and the sample standard deviation where there are several values."""

    mean: float
    deviation: float | None = None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Of the values that are there; ``None`` where none is."""
        known = [float(value) for value in values if value is not None]
        if not known:
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)

    def __format__(self, spec: str) -> str:
        """Both numbers by ``spec``, as of a float."""
        return format(self.mean, spec) + ("" if self.deviation is None else "±" + format(self.deviation, spec))

    def __str__(self) -> str:
        return format(self, ".2f")


@dataclass(frozen=True)
class Row:
    """One network trained one way, over its seeds. Accuracies are percent of ``split``: "test", or "val" where no
    test split was used.

    Of a pruned network (one with a ``sparsity``) ``parameters`` are those that are not zero.
    """

    role: str
    network: str
    training: str
    seeds: int
    layers: int
    parameters: int
    mmacs: float
    compression: float
    last: Spread | None
    best: Spread | None
    seconds: Spread | None
    images_per_second: Spread | None
    sparsity: float | None = None
    targets: str = "classification"
    split: str = "test"
    perplexity: Spread | None = None

    def cells(self) -> tuple[str, ...]:
        """As text, in the order of `headers`."""
        way = way_of(self.training, self.sparsity)
        return (
            self.network,
            "teacher" if self.role == "teacher" and self.training != "checkpoint" else way,
            str(self.layers),
            f"{self.parameters / 1e6:.3f}M",
            f"{self.mmacs:.1f}",
            f"{self.compression:.2f}x",
            _text(self.last),
            _text(self.best),
            "-" if self.seconds is None else f"{self.seconds.mean:,.{1 if self.seconds.mean < 10 else 0}f}",
            "-" if self.images_per_second is None else f"{self.images_per_second.mean:,.0f}",
            *(() if self.targets != "causal_lm" else (_text(self.perplexity),)),
        )


def write_results(run_dir: Path, content: Results) -> None:
    """Write ``run_dir/results.json``, whole or not at all."""
    write_json(run_dir / _FILE, content)


def read_results(run_dir: Path, *, generators: bool = False) -> Results:
    """The content of ``run_dir/results.json``, of an experiment with classifiers or with generators.

    Raises:
        OSError: it cannot be read.
        ReportError: it is not what an experiment writes; names the file and the key.
    """
    content: Results = read_json(run_dir / _FILE, GeneratorResults if generators else ClassifierResults, ReportError)
    return content


def trains_generators(run_dir: Path) -> bool:
    """Whether ``results.json`` is of an experiment with generators; false where it cannot be read."""
    try:
        content = read_json(run_dir / _FILE, dict[str, Any], ReportError)
    except (OSError, ReportError):
        return False
    experiment = content.get("experiment")
    return isinstance(experiment, dict) and experiment.get("task") == "gan"


def load_results(run_dir: Path, *, generators: bool = False) -> Results:
    """As `read_results`, of an experiment of which a run has ended.

    Raises:
        ReportError: there is none, or it is not what an experiment writes; names the file and the key.
    """
    path = run_dir / _FILE
    try:
        content = read_results(run_dir, generators=generators)
    except (FileNotFoundError, NotADirectoryError):
        raise ReportError(
            f"{path} does not exist: {run_dir} is not the run folder of an experiment, or none of its runs has ended"
        ) from None
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror}") from error
    if not content["results"]:
        raise ReportError(f"{path} holds no result yet: let a run end, or --resume the experiment")
    return content


def picked(result: RunResult, *keys: str) -> dict[str, Any]:
    """These of its keys, as another results file takes them over.

    Raises:
        ReportError: one is missing.
    """
    fields: Mapping[str, Any] = result
    lacking = [key for key in keys if key not in fields]
    if lacking:
        raise ReportError(f"the result of run {result['name']} lacks {', '.join(lacking)}")
    return {key: fields[key] for key in keys}


def percent(fraction: float) -> str:
    """0.955 as "95.5"."""
    return f"{100 * fraction:g}"


def way_of(variant: str, sparsity: float | None) -> str:
    """How a student came to be, as tables name it: "lit", "lit, 80 % pruned"."""
    return variant if sparsity is None else f"{variant}, {percent(sparsity)} % pruned"


def grouped(results: Runs) -> dict[tuple[str, str, str], list[RunResult]]:
    """Results of the same (role, model, `way_of`) together: they differ by their seed. Teachers come first."""
    groups: dict[tuple[str, str, str], list[RunResult]] = {}
    for result in sorted(results, key=lambda r: r["role"] != "teacher"):
        way = way_of(result["variant"], result.get("sparsity"))
        groups.setdefault((result["role"], result["model"], way), []).append(result)
    return groups


def table(results: Runs) -> list[Row]:
    """One `Row` for each network and way of training it: means, and deviations over the seeds."""
    rows = []
    tested = any(run["accuracy"].get("test_last") is not None for run in results)
    split = "test" if tested else "val"
    for (role, model, _), runs in grouped(results).items():
        rows.append(
            Row(
                role=role,
                network=model,
                training=runs[0]["variant"],
                seeds=len(runs),
                layers=runs[0]["layers"],
                parameters=runs[0].get("nonzero_parameters", runs[0]["parameters"]),
                mmacs=runs[0]["mmacs"],
                compression=runs[0]["compression"],
                last=Spread.of(
                    run["accuracy"].get("test_last") if tested else run["accuracy"].get("val_last") for run in runs
                ),
                best=Spread.of(
                    run["accuracy"].get("test_best") if tested else run["accuracy"].get("val_best") for run in runs
                ),
                split=split,
                seconds=Spread.of(run.get("seconds") for run in runs),
                images_per_second=Spread.of(run.get("images_per_second") for run in runs),
                sparsity=runs[0].get("sparsity"),
                targets=runs[0].get("targets", "classification"),
                perplexity=Spread.of((run.get("scores") or {}).get("perplexity") for run in runs),
            )
        )
    return rows


def headers(rows: Sequence[Row]) -> tuple[tuple[str, str], ...]:
    """Of the columns of a table, two lines each."""
    measured = _MEASURED[rows[0].targets] if rows else "test %"
    if rows and rows[0].split == "val":
        measured = measured.replace("test", "val")
    extra = (("perplex-", "ity"),) if any(row.targets == "causal_lm" for row in rows) else ()
    return (*((measured if above == "test %" else above, name) for above, name in HEADERS), *extra)


def legend(rows: Sequence[Row]) -> str:
    """What the columns mean, in one sentence or two."""
    seeds = sorted({row.seeds for row in rows if row.seeds > 1})
    scored = "the validation split: no test split was used"
    scored = scored if rows and rows[0].split == "val" else "the untouched test split"
    text = f"last: after the last epoch; best: the weights best on validation; both on {scored}."
    if seeds:
        text += f" Mean ± standard deviation over {' or '.join(map(str, seeds))} seeds."
    if rows and rows[0].targets != "classification":
        text += f" {_ACCURACY_OF[rows[0].targets]}"
    if any(row.sparsity is not None for row in rows):
        text += " Of pruned networks the parameters that are not zero; their MMACs are as if none were."
    return text


def plain_table(rows: Sequence[Row], width: int | None = None) -> str:
    """The table as aligned text, for a pipe or a file; for a terminal of that ``width``, without some columns."""
    top = headers(rows)
    lines = [tuple(above for above, _ in top), tuple(name for _, name in top), *(row.cells() for row in rows)]
    text = aligned(lines, left=2, rule=2)
    for name in _LEFT_OUT:
        if width is None or len(text.splitlines()[2]) <= width:
            break
        at = lines[1].index(name)
        lines = [line[:at] + line[at + 1 :] for line in lines]
        text = aligned(lines, left=2, rule=2)
    return text


def _text(value: Spread | None) -> str:
    return "-" if value is None else str(value)


def left_out_lines(files: Sequence[str]) -> list[str]:
    """The section of a report that names the files left out; nothing where there are none."""
    if not files:
        return []
    return [
        f"## Images left out: {len(files)}",
        "They cannot be decoded (`data.on_bad_image: skip`) and took part in nothing.",
        "\n".join(f"- {markdown_text(file)}" for file in files),
    ]


def behind_labels(results: Sequence[RunResult]) -> list[str]:
    """Sentences on students with whom labels alone ended ahead of other ways, by the means over seeds on validation."""
    students = [result for result in results if result["role"] == "student" and result.get("sparsity") is None]
    sentences = []
    for model in dict.fromkeys(result["model"] for result in students):
        accuracies: dict[str, list[float]] = {}
        for result in students:
            if result["model"] == model:
                accuracies.setdefault(result["variant"], []).append(result["accuracy"]["val_best"])
        means = {variant: statistics.mean(values) for variant, values in accuracies.items()}
        alone = means.get("scratch", -math.inf)
        behind = [f"{variant} {mean:.2f} %" for variant, mean in means.items() if mean <= alone - _AHEAD]
        if behind:
            sentences.append(
                f"{model}: labels alone end ahead on validation, {alone:.2f} % against {', '.join(behind)}; "
                "docs/choosing.md says when LIT helps"
            )
    return sentences
