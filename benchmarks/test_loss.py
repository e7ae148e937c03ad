"""The whole loss, forward and backward, in all variants: one benchmark per setting.

pytest-benchmark times a round, in which every variant runs once; the variants' own times, paired, are in extra_info and
in the results file (``--results DIR``). See docs/benchmarks.md.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import loss, overhead, settings


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "setting" in metafunc.fixturenames:
        option = metafunc.config.getoption
        chosen = settings.settings(option("--device"), tiny=option("--tiny"))
        metafunc.parametrize("setting", chosen, ids=lambda setting: setting.name)


def test_loss(
    benchmark: Any, setting: settings.Setting, rows: list[dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    measurement = loss.Measurement(setting, request.config.getoption("--device"))
    rounds = measurement.pairs.rounds_in(request.config.getoption("--seconds"))
    benchmark.pedantic(measurement.pairs.round, rounds=rounds, iterations=1, warmup_rounds=0)
    found = list(measurement.rows())
    benchmark.extra_info["variants"] = found
    rows += found
    assert not measurement.pairs.failed


def test_overhead(rows: list[dict[str, Any]], request: pytest.FixtureRequest) -> None:
    option = request.config.getoption
    found = list(overhead.run(option("--device"), float("inf"), tiny=option("--tiny"), seconds=option("--seconds")))
    rows += found
    assert any(row["status"] == "measured" for row in found)
