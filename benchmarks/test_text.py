"""Tokenising reviews; see docs/text.md. The times are in the results file (``--results DIR``)."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import text


def test_text(rows: list[dict[str, Any]], request: pytest.FixtureRequest) -> None:
    option = request.config.getoption
    found = list(text.run(option("--device"), float("inf"), tiny=option("--tiny"), seconds=option("--seconds")))
    rows += found
    assert all(row["status"] == "measured" for row in found)
