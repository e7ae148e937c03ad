"""What a run's log holds, line by line and in TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_fast.training.callbacks import Callback, RunInfo
from lit_fast.training.callbacks.logs import JsonLog, TensorBoard

LOOK = {"cosine": None, "cosines": [0.5, None, -0.25], "teacher_fed": [1.0, 2.0, 3.0]}


def told(callback: Callback, folder: Path) -> None:
    """Of a look at the sections after step 3, and of an epoch with another after step 5."""
    callback.on_train_begin(RunInfo("run", folder, {}, {}, steps=5))
    callback.on_sections(3, {"phase": "lit", **LOOK})
    callback.on_epoch_end(5, {"epoch": 1, "phase": "lit", "sections": LOOK})
    callback.on_train_end(None)


def test_numbers_lists_and_gaps_in_them_reach_tensorboard_and_the_sections_of_epochs_too(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    told(TensorBoard(), tmp_path)
    found = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    names = [*(f"sections/cosines{n}" for n in (1, 3)), *(f"sections/teacher_fed{n}" for n in (1, 2, 3))]
    assert sorted(found.Tags()["scalars"]) == sorted([*names, "epoch/epoch"])
    assert [(event.step, event.value) for event in found.Scalars("sections/cosines3")] == [(3, -0.25), (5, -0.25)]


def test_the_log_is_a_line_for_each_event(tmp_path: Path) -> None:
    told(JsonLog(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["event"], line["step"]) for line in lines] == [("sections", 3), ("epoch", 5)]
    assert lines[0]["cosines"] == lines[1]["sections"]["cosines"] == [0.5, None, -0.25]
