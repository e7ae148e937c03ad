"""What a run leaves to read: ``log.jsonl``, and TensorBoard events where TensorBoard is installed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lit_fast.files import atomic_write, make_folder, must_be_regular
from lit_fast.runs.schema import RunResult
from lit_fast.training.callbacks import Callback, RunInfo

__all__ = ["JsonLog", "ScalarCallback", "TensorBoard", "scalars"]

_log = logging.getLogger(__name__)


class JsonLog(Callback):
    """Appends one JSON object per line to ``log.jsonl`` of the run's folder.

    Lines after the step that a run goes on from are dropped: it writes them again. A new run starts a new file.
    """

    required = True

    def on_train_begin(self, run: RunInfo) -> None:
        path = run.folder / "log.jsonl"
        kept = _lines_up_to(path, run.step) if run.step else []
        atomic_write(path, lambda p: p.write_text("".join(kept), encoding="utf-8"))
        self._path, self._file = path, path.open("a", encoding="utf-8")

    def on_log(self, step: int, values: Mapping[str, Any]) -> None:
        self._write("step", step, values)

    def on_sections(self, step: int, values: Mapping[str, Any]) -> None:
        self._write("sections", step, values)

    def on_epoch_end(self, step: int, values: Mapping[str, Any]) -> None:
        self._write("epoch", step, values)

    def _write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:  # which names no file
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def on_train_end(self, result: RunResult | None) -> None:
        with suppress(OSError):  # of what could not be written either
            self._file.close()


class ScalarCallback(Callback):
    """Hands every number on by a name such as ``step/loss``, ``step/ir1``, ``sections/cosine``, ``epoch/val_loss``."""

    def add(self, numbers: dict[str, float], step: int) -> None:
        """Take these, of one step."""
        raise NotImplementedError

    def on_log(self, step: int, values: Mapping[str, Any]) -> None:
        self.add(dict(scalars("step", values)), step)

    def on_sections(self, step: int, values: Mapping[str, Any]) -> None:
        self.add(dict(scalars("sections", values)), step)

    def on_epoch_end(self, step: int, values: Mapping[str, Any]) -> None:
        self.add(dict(scalars("epoch", values)), step)


class TensorBoard(ScalarCallback):
    """Writes to ``tensorboard`` in the run's folder."""

    def on_train_begin(self, run: RunInfo) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board: Any = SummaryWriter(str(make_folder(run.folder / "tensorboard")), purge_step=run.step or None)

    def add(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)

    def on_train_end(self, result: RunResult | None) -> None:
        self._board.close()


def scalars(event: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers among the values by name; of lists by their place, from 1. The sections of an epoch are an event."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from scalars(key, value)
            continue
        items = {f"{key}{i + 1}": item for i, item in enumerate(value)} if isinstance(value, list) else {key: value}
        for name, item in items.items():
            if isinstance(item, int | float):
                yield f"{event}/{name}", item


def _lines_up_to(path: Path, step: int) -> list[str]:
    """The beginning of the log that is whole: the last line of a killed run may be cut."""
    if not path.exists():
        return []
    must_be_regular(path)
    kept: list[str] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for line in lines:
        try:
            at = json.loads(line)["step"]
            later = at > step
        except (ValueError, TypeError, KeyError, RecursionError):
            if len(kept) + 1 < len(lines):
                _log.warning("%s: line %d is damaged; it is dropped with all that follow", path, len(kept) + 1)
            break
        if later:
            break
        kept.append(line)
    return kept
