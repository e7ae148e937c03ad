"""A pytest plugin: one JSON line per finished test, in the file LIT_FAST_TALLY, so that a killed run has counts too."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_SEVERITY = {"passed": 0, "skipped": 1, "failed": 2}


def pytest_configure(config: Any) -> None:
    if not hasattr(config, "workerinput"):  # a worker of pytest-xdist; the process that hands out the tests counts
        config.pluginmanager.register(Tally())


class Tally:
    """Writes what is reported."""

    def __init__(self) -> None:
        self._outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        worst = max(self._outcomes.get(report.nodeid, "passed"), report.outcome, key=_SEVERITY.__getitem__)
        self._outcomes[report.nodeid] = worst
        if report.when not in ("setup", "call"):  # teardown, or a process that died
            line = {"id": report.nodeid, "outcome": self._outcomes.pop(report.nodeid), "seconds": report.duration}
            _write(line)
        elif report.when == "call":
            _write({"id": report.nodeid, "call_seconds": report.duration})

    def pytest_collectreport(self, report: Any) -> None:
        """A file that cannot be imported is a failure as well."""
        if report.failed:
            _write({"id": report.nodeid, "outcome": "failed", "seconds": 0.0})


def _write(line: dict[str, Any]) -> None:
    with Path(os.environ["LIT_FAST_TALLY"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
