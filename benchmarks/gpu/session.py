"""One run of the script: where it works, how long it may, how it runs commands. Imports Python's own modules alone."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
# What a copy of the tree needs.
_TREE = ("lit_fast", "benchmarks", "tests", "csrc", "kernels", "build_backend")
_FILES = ("setup.py", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
_LOG_BYTES = 2 << 20  # of one command's output; of longer ones the end is kept


class Done(NamedTuple):
    """A finished command. `status` is None where it ran out of time; `output` is stdout and stderr together."""

    status: int | None
    output: str
    seconds: float


@dataclass
class Session:
    """State of a run.

    Attributes:
        out: folder of the results.
        scratch: folder for everything else; removed at the end.
        deadline: of ``time.monotonic``.
        tree: the project's root that commands run in: a copy where the project must not or cannot be written to.
        facts: what the environment stage found out.
        passed: ids of the tests that passed, short ones first.
        results: the content of results.json.
    """

    out: Path
    scratch: Path
    deadline: float
    dry_run: bool
    fail: str | None
    tree: Path = ROOT
    facts: dict[str, Any] = field(default_factory=dict)
    passed: list[str] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)

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

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def environment(self) -> dict[str, str]:
        """What commands run with: this tree, no caches in it, tools of the CUDA toolkit on the path."""
        paths = [str(self.tree), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
        known = {
            "PYTHONPATH": os.pathsep.join(path for path in paths if path != str(ROOT) or self.tree == ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "PATH": os.pathsep.join(
                [os.environ.get("PATH", os.defpath), *([str(toolkit)] if toolkit.is_dir() else [])]
            ),
            "HYPOTHESIS_STORAGE_DIRECTORY": str(self.scratch / "hypothesis"),
            "LIT_FAST_COMMIT": commit(),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # whatever else is installed there
            "CI": "1",  # property tests draw the same examples each time
            "KINETO_LOG_LEVEL": "99",
        }
        if not os.access(Path.home(), os.W_OK):
            known["TRITON_CACHE_DIR"] = str(self.scratch / "triton")
        if self.dry_run:
            known |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        return {**os.environ, **known}

    def python(self, *arguments: str) -> list[str]:
        return [sys.executable, *arguments]

    def run(self, command: list[str], limit: float, **environment: str) -> Done:
        """Run a command in the tree, for at most `limit` seconds; with its children it is killed then.

        Its output goes to log.txt. A program that is not there has status 127.
        """
        start = time.monotonic()
        output = self.scratch / "output.txt"
        with output.open("wb") as file:
            try:
                process = subprocess.Popen(
                    command,
                    cwd=self.tree,
                    env={**self.environment(), **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                status = _wait(process, max(limit, 0.1))
            except OSError as error:
                file.write(f"{command[0]}: {error}\n".encode())
                status = 127
        seconds = time.monotonic() - start
        text = output.read_bytes()[-_LOG_BYTES:].decode(errors="replace")
        changed = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
        end = "out of time" if status is None else f"status {status}"
        self.log(f"$ {changed} {shlex.join(command)}\n{text}\n# {end}, {seconds:.1f} s\n")
        return Done(status, text, seconds)

    def log(self, text: str) -> None:
        with (self.out / "log.txt").open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def save(self) -> None:
        """Write results.json, whole or not at all."""
        beside = self.scratch / "results.json"
        beside.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")
        shutil.copy(beside, self.out / "results.json.new")
        os.replace(self.out / "results.json.new", self.out / "results.json")


def _wait(process: subprocess.Popen[bytes], limit: float) -> int | None:
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(3)
            except (ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
                continue
        return None
    except BaseException:  # Ctrl-C: leave nothing running
        os.killpg(process.pid, signal.SIGKILL)
        raise


def commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        known = os.environ.get("LIT_FAST_COMMIT")
        return known or subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
