"""What a run's log holds, line by line and in TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_fast.runs.logs import RunLog


def test_numbers_lists_and_gaps_in_them_reach_tensorboard(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = RunLog(tmp_path)
    log.write("sections", 3, phase="lit", cosine=None, cosines=[0.5, None, -0.25], teacher_fed=[1.0, 2.0, 3.0])
    log.close()
    found = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    names = [*(f"sections/cosines{n}" for n in (1, 3)), *(f"sections/teacher_fed{n}" for n in (1, 2, 3))]
    assert sorted(found.Tags()["scalars"]) == sorted(names)
    assert [(event.step, event.value) for event in found.Scalars("sections/cosines3")] == [(3, -0.25)]
    (line,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert (line["event"], line["step"], line["cosines"]) == ("sections", 3, [0.5, None, -0.25])
