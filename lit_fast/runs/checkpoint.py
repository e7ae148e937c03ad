"""Checkpoints that survive a kill at any moment.

A checkpoint is a folder, made under a temporary name, flushed, and renamed into place in one operation:

    step-000001234/model.safetensors   weights and running statistics
                   best.safetensors    those that were best on validation (once there are any)
                   state.pt            everything else: optimizers, scalers, position, RNG, history; and its layout
                   manifest.json       their digests, and whose they are (`lit_fast.runs.manifest`)
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_fast.errors import ManifestError, OtherLayout, StoreError
from lit_fast.files import fsync_path, make_folder, system_error
from lit_fast.runs.manifest import check_manifest, write_manifest

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
        folder: where they lie; made when the first one is saved, in the run's folder, which is there.
        of: the run; checkpoints of another one are not read.
    """

    def __init__(self, folder: Path, of: str = "") -> None:
        self.folder, self._of = folder, of

    def save(self, checkpoint: Checkpoint) -> None:
        """Write ``checkpoint``; on any error the earlier ones are intact.

        Raises:
            StoreError: the disk is full, read-only or gone.
        """
        final = self.folder / f"{_PREFIX}{checkpoint.step:09d}"
        temporary = self.folder / f"{_TEMPORARY}{final.name}"
        try:
            make_folder(self.folder)
            if self._is_whole(final):
                return
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            self._write(temporary, checkpoint)
            write_manifest(temporary, self._name(final), sorted(path.name for path in temporary.iterdir()))
            fsync_path(temporary)
            os.replace(temporary, final)
            fsync_path(self.folder)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
            shutil.rmtree(temporary, ignore_errors=True)
            newest = self._folders()[-1:]
            kept = f"the last checkpoint, {newest[0]}, is intact" if newest else "there is no earlier checkpoint"
            raise StoreError(
                f"cannot write the checkpoint {final}: {_reason(error)}; {kept}. Make room or mend the folder, then "
                "--resume"
            ) from error
        for old in self._folders()[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def _is_whole(self, final: Path) -> bool:
        """Whether this checkpoint is there already; one that is damaged makes room for another of the same step."""
        try:
            check_manifest(final, self._name(final))
        except ManifestError:
            if final.is_dir():
                shutil.rmtree(final)
            return False
        return True

    def _name(self, folder: Path) -> str:
        """What the manifest in ``folder`` is of."""
        return f"{self._of} {folder.name}".lstrip()

    @staticmethod
    def _write(folder: Path, checkpoint: Checkpoint) -> None:
        _save_tensors(folder / "model.safetensors", checkpoint.model)
        if checkpoint.best is not None:
            _save_tensors(folder / "best.safetensors", checkpoint.best)
        with (folder / "state.pt").open("xb") as file:  # torch does not tell why it cannot write to a path
            torch.save({"layout": _LAYOUT, **checkpoint.state}, file)
        for path in folder.iterdir():
            fsync_path(path)

    def load(self) -> Checkpoint | None:
        """The newest checkpoint whose files are as they were written, or ``None`` where there is none.

        Raises:
            StoreError: there are checkpoints, and none is whole, or one is of another layout.
        """
        folders = self._folders()
        failures = []
        for folder in reversed(folders):
            try:
                check_manifest(folder, self._name(folder))
                return _read(folder)
            except OtherLayout as error:
                raise StoreError(str(error)) from None
            except Exception as error:  # what fits its manifest may still be of another version of torch
                failures.append(str(error) if isinstance(error, ManifestError) else f"{folder}: {error}")
                _log.warning("checkpoint %s cannot be read (%s); trying the one before it", folder, error)
        if failures:
            raise StoreError(
                "no checkpoint of this run can be read:\n  "
                + "\n  ".join(failures)
                + f"\nBring the files back as they were, or remove {self.folder}, then --resume trains this run anew"
            )
        return None

    def _folders(self) -> list[Path]:
        """Complete checkpoints, oldest first: what was cut off while being written still has its temporary name."""
        if not self.folder.is_dir():
            return []
        ours = (path for path in self.folder.iterdir() if re.fullmatch(rf"{_PREFIX}\d{{9,}}", path.name))
        return sorted((path for path in ours if not path.is_symlink()), key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix(_PREFIX))


def _reason(error: Exception) -> str:
    """Why it could not be written, as the system says it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = system_error(error)
    return str(error) if code is None else os.strerror(code)


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
    best = folder / "best.safetensors"  # in the manifest, where there was one
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    if state.pop("layout", 1) != _LAYOUT:
        raise OtherLayout(
            f"checkpoint {folder} was written by another version of lit_fast and cannot be continued by this one: end "
            f"the run with that version, or remove the folder {folder.parent.parent}, then --resume trains this run "
            "anew and keeps those that have ended"
        )
    return Checkpoint(
        step=_step(folder),
        model=load_file(folder / "model.safetensors"),
        best=load_file(best) if best.exists() else None,
        state=state,
    )
