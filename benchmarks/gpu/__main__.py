"""Runs the stages one after the other; see run.sh."""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.session import Session, commit
from benchmarks.gpu.stages import STAGES, run_stage
from benchmarks.gpu.summary import sections


def main() -> int:
    """Exit status: 0, or 1 if a stage failed or was cut short (a missed bar is neither)."""
    options = _options()
    whole = 60 * options.minutes
    deadline = time.monotonic() + whole
    out = options.out or Path(tempfile.mkdtemp(prefix="lit_fast-dry-run-") if options.dry_run else "gpu-results")
    out.mkdir(parents=True, exist_ok=True)
    for name in ("results.json", "summary.md", "log.txt", "loss.png"):  # of an earlier run
        (out / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="lit_fast-gpu-", ignore_cleanup_errors=True) as scratch:
        session = Session(out.resolve(), Path(scratch).resolve(), deadline, options.dry_run, options.fail)
        session.results = {
            "device": "unknown",
            "kind": session.device,
            "dry_run": options.dry_run,
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "commit": commit(),
            "command": shlex.join(["benchmarks/gpu/run.sh", *sys.argv[1:]]),
            "minutes": options.minutes,
            "stages": [],
        }
        for stage in STAGES:
            start = time.monotonic()
            chosen = not options.only or stage.name in options.only
            fields = run_stage(stage, session, whole) if chosen else {"status": "not chosen", "detail": ""}
            record = {"name": stage.name, **fields, "seconds": time.monotonic() - start}
            session.results = {**session.facts, **session.results}
            if session.facts:
                session.results["device"] = "cpu (dry run)" if options.dry_run else session.facts["device"]
            session.results["stages"].append(record)
            session.save()
            print(
                f"{record['name']:<12} {record['status']:<14} {record['seconds']:6.1f} s  {record['detail']}",
                flush=True,
            )
        parts = sections(session.results)
    (out / "summary.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print("", *reversed(parts), out, sep="\n\n")  # a terminal shows the end
    return int(any(stage["status"] in ("failed", "timed out") for stage in session.results["stages"]))


def _options() -> argparse.Namespace:
    names = [stage.name for stage in STAGES]
    parser = argparse.ArgumentParser(prog="benchmarks/gpu/run.sh", description="Prove lit_fast on a GPU machine.")
    parser.add_argument("out", nargs="?", type=Path, help="folder for the results (gpu-results; dry run: a new one)")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything together (default: 8)")
    parser.add_argument("--only", nargs="+", choices=names, metavar="STAGE", help=f"of {', '.join(names)}")
    parser.add_argument("--dry-run", action="store_true", help="every stage on the CPU, tiny, in a copy of the tree")
    parser.add_argument("--fail", choices=names, metavar="STAGE", help="let this stage fail, to see the others go on")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
