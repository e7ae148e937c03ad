"""The progress of a run: a live bar on a terminal, one line per epoch everywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from lit_fast.runs.schema import RunResult
from lit_fast.training.callbacks import Callback, RunInfo, StepEnd

__all__ = ["EpochLines", "ProgressBar", "describe", "epoch_line", "wrapped"]

_BAR, _SHORTEST_BAR, _TIME = 24, 4, len("1:00:00")  # columns of a terminal
Describe = Callable[[Mapping[str, Any]], str]


class ProgressBar(Callback):
    """A bar of a run's steps on a terminal, with what ``describe`` makes of its losses."""

    def __init__(self, console: Console, describe: Describe) -> None:
        self._console, self._describe = console, describe

    def on_train_begin(self, run: RunInfo) -> None:
        # What is always there: name, counts, the time left, and spaces between them.
        left = self._console.width - len(run.name) - 2 * len(str(run.steps)) - _TIME - 5
        bar = max(_SHORTEST_BAR, min(_BAR, left))
        self._left = left - bar
        one_line = [Column(no_wrap=True) for _ in range(4)]
        self._bar = Progress(
            TextColumn("{task.description}", markup=False, table_column=one_line[0]),
            BarColumn(bar_width=bar, table_column=one_line[1]),
            MofNCompleteColumn(table_column=one_line[2]),
            TimeRemainingColumn(compact=True, table_column=one_line[3]),
            TextColumn("{task.fields[status]}", markup=False),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task(run.name, total=run.steps, completed=run.step, status="")
        self._bar.start()

    def on_step_end(self, end: StepEnd) -> None:
        self._bar.update(self._task, completed=end.step)

    def on_log(self, step: int, values: Mapping[str, Any]) -> None:
        speed = f"{values['images_per_second']:,.0f} images/s"
        told = (f"{self._describe(values)}  {speed}", speed, "")
        status = next(text for text in told if len(text) <= self._left or not text)
        self._bar.update(self._task, status=status)

    def on_epoch_end(self, step: int, values: Mapping[str, Any]) -> None:
        self._bar.update(self._task, completed=step)

    def on_train_end(self, result: RunResult | None) -> None:
        self._bar.stop()


class EpochLines(Callback):
    """A line for each epoch, with what ``describe`` makes of its losses and scores.

    Args:
        epochs: of the run.
    """

    def __init__(self, console: Console, epochs: int, describe: Describe) -> None:
        self._console, self._epochs, self._describe = console, epochs, describe

    def on_train_begin(self, run: RunInfo) -> None:
        self._name = run.name

    def on_epoch_end(self, step: int, values: Mapping[str, Any]) -> None:
        line = epoch_line(self._name, values, self._epochs, self._describe(values))
        if self._console.is_terminal:
            line = wrapped(line, self._console.width)
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def epoch_line(name: str, entry: Mapping[str, Any], epochs: int, shown: str) -> str:
    """One epoch on one line, with what is shown of its losses and scores."""
    where = f"{name}  epoch {entry['epoch']}/{epochs} ({entry['phase']})  lr {entry['lr']:.4g}"
    return f"{where}  {shown}  {entry['seconds']:.0f} s"


def wrapped(line: str, width: int) -> str:
    """On several lines where it is longer: broken only between its parts, which two spaces separate."""
    first, *parts = line.split("  ")
    lines = [first]
    for part in parts:
        if len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"  {part}"
        else:
            lines.append(f"    {part}")
    return "\n".join(lines)


def describe(parts: Mapping[str, Any]) -> str:
    """The loss parts on one line."""
    irs = " ".join(f"{value:.3g}" for value in parts["ir"])
    return f"loss {parts['loss']:.4f}  ce {parts['ce']:.4f}  kl {parts['kl']:.4f}" + (f"  ir {irs}" if irs else "")
