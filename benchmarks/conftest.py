"""Options of the benchmarks, and the results file that a run of them leaves."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bars, machine, run
from lit_fast.bench import pairing

Rows = list[dict[str, Any]]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lit_fast benchmarks")
    group.addoption("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    group.addoption("--threads", type=int, help="of the CPU (default: torch's)")
    group.addoption("--seconds", type=float, default=5.0, help="of rounds at one setting (default: 5)")
    group.addoption("--tiny", action="store_true", help="sizes and rounds that only try the code")
    group.addoption("--results", type=Path, metavar="DIR", help="write DIR/<device>.json")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--tiny"):
        pairing.FEWEST = 1


@pytest.fixture(scope="session")
def rows(request: pytest.FixtureRequest) -> Iterator[Rows]:
    """The rows of this run; tests add theirs."""
    option = request.config.getoption
    if option("--threads"):
        torch.set_num_threads(option("--threads"))
    found: Rows = []
    content = run.results(option("--device"), _command(), [], tiny=option("--tiny"))
    content["rows"] = found
    yield found
    if option("--results"):
        path = option("--results") / f"{machine.slug(option('--device'))}.json"
        run.write(path, content)
        capture = request.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            print(f"\n\n{path}\n{bars.table(bars.judge(content))}")


def _command() -> str:
    """The command line, with what in the environment changes the numbers."""
    environment = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS",) if name in os.environ]
    return " ".join([*environment, "python -m pytest", shlex.join(sys.argv[1:])])
