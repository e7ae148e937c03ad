"""Runs suites without pytest, within a time limit: ``python -m benchmarks.run --out rows.json --seconds 300``.

The results file is written anew after every row, so that a run that is cut short loses nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.suites import SUITES


def results(device: str, command: str, rows: Iterable[dict[str, Any]], *, tiny: bool = False) -> dict[str, Any]:
    """The content of a results file."""
    rate = None if tiny else machine.copy_rate(device) / 1e9
    return {**machine.describe(device), "command": command, "tiny": tiny, "copy_gb_s": rate, "rows": list(rows)}


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a results file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


def line(row: dict[str, Any]) -> str:
    """A row, to be read while it runs."""
    name = f"{row['suite']}  {row['setting']:<28} {row['variant']} {row['mode'] or ''}".ljust(70)
    if row["status"] != "measured":
        return f"{name} {row['status'][:200]}"
    ratios = [f"{row[key]:.2f} x {key[6:]}" for key in ("times_eager", "times_compile") if row.get(key)]
    return f"{name} {row['median_us']:12.1f} us  {'  '.join(ratios)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True, help="results file")
    parser.add_argument("--seconds", type=float, default=280.0, help="no setting is begun later")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--only", choices=SUITES, action="append", help="this suite; may be given more than once")
    parser.add_argument("--tiny", action="store_true", help="sizes that only try the code")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    if options.threads:
        torch.set_num_threads(options.threads)
    content = results(options.device, f"python -m benchmarks.run {shlex.join(sys.argv[1:])}", [], tiny=options.tiny)
    for suite in options.only or SUITES:
        seconds = {"seconds": 0.3} if options.tiny else {}
        module = importlib.import_module(SUITES[suite][0])
        for row in module.run(options.device, deadline, tiny=options.tiny, **seconds):
            content["rows"].append(row)
            print(line(row), flush=True)
            write(options.out, content)
    write(options.out, content)


if __name__ == "__main__":
    main()
