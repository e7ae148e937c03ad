"""What a run has found so far, one JSON line each, on disk the moment it is known. Imports Python's own modules alone.

Several processes append to one journal: a line is one write to a file that is opened for appending. A process that is
killed within one leaves at most its last line torn, and a torn line is passed over.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


def append(path: Path, entry: str, **fields: Any) -> None:
    """Add a line; `entry` says of what sort: "row", "test" and so on. A torn one before it is ended first."""
    line = json.dumps({"entry": entry, **fields}) + "\n"
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            line = "\n" + line
        os.write(file, line.encode())
    finally:
        os.close(file)


def read(path: Path, entry: str | None = None) -> list[Entry]:
    """All whole lines that count, in order; of one sort if that is given.

    What has "again" (a call with ``--again STAGE``) takes back what those stages wrote before it: the lines that have
    one as their "stage", and the stages' own, which have it as their "name".
    """
    if not path.exists():
        return []
    found: list[Entry] = []
    for line in path.read_bytes().split(b"\n"):
        try:
            one = json.loads(line)
        except ValueError:  # empty or torn
            continue
        if isinstance(one, dict):
            if one.get("again"):
                found = [old for old in found if old.get("stage", old.get("name")) not in one["again"]]
            found.append(one)
    return [one for one in found if entry in (None, one.get("entry"))]
