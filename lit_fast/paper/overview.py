"""All studies at a glance: what has been run of each, in which budget, beside the paper's numbers; and what has not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lit_fast.paper import studies
from lit_fast.paper.budgets import budgets
from lit_fast.paper.plan import Study, load_study, plan
from lit_fast.paper.report import plain_tables, read_results, view_of
from lit_fast.paper.run import planned_content

__all__ = ["overview"]


def overview(folder: Path) -> dict[str, str]:
    """The tables of every built-in study, by its name, from the results files in ``folder``.

    Groups of which there are no results are named; where the paper has numbers for them, those are shown.

    Raises:
        ReportError: a file that is not a study's results.
    """
    return {name: "\n\n".join(_tables(name, load_study(name), folder)) for name in studies.names()}


def _tables(name: str, study: Study, folder: Path) -> list[str]:
    paths = {budget: folder / f"{name}-{budget}.json" for budget in budgets(study.task)}
    found = {budget: read_results(path) for budget, path in paths.items() if path.exists()}
    known = {run["group"] for content in found.values() for run in content["runs"]}
    parts = [_ran(budget, content) for budget, content in found.items()]
    planned = _planned(name, study)
    left: dict[str, list[dict[str, Any]]] = {}
    for run in planned["runs"]:
        if run["group"] not in known:
            left.setdefault(run["group"], []).append(run)
    for group, runs in left.items():
        own = {**planned, "runs": runs}
        parts.append(plain_tables(view_of(own)) if _in_paper(runs) else f"{group}: not run ({len(runs)} runs)")
    return parts


def _in_paper(runs: Iterable[dict[str, Any]]) -> bool:
    return any(run["paper"] is not None for run in runs)


def _ran(budget: str, content: dict[str, Any]) -> str:
    environment = content["environment"]
    teachers = {
        f"{run['group']}: teacher {run['teacher']['network']}, {run['teacher']['accuracy']['test_last']:.2f} %"
        for run in content["runs"]
        if "accuracy" in run.get("teacher", {})
    }
    head = [
        f"budget {budget}: {content['budget']['about']}",
        f"device {environment['device']}, torch {environment['torch']}",
        *sorted(teachers),
    ]
    return "\n".join([*head, plain_tables(view_of(content))])


def _planned(name: str, study: Study) -> dict[str, Any]:
    budget = budgets(study.task)["paper"]
    runs = plan(study, budget, data_dir=Path("data"))  # no file is opened
    head, entries = planned_content(name, study, ("paper", budget), runs)
    return {**head, "runs": [entry for own in entries for entry in own]}
