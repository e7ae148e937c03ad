"""What a run leaves to read: ``log.jsonl``, and TensorBoard events where TensorBoard is installed."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from lit_fast.files import atomic_write, make_folder, must_be_regular

__all__ = ["RunLog"]

_log = logging.getLogger(__name__)


class RunLog:
    """Appends one JSON object per line.

    Args:
        folder: the run's folder.
        resume_step: lines of later steps are dropped: the resumed run writes them again. 0 starts anew.
        tensorboard: also write scalars to ``folder/tensorboard`` if TensorBoard can be imported.
    """

    def __init__(self, folder: Path, *, resume_step: int = 0, tensorboard: bool = True) -> None:
        path = folder / "log.jsonl"
        kept = _lines_up_to(path, resume_step) if resume_step else []
        atomic_write(path, lambda p: p.write_text("".join(kept), encoding="utf-8"))
        self._path, self._file = path, path.open("a", encoding="utf-8")
        self._board = _summary_writer(folder / "tensorboard", resume_step) if tensorboard else None

    def write(self, event: str, step: int, **fields: Any) -> None:
        """Log ``fields`` under ``event`` (``step``, ``sections``, ``epoch``) at global step ``step``."""
        try:
            self._file.write(json.dumps({"event": event, "step": step, **fields}) + "\n")
            self._file.flush()
        except OSError as error:  # which names no file
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        if self._board is None:
            return
        for key, value in fields.items():
            items = {f"{key}{i + 1}": item for i, item in enumerate(value)} if isinstance(value, list) else {key: value}
            for name, item in items.items():
                if isinstance(item, int | float):
                    self._board.add_scalar(f"{event}/{name}", item, step)

    def close(self) -> None:
        with suppress(OSError):  # of what could not be written either
            self._file.close()
        if self._board is not None:
            self._board.close()


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


def _summary_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(make_folder(folder)), purge_step=step or None)
