"""results.json and summary.md, made of the journal: at any moment, of whatever it holds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks import bars, journal
from benchmarks.gpu.summary import sections

JOURNAL = "journal.jsonl"
GPU_ONLY = ("launches", "launches_forward", "kernel_us", "kernels", "kernel_gb_s")  # fields of rows
_FACTS = ("device", "kind", "capability", "cpu", "cores", "threads", "versions", "copy_gb_s", "build")
Results = dict[str, Any]


def write(out: Path) -> Results:
    """Write both files, each whole or not at all; returns the content of results.json."""
    found = of_journal(journal.read(out / JOURNAL))
    replace(out / "results.json", (json.dumps(found, indent=1) + "\n").encode())
    replace(out / "summary.md", ("\n\n".join(sections(found)) + "\n").encode())
    return found


def of_journal(entries: list[journal.Entry]) -> Results:
    """What the calls found together: of whatever was done twice, the last."""
    calls = [entry for entry in entries if entry["entry"] == "call"]
    facts: dict[str, Any] = {}
    for entry in entries:
        if entry["entry"] == "facts":
            facts |= {key: entry[key] for key in _FACTS if key in entry}
    dry_run = any(call["dry_run"] for call in calls)
    last = calls[-1] if calls else {}
    found = {
        "device": "unknown",
        "kind": last.get("device", "cuda"),
        **facts,
        "dry_run": dry_run,
        "tiny": dry_run,
        "date": last.get("date"),
        "commit": last.get("commit"),
        "command": last.get("command"),
        "calls": [{key: call[key] for key in ("date", "commit", "command")} for call in calls],
        "stages": _last_of(entries, "stage", "name"),
        "tests": _tests(entries),
        "probe": _last_of(entries, "probe", "name"),
        "rows": _last_of(entries, "row", "suite", "setting", "variant", "mode"),
    }
    if dry_run:
        found["device"] = "cpu (dry run)"
        found["copy_gb_s"] = "not measured"
        for row in found["rows"]:
            row |= dict.fromkeys(GPU_ONLY, "not measured")
    found["bars"] = bars.judge(found, "cuda")
    return found


def _last_of(entries: list[journal.Entry], sort: str, *keys: str) -> list[dict[str, Any]]:
    """The last entry of a sort for each value of the keys, in the order of the first ones."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for entry in entries:
        if entry["entry"] == sort:
            fields = {key: value for key, value in entry.items() if key != "entry"}
            place = tuple(fields.get(key) for key in keys)
            # What went wrong later does not replace what was measured.
            if fields.get("status") == "measured" or found.get(place, {}).get("status") != "measured":
                found[place] = fields
    return list(found.values())


def _tests(entries: list[journal.Entry]) -> dict[str, Any]:
    verdicts = {test["id"]: test for test in _last_of(entries, "test", "id")}.values()
    counts = {kind: sum(test["outcome"] == kind for test in verdicts) for kind in ("passed", "failed", "skipped")}
    return {**counts, "failures": [test for test in verdicts if test["outcome"] == "failed"]}


def replace(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all. (The library's own way would bring torch into the script's process.)"""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content)
    os.replace(beside, path)
