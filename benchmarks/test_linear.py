"""The KD loss of a large vocabulary, from hidden states and heads; see docs/benchmarks.md."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import linear


def test_linear(rows: list[dict[str, Any]], request: pytest.FixtureRequest) -> None:
    option = request.config.getoption
    found = list(linear.run(option("--device"), float("inf"), tiny=option("--tiny"), seconds=12 * option("--seconds")))
    rows += found
    assert all(row["status"] == "measured" for row in found)
