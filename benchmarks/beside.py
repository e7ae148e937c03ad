"""The step beside other work on the same cores: ``python -m benchmarks.beside --out DIR``.

The idle threads of OpenMP spin for milliseconds (spin), as briefly as lit_fast lets them (share, `lit_fast.openmp`), or
not at all (sleep). Each row is the median of one way of the step, alone or beside a load:

| load | what |
|---|---|
| alone | nothing else |
| trains | another process that trains with PyTorch on all cores, whose threads spin |
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import checkout, machine, run
from benchmarks.pairs import PAIRS, TINY
from lit_fast.bench.pairing import Pairs
from lit_fast.bench.ways import Problem, plain_step, runner_step
from lit_fast.openmp import SPINS

LOADS = ("alone", "trains")
# Of GOMP_SPINCOUNT; 300000 is what libgomp takes where nothing is set.
WAITS = {"spin": "300000", "share": SPINS, "sleep": "0"}
BATCH = 32


def problem_of(tiny: bool) -> Problem:
    """What is trained, always the same."""
    return (TINY if tiny else PAIRS[1]).problem(BATCH, "fp32", "cpu")


def measure(seconds: float, tiny: bool) -> dict[str, float]:
    """Seconds of a step, by way."""
    problem = problem_of(tiny)
    pairs = Pairs({"plain": plain_step(problem), "runner": runner_step(problem)}, "cpu")
    pairs.run(seconds)
    return {name: pairs.spread(name).median for name in pairs.times}


def train(tiny: bool) -> None:
    """Until it is killed; prints a line once it trains."""
    step = plain_step(problem_of(tiny))
    step()
    print("trains", flush=True)
    while True:
        step()


def process(wait: str, tiny: bool, *arguments: str) -> subprocess.Popen[str]:
    """This module in a process whose threads wait so."""
    environment = {**os.environ, "GOMP_SPINCOUNT": WAITS[wait]}
    environment.pop("OMP_WAIT_POLICY", None)
    command = [sys.executable, "-m", "benchmarks.beside", *arguments, *(["--tiny"] if tiny else [])]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=checkout.ROOT)


@contextmanager
def beside(load: str, tiny: bool) -> Iterator[None]:
    """While a load runs."""
    if load == "alone":
        yield
        return
    trains = process("spin", tiny, "--train")
    try:
        if not trains.stdout or not trains.stdout.readline():
            raise SystemExit("the load ended before it trained")
        yield
    finally:
        trains.kill()
        trains.communicate()


def rows(seconds: float, tiny: bool) -> Iterator[dict[str, Any]]:
    for load in LOADS:
        for wait in WAITS:
            with beside(load, tiny):
                done = process(wait, tiny, "--measure", str(seconds))
                printed, _ = done.communicate()
            if done.returncode:
                raise SystemExit(f"measuring failed ({load}, {wait}), status {done.returncode}")
            for way, median in json.loads(printed).items():
                row = {"suite": "beside", "setting": load, "wait": wait, "variant": way, "median_us": median * 1e6}
                print(f"{load:<10} {wait:<6} {way:<7} {median * 1e3:8.1f} ms", flush=True)
                yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="write DIR/<device>-beside.json")
    parser.add_argument("--seconds", type=float, default=20.0, help="of rounds at one setting")
    parser.add_argument("--tiny", action="store_true", help="sizes that only try the code")
    parser.add_argument("--measure", type=float, metavar="SECONDS", help=argparse.SUPPRESS)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(options.tiny)
    elif options.measure is not None:
        print(json.dumps(measure(options.measure, options.tiny)))
    else:
        content = run.results("cpu", f"python -m benchmarks.beside {' '.join(sys.argv[1:])}", [], tiny=options.tiny)
        for row in rows(options.seconds, options.tiny):
            content["rows"].append(row)
            if options.out:  # after each row: a run that is cut short loses none
                run.write(options.out / f"{machine.slug('cpu')}-beside.json", content)


if __name__ == "__main__":
    main()
