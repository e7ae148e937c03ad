"""A study's table and figure, from its results file: the paper's numbers, ours, and what has not been run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from lit_fast.errors import ReportError
from lit_fast.figure import MARKERS, SERIES, panels, plain_log, save
from lit_fast.files import atomic_write
from lit_fast.paper import gan as generators
from lit_fast.paper.schema import GanStudyResults, StudyResults
from lit_fast.paper.view import View, dots
from lit_fast.runs.results import Spread, way_of
from lit_fast.runs.stored import checked, read_json
from lit_fast.tables import aligned, markdown_table, markdown_text

__all__ = ["Line", "StudyReport", "lines", "plain_tables", "read_results", "tables", "view_of", "write_report"]

_COLUMNS = ("", "network", "training", "paper %", "test %, last", "test %, best", "seeds", "difference")
_PRUNED = "nonzero parameters"  # one more column, where anything is pruned


class Line(NamedTuple):
    """One arm with one network, over its seeds.

    Attributes:
        parameters: those that are not zero, where it is pruned to a ``sparsity``.
        last, best: test accuracy in % after the last epoch, and of the weights that were best on validation.
        done, planned: seeds that have ended, and all.
        status: of a run that did not end well; empty otherwise.
    """

    group: str
    arm: str
    network: str
    variant: str
    at: float | None
    parameters: int | None
    paper: Spread | None
    last: Spread | None
    best: Spread | None
    done: int
    planned: int
    status: str
    sparsity: float | None = None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's, in points."""
        return None if self.paper is None or self.last is None else self.last.mean - self.paper.mean


class StudyReport(NamedTuple):
    """What was written: the table as text, the Markdown file, and the figure, or a note why there is none."""

    text: str
    markdown: Path
    figure: Path | None
    note: str | None


def write_report(path: Path) -> StudyReport:
    """Render the results file of a study beside it, as Markdown and as a figure.

    Raises:
        ReportError: it is not there, or not a study's.
    """
    content = read_results(path)
    view = view_of(content)
    note: str | None = None
    figure: Path | None = None
    if not view.panels:
        note = "no figure: no run has ended"
    else:
        try:
            figure = _draw(content, view, path.with_suffix(".png"))
        except ImportError:
            note = "no figure: matplotlib is not installed (pip install matplotlib)"
    text = plain_tables(view)
    markdown = path.with_suffix(".md")
    atomic_write(markdown, lambda p: p.write_text(_markdown(content, view, figure), encoding="utf-8"))
    return StudyReport(text, markdown, figure, note)


def view_of(content: dict[str, Any]) -> View:
    """The results file of a study, ready to be written down."""
    return generators.view(content) if content.get("task") == "gan" else _view(content)


def plain_tables(view: View) -> str:
    """A table for each group, as aligned text."""
    return "\n".join(f"{group}\n{aligned([view.columns, *rows], left=3)}" for group, rows in tables(view).items())


def tables(view: View) -> dict[str, list[tuple[str, ...]]]:
    """The rows of each group."""
    tables: dict[str, list[tuple[str, ...]]] = {}
    for group, cells in view.rows:
        tables.setdefault(group, []).append(cells)
    return tables


def lines(content: dict[str, Any]) -> list[Line]:
    """The rows of the table, in the order of the study."""
    compared = not _other_data(content)
    together: dict[tuple[str, str, str, str, float | None], list[dict[str, Any]]] = {}
    for run in content["runs"]:
        key = (run["group"], run["arm"], run["network"], run["variant"], run.get("sparsity"))
        together.setdefault(key, []).append(run)
    found = []
    for (group, arm, network, variant, sparsity), runs in together.items():
        done = [run for run in runs if run["status"] == "done"]
        odd = next((run["status"] for run in runs if run["status"] not in ("done", "not run")), "")
        first = runs[0]
        found.append(
            Line(
                group,
                arm,
                network,
                variant,
                first.get("at"),
                done[0].get("nonzero_parameters", done[0]["parameters"]) if done else None,
                None
                if first["paper"] is None or not compared
                else Spread(first["paper"], first.get("paper_deviation")),
                Spread.of(run["accuracy"]["test_last"] for run in done),
                Spread.of(run["accuracy"]["test_best"] for run in done),
                len(done),
                len(runs),
                odd,
                sparsity,
            )
        )
    order = _groups(found)
    return sorted(found, key=lambda line: order.index(line.group))


def read_results(path: Path) -> dict[str, Any]:
    """The content of a study's results file.

    Raises:
        ReportError: it is not there, or not a study's.
    """
    try:
        content: dict[str, Any] = read_json(path, dict[str, Any], ReportError)
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror}") from error
    if not {"study", "title", "budget", "runs"} <= set(content):
        raise ReportError(f"{path} is not the results file of a study")
    kind = GanStudyResults if content.get("task") == "gan" else StudyResults
    checked(content, kind, str(path), ReportError)
    return content


def _other_data(content: dict[str, Any]) -> bool:
    """Whether the budget trains on something else than the study: the paper's numbers are then no comparison."""
    data = content["budget"]["set"].get("data")
    return isinstance(data, dict) and "name" in data


def _groups(found: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(line.group for line in found))


def _cells(line: Line, *, pruned: bool) -> tuple[str, ...]:
    """A row of the table, with the column of pruned networks where there are any."""
    last = line.status or ("not run" if line.last is None else str(line.last))
    return (
        line.arm,
        line.network,
        way_of(line.variant, line.sparsity),
        "-" if line.paper is None else str(line.paper),
        last,
        "-" if line.best is None else str(line.best),
        str(line.done) if line.done == line.planned else f"{line.done} of {line.planned}",
        "-" if line.difference is None else f"{line.difference:+.2f}",
        *(["-" if line.parameters is None else f"{line.parameters:,}"] if pruned else []),
    )


def _markdown(content: dict[str, Any], view: View, figure: Path | None) -> str:
    budget, environment = content["budget"], content["environment"]
    parts = [
        f"# {markdown_text(content['title'])}",
        markdown_text(
            f"{content['source'][:1].upper()}{content['source'][1:]}. Budget {budget['name']}: {budget['about']}. "
            f"Dataset: {', '.join(content['dataset'])}. Device: {environment['device']}, torch {environment['torch']}."
        ),
    ]
    if view.warning is not None:
        parts.append(f"**{view.warning}**")
    for group, rows in tables(view).items():
        cells = [[markdown_text(cell) for cell in row] for row in rows]
        parts += [f"## {markdown_text(group)}", markdown_table(("setting", *view.columns[1:]), cells, left=3)]
    parts += view.below
    if figure is not None:
        parts.append(f"![{markdown_text(content['title'])}]({quote(figure.name)})")
    return "\n\n".join(parts) + "\n"


def _draw(content: dict[str, Any], view: View, path: Path) -> Path:
    figure, axes = panels(1, len(view.panels), (1.0 + 5.6 * len(view.panels), 4.8))
    for ax, panel in zip(axes[0], view.panels):
        panel(ax)
    name, about = content["budget"]["name"], ", ".join(content["dataset"])
    figure.suptitle(f"{content['title']}: {about}, budget {name}", fontsize=12)
    save(figure, path)
    return path


def _view(content: dict[str, Any]) -> View:
    """Of a study of classifiers."""
    found = lines(content)
    pruned = any(line.sparsity for line in found)
    below = [
        "Test accuracy: last, after the last epoch; best, of the weights that were best on the validation split; mean ±"
        " standard deviation over the seeds. Difference: last minus the paper's, in points."
    ]
    known = {(run["group"], run["teacher"]["network"]): run["teacher"] for run in content["runs"] if "teacher" in run}
    if known:
        teachers = [
            f"- {group}: {network}, {teacher['accuracy']['test_last']:.2f} % on the test split"
            for (group, network), teacher in known.items()
        ]
        below.append("Teachers:\n\n" + "\n".join(teachers))
    drawn = [line for line in found if line.last is not None]
    return View(
        (*_COLUMNS, _PRUNED) if pruned else _COLUMNS,
        [(line.group, _cells(line, pruned=pruned)) for line in found],
        "Another dataset than the paper's, whose numbers are left out." if _other_data(content) else None,
        below,
        [
            partial(_panel, axis=content["axis"] or "", own=[line for line in drawn if line.group == group])
            for group in _groups(drawn)
        ],
    )


def _panel(ax: Any, axis: str, own: Sequence[Line]) -> None:
    """A group: accuracy over the axis, over the size, or arm by arm with the paper's beside it."""
    ax.set_title(own[0].group, fontsize=11)
    if all(line.at is not None for line in own):
        _curves(ax, own, {line.network: line.network for line in own}, "network", lambda line: line.at)
        ax.set_xlabel(axis)
    elif any(line.sparsity for line in own):
        _pruned_curves(ax, own)
    elif len({line.network for line in own}) > 1:
        _curves(ax, own, {line.arm: line.arm for line in own}, "arm", _millions)
        ax.set_xlabel("parameters, millions (log scale)")
        plain_log(ax, "x")
    else:
        series = {"ours, last epoch": [line.last for line in own], "paper": [line.paper for line in own]}
        dots(ax, [line.arm for line in own], series, "test accuracy (%)")


def _curves(ax: Any, own: Sequence[Line], labels: dict[str, str], field: str, x: Any) -> None:
    for number, label in enumerate(labels):
        _curve(ax, [line for line in own if getattr(line, field) == label], x, label, number, number)
    ax.set_ylabel("test accuracy, last epoch (%)")
    ax.legend(fontsize=8)


def _pruned_curves(ax: Any, own: Sequence[Line]) -> None:
    """For each network and arm, from the student as it was trained down to its sparsest."""
    networks, arms = (list(dict.fromkeys(getattr(line, field) for line in own)) for field in ("network", "arm"))
    for i, network in enumerate(networks):
        for j, arm in enumerate(arms):
            points = [line for line in own if (line.network, line.arm) == (network, arm)]
            _curve(ax, points, _millions, f"{network}, {arm}", j, i)
    ax.set_xlabel("parameters that are not zero, millions (log scale)")
    plain_log(ax, "x")
    ax.set_ylabel("test accuracy, last epoch (%)")
    ax.legend(fontsize=7, ncols=len(arms))


def _curve(ax: Any, points: Sequence[Line], x: Any, label: str, color: int, marker: int) -> None:
    points = sorted(points, key=x)
    ax.errorbar(
        [x(line) for line in points],
        [line.last.mean for line in points if line.last is not None],
        yerr=[(line.last.deviation or 0.0) for line in points if line.last is not None],
        color=SERIES[color % len(SERIES)],
        marker=MARKERS[marker % len(MARKERS)],
        capsize=3,
        label=label,
    )


def _millions(line: Line) -> float:
    return (line.parameters or 0) / 1e6
