"""The folder of one experiment: whose it is, and whether this command may write there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from lit_fast.data import Data
from lit_fast.errors import DataError, RunFolderError
from lit_fast.files import atomic_write, write_json
from lit_fast.runs.results import RunResult

_FINGERPRINT = "data.fingerprint"
_BAD_FILES = "bad_files.json"  # those that stopped a run, and the fingerprint of all others
DALI = "data.dali"  # key of `extra`: True for the loader "dali"; absent for the others, which agree bit by bit

__all__ = ["DALI", "RunFolder"]


class Experiment(Protocol):
    """What a folder is of: settings, as `lit_fast.settings.classifier` resolves them."""

    def identity(self) -> dict[str, Any]:
        """The settings that can change a result."""

    def to_yaml(self) -> str:
        """All settings."""


class RunFolder:
    """``run_dir`` of ``experiment`` on ``data``.

    Args:
        path: made if absent.
        experiment: the resolved config; saved as ``experiment.yaml``.
        data: its fingerprint is part of the identity; what it is of is saved as ``data.json``.
        extra: further identity (the structure of a user's own models).
        resume: continue what is there.

    Raises:
        RunFolderError: it holds another experiment (the differing keys are named), or one on data that have changed
            (what changed is named), or one that was begun and ``resume`` is not set, or it cannot be written.
    """

    def __init__(
        self, path: Path, experiment: Experiment, data: Data, *, resume: bool, extra: dict[str, Any] | None = None
    ) -> None:
        self.path = path
        identity = {**experiment.identity(), _FINGERPRINT: data.fingerprint, **(extra or {})}
        try:
            path.mkdir(parents=True, exist_ok=True)
            if (path / "identity.json").exists():
                self._check(identity, data, resume)
            elif any(path.iterdir()):
                raise RunFolderError(f"{path} is not empty and holds no experiment; choose an empty or new folder")
            write_json(path / "identity.json", identity)
            write_json(path / "data.json", data.contents())
            atomic_write(path / "experiment.yaml", lambda p: p.write_text(experiment.to_yaml(), encoding="utf-8"))
        except OSError as error:
            raise RunFolderError(f"cannot write to the run directory {path}: {error.strerror or error}") from error

    def remember(self, error: DataError, data: Data) -> None:
        """A file that has been bad from the beginning stopped a run: a good one in its place does not end it.

        What was trained has not seen the file, so the run goes on as one that was begun with the good one.
        """
        name = None if error.file is None else data.bad_from_the_beginning(error.file)
        if name is None:
            return
        names = sorted({name, *self._bad().get("files", ())})
        write_json(self.path / _BAD_FILES, {"files": names, "others": data.fingerprint_without(names)})

    def _bad(self) -> dict[str, Any]:
        try:
            content = json.loads((self.path / _BAD_FILES).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _check(self, identity: dict[str, Any], data: Data, resume: bool) -> None:
        try:
            there = json.loads((self.path / "identity.json").read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise RunFolderError(
                f"{self.path / 'identity.json'} is damaged ({error}); choose another folder"
            ) from error
        mine = json.loads(json.dumps(identity))
        differing = [key for key in sorted(there.keys() | mine.keys()) if there.get(key) != mine.get(key)]
        if differing == [DALI]:
            begun, loader = ("with", "dali") if there.get(DALI) else ("without", "torch")
            raise RunFolderError(
                f"{self.path}: this experiment was begun {begun} DALI, whose pixels are rounded otherwise; go on with"
                f" --loader {loader}"
            )
        bad = self._bad() if differing == [_FINGERPRINT] and resume else {}
        if bad and bad.get("others") == data.fingerprint_without(bad.get("files", ())):
            (self.path / _BAD_FILES).unlink()
            return
        if differing == [_FINGERPRINT]:
            raise RunFolderError(
                f"{self.path}: the data have changed since this experiment was begun: {self._changed(data)}. Bring them"
                " back as they were, or choose another folder"
            )
        if differing:
            named = [
                "the data" if key == _FINGERPRINT else f"{key} ({there.get(key)!r} there, {mine.get(key)!r} now)"
                for key in differing
            ]
            raise RunFolderError(
                f"{self.path} holds another experiment; it differs in {'; '.join(named)}. Choose another folder"
            )
        if not resume:
            raise RunFolderError(
                f"{self.path} holds this experiment already; pass --resume to go on with it (in Python resume=True)"
            )

    def _changed(self, data: Data) -> str:
        """What of the data is not as it was when the folder was made."""
        try:
            there = json.loads((self.path / "data.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):  # of an earlier version, or gone
            return "images, labels, splits, normalisation or augmentation"
        found = []
        now = json.loads(json.dumps(data.contents()))
        for key in (key for key in now if now[key] != there.get(key)):
            split, _, what = key.partition(".")
            if what == "count":
                found.append(f"{split} has {now[key]:,} {data.items}, it had {there.get(key):,}")
            elif what and now[f"{split}.count"] == there.get(f"{split}.count"):
                found.append(f"the {data.items if what == 'inputs' else what} of {split}, or their order")
            elif not what:
                found.append(f"{key} ({there.get(key)} there, {now[key]} now)")
        return "; ".join(found)

    def run(self, name: str) -> Path:
        """The folder of run ``name``, made if absent."""
        folder = self.path / "runs" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def finished(self, name: str) -> RunResult | None:
        """The result of run ``name`` if it has ended."""
        file = self.path / "runs" / name / "result.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
