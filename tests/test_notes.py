"""What is said before a training whose settings are known to be worse."""

from __future__ import annotations

import pytest

from lit_fast.settings.classifier import load_experiment
from lit_fast.settings.notes import notes


@pytest.mark.parametrize(
    ("variants", "steps_per_epoch", "expected"),
    [
        ("[scratch, kd, lit]", 40, ["lit: 320 steps with the IR loss are few."]),
        ("[scratch, kd, lit]", 62, ["lit: 496 steps with the IR loss are few."]),
        ("[scratch, kd, lit]", 63, []),  # 504
        ("[scratch, kd, hint, multi_ir]", 1, []),
    ],
)
def test_few_steps_of_lit_are_told(variants: str, steps_per_epoch: int, expected: list[str]) -> None:
    experiment = load_experiment("digits", None, [f"variants={variants}"])  # 8 epochs with the IR loss
    found = list(notes(experiment, steps_per_epoch))
    assert [note.partition(" In the runs")[0] for note in found] == expected
    assert all("docs/choosing.md, When LIT helps" in note for note in found)
