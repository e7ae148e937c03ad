"""The step beside those of NVIDIA ModelOpt and torchdistill, where they are installed; see docs/benchmarks.md."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import peers


def test_peers(rows: list[dict[str, Any]], request: pytest.FixtureRequest) -> None:
    why = peers.missing()
    if why is not None:
        pytest.skip(why)
    option = request.config.getoption
    found = list(peers.rows(option("--device"), 4 * option("--seconds"), tiny=option("--tiny")))
    rows += found
    assert all(row["status"] == "measured" for row in found)
