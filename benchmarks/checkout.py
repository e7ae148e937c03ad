"""The checkout that is measured: where it lies and its commit. Imports Python's own modules alone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def printed(*command: str) -> str | None:
    """What a command prints; None where it fails, is not there or prints nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def commit() -> str:
    """The commit that is checked out, "-dirty" behind it if files differ; "unknown" without git."""
    described = ("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    return os.environ.get("LIT_FAST_COMMIT") or printed("git", "-C", str(ROOT), *described) or "unknown"
