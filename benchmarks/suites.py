"""The suites of benchmarks. Imports nothing, so that their names are known without torch."""

from __future__ import annotations

# Name -> module with ``run(device, deadline, *, tiny, seconds, choice)``, which yields rows.
SUITES = {
    "overhead": "benchmarks.overhead",
    "loss": "benchmarks.loss",
    "step": "benchmarks.step",
    "tricks": "benchmarks.tricks",
    "teacher": "benchmarks.teacher",
    "data": "benchmarks.data",
    "linear": "benchmarks.linear",
}
