"""Runs suites without pytest, within a time limit: ``python -m benchmarks.run --out rows.json --seconds 300``.

The results file is written anew after every row, so that a run that is cut short loses nothing; with ``--journal`` each
row is a line there instead, and what the journal already has is not measured again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks import journal, machine
from benchmarks.choice import Choice
from benchmarks.suites import SUITES
from benchmarks.turns import Turns
from lit_fast.bench import pairing


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
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, help="results file")
    where.add_argument("--journal", type=Path, help="file of lines that rows are added to")
    parser.add_argument("--seconds", type=float, default=280.0, help="no setting is begun later")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--only", choices=SUITES, action="append", help="this suite; may be given more than once")
    parser.add_argument("--tiny", action="store_true", help="sizes and rounds that only try the code")
    parser.add_argument("--settings", nargs="+", metavar="NAME", help="these settings alone")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="these variants alone; compile: all its modes")
    parser.add_argument("--stage", default="", help="whose rows those of the journal are; other stages' are not known")
    parser.add_argument(
        "--together", nargs=2, metavar=("DIR", "N"), help="with N processes of this DIR: compile beside, time in turns"
    )
    parser.add_argument("--rounds", type=float, metavar="SECONDS", help="of timing at one setting (the suite's own)")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    turns = Turns(Path(options.together[0]), int(options.together[1]), deadline) if options.together else None
    options.turn = turns.measuring if turns else nullcontext
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.tiny:
        pairing.FEWEST = 1
    try:
        if options.journal:
            _into_journal(options, deadline)
        else:
            _into_file(options, deadline)
    finally:
        if turns:
            turns.ready()


def _into_file(options: argparse.Namespace, deadline: float) -> None:
    command = f"python -m benchmarks.run {shlex.join(sys.argv[1:])}"
    content = results(options.device, command, [], tiny=options.tiny)
    for row in _rows(options, deadline, frozenset()):
        content["rows"].append(row)
        write(options.out, content)
    write(options.out, content)


def _into_journal(options: argparse.Namespace, deadline: float) -> None:
    if not options.tiny and not any("copy_gb_s" in entry for entry in journal.read(options.journal, "facts")):
        journal.append(options.journal, "facts", copy_gb_s=machine.copy_rate(options.device) / 1e9)
    rows = [row for row in journal.read(options.journal, "row") if row["status"] == "measured"]
    known = {(row["suite"], row["setting"], row["variant"]) for row in rows if row["stage"] == options.stage}
    for row in _rows(options, deadline, frozenset(known)):
        journal.append(options.journal, "row", stage=options.stage, **row)


def _rows(
    options: argparse.Namespace, deadline: float, known: frozenset[tuple[str, str, str]]
) -> Iterator[dict[str, Any]]:
    chosen = (tuple(names) if names else None for names in (options.settings, options.variants))
    choice = Choice(*chosen, known, options.turn)
    seconds = {"seconds": 0.05} if options.tiny else {} if options.rounds is None else {"seconds": options.rounds}
    for suite in options.only or SUITES:
        module = importlib.import_module(SUITES[suite])
        for row in module.run(options.device, deadline, tiny=options.tiny, choice=choice, **seconds):
            print(line(row), flush=True)
            yield row


if __name__ == "__main__":
    main()
