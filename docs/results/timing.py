"""Time the steps of all variants of an experiment in turns, alone on a machine, and tell the epochs of equal time.

    python docs/results/timing.py CONFIG --teacher-checkpoint FILE --out timing.json

Whole runs share their machine with other work; what their steps cost is measured here, in one process, so that a budget
of time can be told in epochs.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from lit_fast.bench.pairing import Pairs
from lit_fast.settings.classifier import Experiment, load_experiment
from lit_fast.settings.given import open_experiment_data
from lit_fast.training.experiment import open_session
from lit_fast.training.session import specs


def measured(experiment: Experiment, folder: Path, seconds: float) -> dict[str, dict[str, float]]:
    """Median milliseconds of a step, by variant and phase."""
    source = partial(open_experiment_data, experiment)
    steps: dict[str, Any] = {}
    with open_session(experiment, source, folder, {}, resume=False, console=Console(file=io.StringIO())) as session:
        teacher = session.teacher()
        for spec, config in specs(experiment):
            if spec.seed != experiment.seeds[0]:
                continue
            for phase in spec.phases:
                task = session._task(spec, session.build(config, 0), teacher)
                task.prepare()
                task.enter(phase)
                (batch,) = islice(task.batches(0), 1)
                steps[f"{spec.variant} {phase.name}"] = partial(task.step, *batch)
        pairs = Pairs(steps, session.device.type)
        pairs.run(seconds)
    found: dict[str, dict[str, float]] = {}
    for name in pairs.times:
        variant, phase_name = name.split()
        found.setdefault(variant, {})[phase_name] = 1000 * pairs.spread(name)[0]
    return found


def summary(experiment: Experiment, ms: dict[str, dict[str, float]]) -> dict[str, Any]:
    """What a whole run of each variant takes on `ms`, and how many epochs of it fit into LIT's time."""
    plans = {variant: experiment.plan(variant) for variant in ms}
    epochs = {variant: sum(phase.epochs for phase in plan) for variant, plan in plans.items()}
    cost = {variant: sum(phase.epochs * ms[variant][phase.name] for phase in plan) for variant, plan in plans.items()}
    return {
        variant: {
            "step_ms": {name: round(value, 2) for name, value in ms[variant].items()},
            "times_scratch": round(cost[variant] / epochs[variant] * epochs["scratch"] / cost["scratch"], 3),
            "epochs_in_lits_time": round(cost["lit"] / cost[variant] * epochs[variant], 2),
        }
        for variant in ms
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--teacher-checkpoint")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    given = [f"teacher.checkpoint={options.teacher_checkpoint}"] if options.teacher_checkpoint else []
    experiment = load_experiment(None, options.config, [*given, *options.set])
    with tempfile.TemporaryDirectory() as folder:
        found = summary(experiment, measured(experiment, Path(folder) / "run", options.seconds))
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(options.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
