"""The progress of a run: a live bar on a terminal, one line per epoch elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["RunProgress", "describe", "epoch_line"]


class RunProgress:
    """Shows one run's steps.

    Args:
        console: where to.
        name: the run's name.
        total_steps: of all phases.
        done: steps done before (a resumed run).
    """

    def __init__(self, console: Console, name: str, total_steps: int, done: int) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[status]}", markup=False),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(name, total=total_steps, completed=done, status="")

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, done: int) -> None:
        self._bar.update(self._task, completed=done)

    def status(self, losses: str, images_per_second: float) -> None:
        self._bar.update(self._task, status=f"{losses}  {images_per_second:,.0f} images/s")

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def epoch_line(name: str, entry: Mapping[str, Any], epochs: int, shown: str) -> str:
    """One epoch on one line, with what is shown of its losses and scores."""
    where = f"{name}  epoch {entry['epoch']}/{epochs} ({entry['phase']})  lr {entry['lr']:.4g}"
    return f"{where}  {shown}  {entry['seconds']:.0f} s"


def describe(parts: Mapping[str, Any]) -> str:
    """The loss parts on one line."""
    irs = " ".join(f"{value:.3g}" for value in parts["ir"])
    return f"loss {parts['loss']:.4f}  ce {parts['ce']:.4f}  kl {parts['kl']:.4f}" + (f"  ir {irs}" if irs else "")
