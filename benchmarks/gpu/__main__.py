"""Runs the stages one after the other; see run.sh."""

from __future__ import annotations

import argparse
import datetime
import shlex
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.checkout import commit
from benchmarks.gpu import results
from benchmarks.gpu.session import CARRY, Session
from benchmarks.gpu.stages import STAGES, run_stage
from benchmarks.gpu.summary import sections


def main() -> int:
    """Exit status: 0, or 1 if a stage failed or was cut short (a missed bar is neither)."""
    options = _options()
    deadline = time.monotonic() + 60 * options.minutes
    out = options.out or Path(tempfile.mkdtemp(prefix="lit_fast-dry-run-") if options.dry_run else "gpu-results")
    out.mkdir(parents=True, exist_ok=True)
    if options.summary:
        print("\n\n".join(sections(results.write(out))))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: what runs is stopped
    with tempfile.TemporaryDirectory(prefix="lit_fast-gpu-", ignore_cleanup_errors=True) as scratch:
        session = Session(
            out.resolve(), Path(scratch).resolve(), deadline, options.dry_run, options.fail, options.carry.resolve()
        )
        session.note(
            "call",
            device=session.device,
            dry_run=options.dry_run,
            date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            commit=commit(),
            command=shlex.join(["benchmarks/gpu/run.sh", *sys.argv[1:]]),
            minutes=options.minutes,
            again=options.again,
        )
        for stage in STAGES:
            if options.only and stage.name not in options.only:
                continue
            record = run_stage(stage, session)
            results.write(session.out)
            print(
                f"{record['name']:<12} {record['status']:<14} {record['seconds']:6.1f} s  {record['detail']}",
                flush=True,
            )
        session.stop_background()
    found = results.write(out)
    print("", *reversed(sections(found)), out, sep="\n\n")  # a terminal shows the end
    return int(any(stage["status"] in ("failed", "timed out") for stage in found["stages"]))


def _options() -> argparse.Namespace:
    names = [stage.name for stage in STAGES]
    parser = argparse.ArgumentParser(prog="benchmarks/gpu/run.sh", description="Prove lit_fast on a GPU machine.")
    parser.add_argument("out", nargs="?", type=Path, help="folder for the results (gpu-results; dry run: a new one)")
    parser.add_argument("--minutes", type=float, default=5.0, help="for everything of this call (default: 5)")
    parser.add_argument("--only", nargs="+", choices=names, metavar="STAGE", help=f"of {', '.join(names)}")
    parser.add_argument(
        "--again", nargs="+", choices=names, default=[], metavar="STAGE", help="forget what was found by these"
    )
    parser.add_argument("--carry", type=Path, default=CARRY, help="folder that prepare.sh made (default: gpu-carry)")
    parser.add_argument("--dry-run", action="store_true", help="every stage on the CPU, tiny, in a copy of the tree")
    parser.add_argument("--summary", action="store_true", help="make the results of OUT's journal, and run nothing")
    parser.add_argument("--fail", choices=names, metavar="STAGE", help="let this stage fail, to see the others go on")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
