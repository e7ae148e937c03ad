"""What a study of generators has of its own: what is reported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import TypedDict

from lit_fast.data.formats.celeba import ATTRIBUTES, CROP, SIZE, TEST_SIZE
from lit_fast.errors import ReportError
from lit_fast.gan.report import LEGEND
from lit_fast.paper.plan import Planned, Study
from lit_fast.paper.view import View, dots
from lit_fast.runs.results import Spread, load_results, picked
from lit_fast.runs.stored import read_json

__all__ = ["found", "head", "view"]

# Settings that decide whether the paper's numbers compare, and their values there.
_PAPERS: dict[str, tuple[Any, ...]] = {
    "data.image_size": (None, SIZE),
    "data.crop": (None, CROP),
    "data.train_size": (None,),
    "data.attributes": (None, list(ATTRIBUTES)),
    "width": (64,),
}


_Counts = TypedDict("_Counts", {"test.count": int})  # what is needed of data.json


def head(study: Study, runs: Sequence[Planned]) -> dict[str, Any]:
    """What the results file says of all runs: the paper's teachers, and which settings are not the paper's."""
    settings = [(key, run.experiment.identity()[key]) for key in _PAPERS for run in runs]
    unlike = [f"{key}={value}" for key, value in settings if value not in _PAPERS[key]]
    return {
        "paper_teachers": {g.name: g.paper_teacher.model_dump() for g in study.groups if g.paper_teacher is not None},
        "unlike_paper": list(dict.fromkeys(unlike)),
    }


def found(folder: Path) -> dict[str, Any]:
    """What the results file keeps of a generator's run."""
    results = load_results(folder, generators=True)["results"]
    if [result["role"] for result in results] != ["teacher", "student"]:
        raise ReportError(f"{folder / 'results.json'}: expected the results of a teacher and a student")
    teacher, student = results
    test = read_json(folder / "data.json", _Counts, ReportError)
    sizes = ("layers", "parameters", "mmacs", "compression", "macs_ratio")
    return {
        **picked(student, *sizes, "scores", "epochs", "seconds", "images_per_second"),
        "test_images": test["test.count"],
        "teacher": {"network": teacher["model"], **picked(teacher, "scores")},
    }


# -- the report --------------------------------------------------------------------------------------------------------

# Score -> digits, and the axis of its panel.
_SCORES = {
    "inception_score": (2, "inception score (higher is better)"),
    "fid": (2, "FID (lower is better)"),
    "attributes": (1, "attributes that the teacher's discriminator sees, % (higher is better)"),
    "reconstruction": (4, "reconstruction, mean absolute difference (lower is better)"),
    "teacher_l1": (4, "mean absolute difference to the teacher's images"),
}
_PAPERS_SCORES = ("inception_score", "fid")
_COLUMNS = (
    "", "network", "training", "paper IS", "IS", "paper FID", "FID", "attributes %", "reconstruction", "to teacher",
    "seeds",
)  # fmt: skip


class GanLine(NamedTuple):
    """One arm with one generator, over its seeds, or the teacher of a group.

    Attributes:
        paper, scores: by the keys of ``_SCORES``; what is not known is absent.
        done, planned, status: as of `lit_fast.paper.report.Line`.
    """

    group: str
    arm: str
    network: str
    variant: str
    paper: Mapping[str, Spread]
    scores: Mapping[str, Spread]
    done: int
    planned: int
    status: str

    def cells(self) -> tuple[str, ...]:
        shown = {key: f"{spread:.{_SCORES[key][0]}f}" for key, spread in self.scores.items()}
        if not self.done:
            shown["inception_score"] = self.status or "not run"
        paper = {key: str(spread) for key, spread in self.paper.items()}
        return (
            self.arm,
            self.network,
            self.variant,
            paper.get("inception_score", "-"),
            shown.get("inception_score", "-"),
            paper.get("fid", "-"),
            *(shown.get(key, "-") for key in ("fid", "attributes", "reconstruction", "teacher_l1")),
            str(self.done) if self.done == self.planned else f"{self.done} of {self.planned}",
        )


def view(content: dict[str, Any]) -> View:
    """The results file of a study of generators, ready to be written down."""
    found, unlike = lines(content), _unlike(content)
    below = [
        f"{LEGEND} Mean ± standard deviation over the seeds.",
        "That discriminator is the one LIT's students were fine-tuned from, and students from scratch never met it: the"
        " attributes favour the former.",
    ]
    measured = any("fid" in line.scores for line in found)
    if measured:
        if not unlike:
            below.append(
                "The paper's inception scores and FIDs are of another tool: how networks compare within one tool may be"
                " held against the paper, the values may not."
            )
    else:
        below.append("Inception score and FID have not been measured: they need Inception's weights.")
    panels = [
        partial(_panel, key=key, own=own)
        for group in dict.fromkeys(line.group for line in found)
        for key in (_PAPERS_SCORES if measured else _SCORES)
        if (own := [line for line in found if line.group == group and key in line.scores])
    ]
    warning = f"Not the paper's data or networks ({', '.join(unlike)}): its numbers are left out." if unlike else None
    return View(_COLUMNS, [(line.group, line.cells()) for line in found], warning, below, panels)


def lines(content: dict[str, Any]) -> list[GanLine]:
    """The rows of the tables, in the order of the study, each group's teacher first."""
    together: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for run in content["runs"]:
        together.setdefault((run["group"], run["arm"], run["network"], run["variant"]), []).append(run)
    compared = not _unlike(content)
    found: dict[str, list[GanLine]] = {}
    for names, runs in together.items():
        done = [run for run in runs if run["status"] == "done"]
        status = next((run["status"] for run in runs if run["status"] not in ("done", "not run")), "")
        paper = _spreads([runs[0]["paper"] or {}] if compared else [])
        own = found.setdefault(names[0], [])
        own.append(GanLine(*names, paper, _spreads(run["scores"] for run in done), len(done), len(runs), status))
    for group, own in found.items():
        own.insert(0, _teacher_line(content, group, compared))
    return [line for own in found.values() for line in own]


def _teacher_line(content: dict[str, Any], group: str, compared: bool) -> GanLine:
    teacher = next((run["teacher"] for run in content["runs"] if run["group"] == group and "teacher" in run), None)
    paper = _spreads([content["paper_teachers"].get(group, {})] if compared else [])
    scores = _spreads([] if teacher is None else [teacher["scores"]])
    network = "-" if teacher is None else teacher["network"]
    return GanLine(group, "teacher", network, "-", paper, scores, int(teacher is not None), 1, "")


def _spreads(scores: Iterable[Mapping[str, float | None]]) -> dict[str, Spread]:
    values = list(scores)
    spreads = {key: Spread.of(score.get(key) for score in values) for key in _SCORES}
    return {key: spread for key, spread in spreads.items() if spread is not None}


def _unlike(content: dict[str, Any]) -> list[str]:
    """In what data and networks differ from the paper's."""
    tested = {run["test_images"] for run in content["runs"] if "test_images" in run}
    sample = [f"{count:,} test images in place of {TEST_SIZE:,}" for count in sorted(tested - {TEST_SIZE})]
    return [*content["unlike_paper"], *sample]


def _panel(ax: Any, key: str, own: Sequence[GanLine]) -> None:
    ours, paper = [line.scores.get(key) for line in own], [line.paper.get(key) for line in own]
    ax.set_title(own[0].group, fontsize=11)
    dots(ax, [line.arm for line in own], {"ours": ours, "paper": paper}, _SCORES[key][1])
