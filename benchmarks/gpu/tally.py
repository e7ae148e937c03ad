"""A pytest plugin: each finished test is a line of the journal LIT_FAST_JOURNAL, so that a killed run has verdicts too.

Tests that the file LIT_FAST_SEEN lists are left out.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks import journal

_SEVERITY = {"passed": 0, "skipped": 1, "failed": 2}
_WHY = 1500  # characters of a failure's report that are kept


def pytest_configure(config: Any) -> None:
    if not hasattr(config, "workerinput"):  # a worker of pytest-xdist; the process that hands out the tests counts
        config.pluginmanager.register(Tally())


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """In the workers, too: all must find the same tests."""
    listed = os.environ.get("LIT_FAST_SEEN")
    seen = set(json.loads(Path(listed).read_text(encoding="utf-8"))) if listed else set()
    left_out = [item for item in items if item.nodeid in seen]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.nodeid not in seen]


class Tally:
    """Writes what is reported."""

    def __init__(self) -> None:
        self._outcomes: dict[str, str] = {}
        self._why: dict[str, str] = {}
        self._seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        worst = max(self._outcomes.get(report.nodeid, "passed"), report.outcome, key=_SEVERITY.__getitem__)
        self._outcomes[report.nodeid] = worst
        if report.failed:
            self._why[report.nodeid] = str(report.longrepr)[-_WHY:]
        if report.when == "call":
            self._seconds[report.nodeid] = report.duration
        if report.when not in ("setup", "call"):  # teardown, or a process that died
            why = self._why.pop(report.nodeid, None)
            fields = {"outcome": self._outcomes.pop(report.nodeid), **({"why": why} if why else {})}
            seconds = self._seconds.pop(report.nodeid, report.duration)  # of the test itself, without fixtures
            _write(id=report.nodeid, **fields, seconds=seconds)

    def pytest_collectreport(self, report: Any) -> None:
        """A file that cannot be imported is a failure as well."""
        if report.failed:
            _write(id=report.nodeid, outcome="failed", seconds=0.0, why=str(report.longrepr)[-_WHY:])


def _write(**fields: Any) -> None:
    journal.append(Path(os.environ["LIT_FAST_JOURNAL"]), "test", stage="tests", **fields)
