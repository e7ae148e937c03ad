"""Images per second of every loader, and the step's demand; see docs/benchmarks.md."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import data, data_sources


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "setting" in metafunc.fixturenames:
        chosen = data_sources.settings(tiny=metafunc.config.getoption("--tiny"))
        metafunc.parametrize("setting", chosen, ids=lambda setting: setting.name)


def test_data(
    benchmark: Any, setting: data_sources.Setting, rows: list[dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    option = request.config.getoption
    found = benchmark.pedantic(
        lambda: list(data.measured(setting, option("--device"), 4 * option("--seconds"), tiny=option("--tiny"))),
        rounds=1,
        iterations=1,
    )
    benchmark.extra_info["variants"] = found
    rows += found
    assert all(row["status"].startswith(("measured", "not available")) for row in found)
