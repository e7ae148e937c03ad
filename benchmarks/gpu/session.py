"""One call of the script: where it works, how long it may, how it runs commands. Imports Python's own modules alone."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import journal
from benchmarks.checkout import ROOT, commit
from benchmarks.gpu.results import JOURNAL

CARRY = ROOT / "gpu-carry"  # what prepare.sh makes
# What a copy of the tree needs.
_TREE = ("lit_fast", "benchmarks", "tests", "csrc", "kernels", "build_backend")
_FILES = ("setup.py", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
_LOG_BYTES = 2 << 20  # of one command's output; of longer ones the end is kept
_BACKGROUND_LOG = 1 << 16


class Done(NamedTuple):
    """A finished command. `status` is None where it ran out of time; `output` is stdout and stderr together."""

    status: int | None
    output: str
    seconds: float


@dataclass
class Session:
    """State of a call.

    Attributes:
        out: folder of the results.
        scratch: folder for everything else; removed at the end.
        deadline: of ``time.monotonic``.
        carry: folder with what this machine lacks (prepare.sh).
        tree: the project's root that commands run in: a copy where the project must not or cannot be written to.
        extra: variables that stages add to the environment of all later commands.
    """

    out: Path
    scratch: Path
    deadline: float
    dry_run: bool
    fail: str | None
    carry: Path = CARRY
    tree: Path = ROOT
    extra: dict[str, str] = field(default_factory=dict)
    background: list[tuple[subprocess.Popen[bytes], Path]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.dry_run or not os.access(ROOT, os.W_OK):
            self.tree = self.scratch / "tree"
            self.tree.mkdir()
            for name in filter(lambda name: (ROOT / name).is_dir(), _TREE):
                ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyc")
                shutil.copytree(ROOT / name, self.tree / name, ignore=ignored)
            for name in filter(lambda name: (ROOT / name).is_file(), _FILES):
                shutil.copy(ROOT / name, self.tree / name)

    @property
    def device(self) -> str:
        return "cpu" if self.dry_run else "cuda"

    @property
    def journal(self) -> Path:
        return self.out / JOURNAL

    def note(self, entry: str, **fields: Any) -> None:
        """A line of the journal."""
        journal.append(self.journal, entry, **fields)

    def entries(self, sort: str) -> list[dict[str, Any]]:
        """What the journal holds of a sort, earlier calls included."""
        return journal.read(self.journal, sort)

    def facts(self) -> dict[str, Any]:
        """What is known of this machine."""
        found: dict[str, Any] = {}
        for entry in self.entries("facts"):
            found |= entry
        return found

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def environment(self) -> dict[str, str]:
        """What commands run with: this tree, no caches in it, tools of the CUDA toolkit on the path."""
        paths = [str(self.tree), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
        # Compiled code is kept from call to call, as long as the machine is.
        kept = Path(tempfile.gettempdir()) / f"lit_fast-gpu-kept-{os.getuid()}"
        known = {
            "PYTHONPATH": os.pathsep.join(path for path in paths if path != str(ROOT) or self.tree == ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "PATH": os.pathsep.join(
                [os.environ.get("PATH", os.defpath), *([str(toolkit)] if toolkit.is_dir() else [])]
            ),
            "HYPOTHESIS_STORAGE_DIRECTORY": str(self.scratch / "hypothesis"),
            "LIT_FAST_COMMIT": commit(),
            "LIT_FAST_JOURNAL": str(self.journal),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # whatever else is installed there
            "CI": "1",  # property tests draw the same examples each time
            "KINETO_LOG_LEVEL": "99",
            "TORCHINDUCTOR_CACHE_DIR": str(kept / "inductor"),
            "TRITON_CACHE_DIR": str(kept / "triton"),
        }
        if self.dry_run:
            known |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        return {**os.environ, **known, **self.extra}

    def python(self, *arguments: str) -> list[str]:
        return [sys.executable, *arguments]

    def run(self, command: list[str], limit: float, **environment: str) -> Done:
        """Run a command in the tree, for at most `limit` seconds; with its children it is killed then.

        Its output goes to log.txt as it comes. A program that is not there has status 127.
        """
        start = time.monotonic()
        changed = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
        self.log(f"$ {changed} {shlex.join(command)}")
        log = self.out / "log.txt"
        begin = log.stat().st_size
        with log.open("ab") as file:
            try:
                process = self._start(command, file, environment)
            except OSError as error:
                status: int | None = 127
                file.write(f"{command[0]}: {error}\n".encode())
            else:
                status = _wait(process, max(limit, 0.1))
        seconds = time.monotonic() - start
        text = _kept_end(log, begin)
        self.log(f"# {'out of time' if status is None else f'status {status}'}, {seconds:.1f} s\n")
        return Done(status, text, seconds)

    def start(self, command: list[str], name: str) -> None:
        """Run a command beside what comes next, until ``stop_background``, which logs what it printed."""
        path = self.scratch / f"{name}.txt"
        with path.open("wb") as file:
            self.background.append((self._start(command, file, {}), path))
        self.log(f"$ {shlex.join(command)} &  # {name}")

    def stop_background(self, wait: float = 0.0) -> None:
        """Wait so long for what runs in the background, then kill it."""
        end = time.monotonic() + wait
        for process, path in self.background:
            status = _wait(process, max(end - time.monotonic(), 0.01))
            text = path.read_text(encoding="utf-8", errors="replace")[-_BACKGROUND_LOG:]
            self.log(f"# {path.stem}: {'out of time' if status is None else f'status {status}'}\n{text}")
        self.background.clear()

    def _start(self, command: list[str], file: Any, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            cwd=self.tree,
            env={**self.environment(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def log(self, text: str) -> None:
        with (self.out / "log.txt").open("a", encoding="utf-8") as file:
            file.write(text + "\n")


def _kept_end(log: Path, begin: int) -> str:
    """What was written to the log since `begin`; of more than _LOG_BYTES only the end is left there, too."""
    with log.open("r+b") as file:
        file.seek(begin)
        output = file.read()
        if len(output) > _LOG_BYTES:
            output = output[-_LOG_BYTES:]
            file.seek(begin)
            file.write(output)
            file.truncate()
    return output.decode(errors="replace")


def _wait(process: subprocess.Popen[bytes], limit: float) -> int | None:
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        _stop(process)
        return None
    except BaseException:  # Ctrl-C: leave nothing running
        _stop(process, signal.SIGKILL)
        raise


def _stop(process: subprocess.Popen[bytes], *numbers: int) -> None:
    """End a process with its children."""
    for number in numbers or (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(2)
