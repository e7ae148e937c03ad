"""What is told of a run while it trains: the console, ``log.jsonl`` and trackers listen, and so can a user's code."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from lit_fast.runs.schema import RunResult

__all__ = ["Callback", "Listeners", "RunInfo", "StepEnd"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunInfo:
    """A run that begins, or goes on.

    Attributes:
        name: as in tables and folders: ``resnet20-lit-seed0``.
        folder: of the run, for what a callback writes.
        settings: of the experiment, as in ``experiment.yaml``.
        networks: those that are trained, by name, on their device. What is changed in them changes the training.
        steps: of the whole run.
        step: the last that is done; 0 of a new run.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    networks: Mapping[str, nn.Module]
    steps: int
    step: int = 0


class StepEnd:
    """A step that was made.

    Attributes:
        step: its number in the run, from 1.
    """

    def __init__(self, step: int, rows: Mapping[str, Tensor], named: Callable[[str, Any], dict[str, Any]]) -> None:
        self.step = step
        self._rows, self._named = rows, named

    @property
    def losses(self) -> dict[str, Any]:
        """The parts of its loss by name, each a scalar tensor on the device, or a list of them (``ir``).

        They are not on the host: ``float(losses["loss"])`` makes a GPU wait, and is better done in `Callback.on_log`.
        """
        return {name: value for kind, row in self._rows.items() for name, value in self._named(kind, list(row)).items()}


class Callback:
    """Is told of a run; derive from it and override what you need.

    All values but those of `on_step_end` are plain numbers, strings and lists: reading them costs nothing. A step costs
    nothing either unless a callback overrides `on_step_end`. Of several processes that train together, rank 0 alone
    calls. A callback of several runs is told of one after another.

    What a callback raises is logged with its traceback; training goes on, to the same bits, without that callback. One
    that is ``required`` ends the run instead, which goes on from its last checkpoint when it is resumed.
    ``KeyboardInterrupt`` and ``SystemExit`` end it in any case.

    Example:
        >>> import lit_fast as lf
        >>> class Print(lf.Callback):  # lf.distill(..., callbacks=[Print()])
        ...     def on_epoch_end(self, step, values):
        ...         print(values["epoch"], values["val_accuracy"])
    """

    required: bool = False

    def on_train_begin(self, run: RunInfo) -> None:
        """The run begins, or goes on after ``run.step`` steps: those that follow are told, perhaps a second time."""

    def on_step_end(self, end: StepEnd) -> None:
        """A step was made; nothing has waited for a GPU to end it."""

    def on_log(self, step: int, values: Mapping[str, Any]) -> None:
        """Every ``logging.every`` steps: ``epoch``, ``phase``, ``lr``, the parts of the loss, ``images_per_second``."""

    def on_sections(self, step: int, values: Mapping[str, Any]) -> None:
        """Every ``logging.sections_every`` steps: ``epoch``, ``phase``, the fields of `SectionDiagnostics`."""

    def on_epoch_end(self, step: int, values: Mapping[str, Any]) -> None:
        """An epoch was trained and validated: an entry of the run's ``history``."""

    def on_train_end(self, result: RunResult | None) -> None:
        """The run has ended, with its result. ``None``: it was stopped or failed, and may be resumed."""


class Listeners:
    """The callbacks of one run, while it runs.

    Attributes:
        result: to be set where the run ends well.
    """

    def __init__(self, callbacks: Iterable[Callback] = ()) -> None:
        self._callbacks = list(callbacks)
        self._begun: list[Callback] = []
        self._of_steps: list[Callback] = []
        self.result: RunResult | None = None

    def __enter__(self) -> Listeners:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as ends:  # each of them, even if a required one fails
            for callback in reversed(self._begun):
                ends.callback(self._tell, callback, "on_train_end", self.result)

    def on_train_begin(self, run: RunInfo) -> None:
        for callback in self._callbacks:
            self._begun.append(callback)
            self._tell(callback, "on_train_begin", run)
        self._of_steps = [c for c in self._begun if type(c).on_step_end is not Callback.on_step_end]

    def on_step_end(self, step: int, rows: Mapping[str, Tensor], named: Callable[[str, Any], dict[str, Any]]) -> None:
        if self._of_steps:
            self._tell_all("on_step_end", StepEnd(step, rows, named))

    def on_log(self, step: int, values: Mapping[str, Any]) -> None:
        self._tell_all("on_log", step, values)

    def on_sections(self, step: int, values: Mapping[str, Any]) -> None:
        self._tell_all("on_sections", step, values)

    def on_epoch_end(self, step: int, values: Mapping[str, Any]) -> None:
        self._tell_all("on_epoch_end", step, values)

    def _tell_all(self, what: str, *values: Any) -> None:
        for callback in tuple(self._of_steps if what == "on_step_end" else self._begun):
            self._tell(callback, what, *values)

    def _tell(self, callback: Callback, what: str, *values: Any) -> None:
        try:
            getattr(callback, what)(*values)
        except Exception as error:
            if callback.required:
                raise
            self._begun = [other for other in self._begun if other is not callback]
            self._of_steps = [other for other in self._of_steps if other is not callback]
            _LOG.warning(
                "%s.%s failed (%s: %s); training goes on without this callback",
                *(type(callback).__name__, what, type(error).__name__, error),
                exc_info=error,
            )
