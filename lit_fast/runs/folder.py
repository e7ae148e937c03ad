"""The folder of one experiment: whose it is, and whether this command may write there."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from typing_extensions import NotRequired, TypedDict

from lit_fast.data import Data
from lit_fast.errors import DataError, ManifestError, RunFolderError
from lit_fast.files import as_json, atomic_write, make_folder, remove_leftovers, write_json
from lit_fast.runs.lock import RunLock
from lit_fast.runs.manifest import check_manifest, write_manifest
from lit_fast.runs.schema import RunResult
from lit_fast.runs.stored import read_json

_FINGERPRINT = "data.fingerprint"
_ID = "folder"  # key of the identity: drawn when a folder is begun; all that its runs write is bound to it
_RESULT = "result.json"
_ENVIRONMENT = "environment.json"
_BAD_FILES = "bad_files.json"  # those that stopped a run, and the fingerprint of all others
DALI = "data.dali"  # key of `extra`: True for the loader "dali"; absent for the others, which agree bit by bit

__all__ = ["DALI", "RunFolder"]


class _BadFiles(TypedDict):
    files: NotRequired[list[str]]
    others: NotRequired[str]


class Experiment(Protocol):
    """What a folder is of: settings, as `lit_fast.settings.classifier` resolves them."""

    def identity(self) -> dict[str, Any]:
        """The settings that can change a result."""

    def to_yaml(self) -> str:
        """All settings."""


class RunFolder:
    """``run_dir`` of ``experiment`` on ``data``.

    A new folder is empty until `claim`, so that an experiment which is refused leaves it to the next.

    Args:
        path: made if absent.
        experiment: the resolved config; saved as ``experiment.yaml``.
        data: its fingerprint is part of the identity; what it is of is saved as ``data.json``.
        extra: further identity (the structure of a user's own models).
        resume: continue what is there.
        lock: taken, so that no other process works in this folder.
        environment: what results depend on in their last bits; saved as ``environment.json``.

    Attributes:
        changes: of the environment since the experiment was begun or last gone on with, in words.

    Raises:
        RunFolderError: it holds another experiment (the differing keys are named), or one on data that have changed
            (what changed is named), or one that was begun and ``resume`` is not set; or another process works in it, or
            it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        experiment: Experiment,
        data: Data,
        *,
        resume: bool,
        extra: dict[str, Any] | None = None,
        lock: RunLock | None = None,
        environment: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self._identity = {**experiment.identity(), _FINGERPRINT: data.fingerprint, **(extra or {})}
        self._contents, self._settings = data.contents(), experiment.to_yaml()
        self._id = secrets.token_hex(8)
        self._claimed = self._repaired = False
        self._environment, self.changes = dict(environment or {}), list[str]()
        try:
            path.mkdir(parents=True, exist_ok=True)
            if lock is not None:
                lock.take(path)
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            if (path / "identity.json").exists():
                self._check(data, resume)
                self.changes = self._changes()
            elif any(path.iterdir()):
                raise RunFolderError(f"{path} is not empty and holds no experiment; choose an empty or new folder")
        except OSError as error:
            raise RunFolderError(self._unwritable(error)) from error

    def claim(self) -> None:
        """Write what the folder is of, once.

        Raises:
            RunFolderError: it cannot be written.
        """
        if self._claimed:
            return
        try:
            write_json(self.path / "identity.json", {**self._identity, _ID: self._id})
            write_json(self.path / "data.json", self._contents)
            if self._environment:
                write_json(self.path / _ENVIRONMENT, self._environment)
            atomic_write(self.path / "experiment.yaml", lambda p: p.write_text(self._settings, encoding="utf-8"))
            if self._repaired:
                (self.path / _BAD_FILES).unlink(missing_ok=True)
        except OSError as error:
            raise RunFolderError(self._unwritable(error)) from error
        self._claimed = True

    def _changes(self) -> list[str]:
        try:
            there = read_json(self.path / _ENVIRONMENT, dict[str, Any], RunFolderError)
        except (OSError, RunFolderError):  # it is for a note alone
            return []
        here = self._environment
        return [f"{key} {there[key]}, now {here[key]}" for key in here if key in there and there[key] != here[key]]

    def _unwritable(self, error: OSError) -> str:
        reason = error.strerror or str(error)
        name = Path(error.filename).name if isinstance(error.filename, str) else self.path.name
        named = "" if name == self.path.name else f"{name}: "
        return f"cannot write to the run directory {self.path}: {named}{reason}"

    def remember(self, error: DataError, data: Data) -> None:
        """A file that has been bad from the beginning stopped a run: a good one in its place does not end it.

        What was trained has not seen the file, so the run goes on as one that was begun with the good one.
        """
        name = None if error.file is None else data.bad_from_the_beginning(error.file)
        if name is None:
            return
        self.claim()
        names = sorted({name, *self._bad().get("files", ())})
        write_json(self.path / _BAD_FILES, {"files": names, "others": data.fingerprint_without(names)})

    def _bad(self) -> _BadFiles:
        try:
            return cast(_BadFiles, read_json(self.path / _BAD_FILES, _BadFiles, RunFolderError))
        except (OSError, RunFolderError):
            return {}

    def _check(self, data: Data, resume: bool) -> None:
        file = self.path / "identity.json"
        try:
            there = read_json(file, dict[str, Any], RunFolderError)
        except RunFolderError as error:
            raise RunFolderError(f"{file} is damaged ({error}); choose another folder") from error
        begun_as = there.pop(_ID, None)
        mine = json.loads(json.dumps(self._identity))
        differing = [key for key in sorted(there.keys() | mine.keys()) if there.get(key) != mine.get(key)]
        if differing == [DALI]:
            begun, loader = ("with", "dali") if there.get(DALI) else ("without", "torch")
            raise RunFolderError(
                f"{self.path}: this experiment was begun {begun} DALI, whose pixels are rounded otherwise; go on with"
                f" --loader {loader}"
            )
        bad = self._bad() if differing == [_FINGERPRINT] and resume else {}
        if bad and bad.get("others") == data.fingerprint_without(bad.get("files", ())):
            self._id, self._repaired = self._known_id(begun_as), True
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
        self._id = self._known_id(begun_as)

    def _known_id(self, begun_as: object) -> str:
        if isinstance(begun_as, str):
            return begun_as
        raise RunFolderError(
            f"{self.path / 'identity.json'} lacks {_ID!r}: it is damaged, or of an earlier version of lit_fast; choose "
            "another folder"
        )

    def _changed(self, data: Data) -> str:
        """What of the data is not as it was when the folder was made."""
        try:
            there = read_json(self.path / "data.json", dict[str, Any], RunFolderError)
        except (OSError, RunFolderError):  # of an earlier version, or gone
            return "images, labels, splits, normalisation or augmentation"
        found = []
        now = json.loads(json.dumps(data.contents()))
        for key in (key for key in now if now[key] != there.get(key)):
            split, _, what = key.partition(".")
            if what == "count":
                found.append(f"{split} has {now[key]:,} {data.items}, it had {_count(there.get(key))}")
            elif what and now[f"{split}.count"] == there.get(f"{split}.count"):
                found.append(f"the {data.items if what == 'inputs' else what} of {split}, or their order")
            elif not what:
                found.append(f"{key} ({there.get(key)} there, {now[key]} now)")
        return "; ".join(found)

    # -- runs --------------------------------------------------------------------------------------------------------

    def run(self, name: str) -> Path:
        """The folder of run ``name``, made if absent.

        Raises:
            RunFolderError: it cannot be written; or the experiment's folder has been deleted since it was begun.
        """
        self.claim()
        try:
            if not (self.path / "identity.json").exists():
                raise RunFolderError(f"{self.path}: this folder was deleted or emptied while its experiment ran")
            folder = make_folder(make_folder(self.path / "runs") / name)
            remove_leftovers(folder)
            return folder
        except OSError as error:
            raise RunFolderError(self._unwritable(error)) from error

    def of(self, name: str) -> str:
        """What the manifests of run ``name`` say that they are of."""
        return f"{self._id} {name}"

    def finish(self, name: str, result: RunResult) -> None:
        """Write that run ``name`` has ended with ``result``; the weights that it names are there.

        Raises:
            RunFolderError, OSError: the folder has been deleted or cannot be written.
        """
        folder, content = self.run(name), as_json(result)
        # Its digest is there before the file, whose presence says that the run has ended.
        weights = [Path(path).name for path in result["files"].values()]
        write_manifest(folder, self.of(name), weights, {_RESULT: content})
        atomic_write(folder / _RESULT, lambda p: p.write_bytes(content))

    def finished(self, name: str) -> RunResult | None:
        """The result of run ``name`` if it has ended.

        Raises:
            RunFolderError: its result or its weights are not as they were written; names the file.
        """
        folder = self.path / "runs" / name
        if not (folder / _RESULT).exists():
            return None
        try:
            check_manifest(folder, self.of(name))
        except ManifestError as error:
            raise RunFolderError(
                f"run {name} has ended, but {error}. Bring the file back as it was, or remove {folder / _RESULT}, then "
                "--resume ends this run again from its last checkpoint"
            ) from None
        return cast(RunResult, read_json(folder / _RESULT, RunResult, RunFolderError))


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
