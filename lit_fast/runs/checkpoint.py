"""Checkpoints that survive a kill at any moment.

A checkpoint is a folder, made under a temporary name, flushed, and renamed into place in one operation:

    step-000001234/model.safetensors   weights and running statistics
                   best.safetensors    those that were best on validation (once there are any)
                   state.pt            everything else: optimizers, scalers, position, RNG, history; and its layout
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_fast.errors import OtherLayout, StoreError
from lit_fast.files import fsync_path

__all__ = ["Checkpoint", "CheckpointStore"]

_log = logging.getLogger(__name__)
_PREFIX, _TEMPORARY = "step-", ".tmp-"
_KEPT = 2
_LAYOUT = 2  # of what a run saves; files without a number are of the first one


@dataclass
class Checkpoint:
    """What a run needs to go on as if it had never stopped."""

    step: int
    model: dict[str, Tensor]
    best: dict[str, Tensor] | None
    state: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run, the newest two kept.

    Args:
        folder: where they lie; made when the first one is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, checkpoint: Checkpoint) -> None:
        """Write ``checkpoint``; on any error the earlier ones are intact.

        Raises:
            StoreError: the disk is full, read-only or gone.
        """
        final = self.folder / f"{_PREFIX}{checkpoint.step:09d}"
        if final.exists():
            return
        temporary = self.folder / f"{_TEMPORARY}{final.name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            self._write(temporary, checkpoint)
            os.replace(temporary, final)
            fsync_path(self.folder)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
            shutil.rmtree(temporary, ignore_errors=True)
            newest = self._folders()[-1:]
            kept = f"the last checkpoint, {newest[0]}, is intact" if newest else "there is no earlier checkpoint"
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise StoreError(
                f"cannot write the checkpoint {final}: {reason}; {kept}. Make room or mend the folder, then --resume"
            ) from error
        for old in self._folders()[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    @staticmethod
    def _write(folder: Path, checkpoint: Checkpoint) -> None:
        _save_tensors(folder / "model.safetensors", checkpoint.model)
        if checkpoint.best is not None:
            _save_tensors(folder / "best.safetensors", checkpoint.best)
        torch.save({"layout": _LAYOUT, **checkpoint.state}, folder / "state.pt")
        for file in folder.iterdir():
            fsync_path(file)
        fsync_path(folder)

    def load(self) -> Checkpoint | None:
        """The newest readable checkpoint, or ``None`` where there is none.

        Raises:
            StoreError: there are checkpoints, and none can be read, or one is of another layout.
        """
        folders = self._folders()
        failures = []
        for folder in reversed(folders):
            try:
                return _read(folder)
            except OtherLayout as error:
                raise StoreError(str(error)) from None
            except Exception as error:  # a damaged file fails in as many ways as it has bytes
                failures.append(f"{folder}: {error}")
                _log.warning("checkpoint %s cannot be read (%s); trying the one before it", folder, error)
        if failures:
            raise StoreError("no checkpoint of this run can be read:\n  " + "\n  ".join(failures))
        return None

    def _folders(self) -> list[Path]:
        """Complete checkpoints, oldest first: what was cut off while being written still has its temporary name."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.name.startswith(_PREFIX))


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    apart: dict[str, Tensor] = {}
    written: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        place = whole.untyped_storage().data_ptr()
        apart[name] = whole.clone() if place in written else whole  # tied weights: the file cannot share them
        written.add(place)
    save_file(apart, path)


def _read(folder: Path) -> Checkpoint:
    best = folder / "best.safetensors"
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    if state.pop("layout", 1) != _LAYOUT:
        raise OtherLayout(
            f"checkpoint {folder} was written by another version of lit_fast and cannot be continued by this one: end "
            f"the run with that version, or remove the folder {folder.parent.parent}, then --resume trains this run "
            "anew and keeps those that have ended"
        )
    return Checkpoint(
        step=int(folder.name.removeprefix(_PREFIX)),
        model=load_file(folder / "model.safetensors"),
        best=load_file(best) if best.exists() else None,
        state=state,
    )
