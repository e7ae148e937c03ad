"""The training step, its tricks and the teacher's forward, in all variants; see docs/benchmarks.md.

pytest-benchmark times the whole measurement of a setting; the variants' own times, paired, are in extra_info and in the
results file (``--results DIR``).
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import step, teacher, tricks


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "setting" in metafunc.fixturenames:
        option = metafunc.config.getoption
        chosen = step.settings(option("--device"), tiny=option("--tiny"))
        metafunc.parametrize("setting", chosen, ids=lambda setting: setting.name)


def test_step(
    benchmark: Any, setting: step.Setting, rows: list[dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    option = request.config.getoption
    arguments = (setting, option("--device"), float("inf"), 4 * option("--seconds"))
    found = benchmark.pedantic(step.measured, arguments, {"compiled": not option("--tiny")}, rounds=1, iterations=1)
    benchmark.extra_info["variants"] = found
    rows += found
    assert all(row["status"] == "measured" for row in found)


def test_tricks(rows: list[dict[str, Any]], request: pytest.FixtureRequest) -> None:
    option = request.config.getoption
    found = list(tricks.run(option("--device"), float("inf"), tiny=option("--tiny"), seconds=6 * option("--seconds")))
    rows += found
    assert all(row["status"] == "measured" for row in found)


def test_teacher(rows: list[dict[str, Any]], request: pytest.FixtureRequest) -> None:
    option = request.config.getoption
    found = list(teacher.run(option("--device"), float("inf"), tiny=option("--tiny"), seconds=3 * option("--seconds")))
    rows += found
    assert all(row["status"] == "measured" for row in found)
