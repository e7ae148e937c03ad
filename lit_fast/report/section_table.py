"""What was seen of the sections at the end of each phase, as rows of a table: means over the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from lit_fast.runs.results import Runs, grouped
from lit_fast.runs.schema import RunResult

__all__ = ["SECTION_COLUMNS", "looked_at", "section_rows"]

SECTION_COLUMNS = ("network", "training", "end of phase", "section", "teacher-fed", "composed", "gap", "cosine")


def looked_at(results: Runs) -> dict[tuple[str, str], list[RunResult]]:
    """The runs with section diagnostics, by network and way of training; what followed by pruning is left out."""
    found = {}
    for (_, network, way), runs in grouped([result for result in results if result.get("sparsity") is None]).items():
        seen = [run for run in runs if any("sections" in entry for entry in run.get("history") or ())]
        if seen:
            found[network, way] = seen
    return found


def section_rows(results: Runs) -> list[tuple[str, ...]]:
    """A row for each network, way of training, phase and section; empty where nothing was looked at."""
    rows: list[tuple[str, ...]] = []
    for (network, way), runs in looked_at(results).items():
        phases: dict[str, list[Mapping[str, Any]]] = {}
        for run in runs:
            last = {entry["phase"]: entry["sections"] for entry in run["history"] if "sections" in entry}
            for phase, look in last.items():
                phases.setdefault(phase, []).append(look)
        for phase, looks in phases.items():
            for i in range(min(len(look["teacher_fed"]) for look in looks)):
                fed, composed = (
                    statistics.fmean(look[key][i] for look in looks) for key in ("teacher_fed", "composed")
                )
                cosines = [look["cosines"][i] for look in looks if look["cosines"][i] is not None]
                cosine = f"{statistics.fmean(cosines):+.2f}" if cosines else "-"
                cells = f"{fed:.4g}", f"{composed:.4g}", f"{composed - fed:.4g}", cosine
                rows.append((network, way, phase, str(i + 1), *cells))
    return rows
