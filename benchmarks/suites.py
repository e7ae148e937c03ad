"""The suites of benchmarks. Imports nothing, so that their names are known without torch."""

from __future__ import annotations

# Name -> (module with ``run(device, deadline, *, tiny, seconds)``, which yields rows; its part of the time).
SUITES = {
    "overhead": ("benchmarks.overhead", 0.1),
    "loss": ("benchmarks.loss", 0.25),
    "step": ("benchmarks.step", 0.3),
    "tricks": ("benchmarks.tricks", 0.1),
    "teacher": ("benchmarks.teacher", 0.1),
    "data": ("benchmarks.data", 0.1),
    "text": ("benchmarks.text", 0.05),
}
