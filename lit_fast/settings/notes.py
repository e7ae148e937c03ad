"""What recorded runs say of an experiment's settings: notes, which stop nothing.

Source: docs/choosing.md, "When LIT helps, and when it does not".
"""

from __future__ import annotations

from collections.abc import Iterator

from lit_fast.settings.classifier import Experiment
from lit_fast.settings.variants import VARIANTS

__all__ = ["notes"]

# Where the LIT phase had 320 and 400 steps, labels alone ended ahead; with 750 and more LIT did, for as many steps.
FEW_STEPS = 500


def notes(experiment: Experiment, steps_per_epoch: int) -> Iterator[str]:
    """Of settings with which LIT ended behind in what was run."""
    for variant in experiment.variants:
        if VARIANTS[variant].student_input != "teacher":
            continue
        steps = steps_per_epoch * sum(phase.epochs for phase in experiment.plan(variant) if phase.name == "lit")
        if steps < FEW_STEPS:
            yield (
                f"{variant}: {steps} steps with the IR loss are few. In the runs on record with fewer than {FEW_STEPS} "
                "the same student, trained from labels alone, ended ahead (docs/choosing.md, When LIT helps). Train "
                "longer, or compare with scratch"
            )
