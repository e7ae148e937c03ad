"""Runs a study: teachers first, then every run that has not ended, one after another or several at a time."""

from __future__ import annotations

import itertools
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lit_fast.errors import NonFiniteLoss, ReportError, RunFolderError, StudyFailed
from lit_fast.files import atomic_write, make_folder, refuse_odd, write_json
from lit_fast.gan.any_experiment import run_any_experiment, train_any_teacher
from lit_fast.paper import gan as generators
from lit_fast.paper.budgets import Budget
from lit_fast.paper.identity import digest
from lit_fast.paper.plan import GanScores, Planned, Study
from lit_fast.runs.environment import describe_environment, resolve_device
from lit_fast.runs.results import load_results, picked
from lit_fast.training.interrupt import STOP_WITH_STDIN

__all__ = ["planned_content", "run_study"]


def run_study(
    name: str,
    study: Study,
    budget: tuple[str, Budget],
    runs: Sequence[Planned],
    folder: Path,
    *,
    jobs: int | None = None,
    console: Console | None = None,
) -> Path:
    """Do what is left of a study.

    Runs lie under ``folder/runs`` by a hash of their settings, so studies that share a folder share runs, and what was
    interrupted goes on where it was.

    Args:
        name, study, budget: of ``runs`` (`plan`).
        folder: of all studies.
        jobs: runs at a time, each in a process of its own and, where there are GPUs, on one of them. Default: as many
            as there are GPUs; 1 trains in this process.

    Returns:
        the JSON file of the results, which is written after every run.

    Raises:
        StudyFailed: processes failed. Interrupted, ValueError, OSError: as an experiment.
    """
    console = console or Console()
    shown = _Shown(folder, name, study, budget, runs)
    # A teacher is trained once for all runs that have it.
    given: dict[str, dict[str, Path]] = {}
    ready = []
    for run in runs:
        experiment = run.experiment
        if run.teacher is not None:
            key = digest(run.teacher)
            if key not in given:
                console.print(f"teacher of {run.group}: {run.teacher.teacher.label}", highlight=False)
                own = make_folder(folder / "teachers") / key
                given[key] = train_any_teacher(run.teacher, own, console=console)
            teacher = experiment.teacher.model_copy(update=given[key])
            experiment = experiment.model_copy(update={"teacher": teacher})
        ready.append(run._replace(experiment=experiment))
    workers = jobs or max(1, torch.cuda.device_count())
    if workers == 1:
        for i, run in enumerate(ready):
            console.print(f"[{i + 1}/{len(ready)}] {_title(run)}", highlight=False, markup=False)
            shown.done(i, *_in_this_process(run, folder, console))
    else:
        _in_processes(ready, folder, workers, shown, console)
    return shown.path


def _title(run: Planned) -> str:
    return f"{run.group}, {run.arm.name}: {run.network} {run.variant}, seed {run.seed}"


def _in_this_process(run: Planned, folder: Path, console: Console) -> tuple[str, Path]:
    own = _run_folder(folder, run)
    try:
        run_any_experiment(run.experiment, own, resume=True, console=console)
    except NonFiniteLoss as error:  # a finding, such as of a learning rate without the IR loss
        return f"diverged: {error}", own
    return "done", own


def _run_folder(folder: Path, run: Planned) -> Path:
    own = make_folder(folder / "runs") / digest(run.experiment)
    if own.is_symlink():
        raise RunFolderError(f"{own} is a symbolic link, which is not followed: remove it")
    return own


def _in_processes(runs: Sequence[Planned], folder: Path, workers: int, shown: _Shown, console: Console) -> None:
    places: queue.Queue[int] = queue.Queue()
    for place in range(workers):
        places.put(place)

    def one(i: int, alive: int) -> None:
        own = _run_folder(folder, runs[i])
        config, log = own.with_suffix(".yaml"), own.with_suffix(".log")
        atomic_write(config, lambda p: p.write_text(runs[i].experiment.to_yaml(), encoding="utf-8"))
        refuse_odd(log)
        place = places.get()
        try:
            command = [sys.executable, "-m", "lit_fast", "distill", "--config", str(config), "--run-dir", str(own)]
            environment = {**os.environ, **_device(place), STOP_WITH_STDIN: "1"}
            with log.open("a", encoding="utf-8") as output:
                code = subprocess.run(
                    [*command, "--resume"], env=environment, stdin=alive, stdout=output, stderr=output, check=False
                ).returncode
        finally:
            places.put(place)
        ends = {0: "done", NonFiniteLoss.exit_code: "diverged: see its log"}
        status = ends.get(code, f"failed with status {code}: see {log}")
        console.print(f"{_title(runs[i])}: {status}", highlight=False, markup=False)
        shown.done(i, status, own)

    with _alive() as (alive, stop), ThreadPoolExecutor(workers) as pool:
        try:
            list(pool.map(one, range(len(runs)), itertools.repeat(alive)))
        except BaseException:  # Ctrl-C, or a results file that cannot be written: those under way save and stop
            stop()
            pool.shutdown(cancel_futures=True)
            raise
    failed = [entry["status"] for entry in shown.runs if entry["status"].startswith("failed")]
    if failed:
        raise StudyFailed(f"{len(failed)} of {len(runs)} runs failed; the first {failed[0]}")


@contextmanager
def _alive() -> Iterator[tuple[int, Callable[[], None]]]:
    """A pipe for the standard input of other processes, whose end tells them that this one has gone, and how to end it.

    The system closes it whatever this process dies of.
    """
    reading, writing = os.pipe()
    ends = [writing]

    def stop() -> None:
        while ends:
            os.close(ends.pop())

    try:
        yield reading, stop
    finally:
        stop()
        os.close(reading)


def _device(place: int) -> dict[str, str]:
    """One of the GPUs that this process sees, for a process of its own."""
    if not torch.cuda.is_available():
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    return {"CUDA_VISIBLE_DEVICES": names[place % len(names)]}


def _found(folder: Path, entry: dict[str, Any]) -> dict[str, Any] | None:
    """What the results file keeps of a classifier's run, or of its student pruned; None where that has not ended."""
    results = load_results(folder)["results"]
    wanted = ("student", entry["network"], entry.get("sparsity"))
    student = next((r for r in results if (r["role"], r["model"], r.get("sparsity")) == wanted), None)
    if student is None:
        return None
    sizes = ("layers", "parameters", "mmacs", "compression")
    pruned = () if entry.get("sparsity") is None else ("nonzero_parameters",)
    teacher = next((r for r in results if r["role"] == "teacher"), None)
    if teacher is None:
        raise ReportError(f"{folder / 'results.json'}: expected the result of a teacher, there is none")
    return {
        **picked(student, *sizes, "accuracy", "epochs", "seconds", "images_per_second", *pruned),
        "teacher": {"network": teacher["model"], "accuracy": teacher["accuracy"]},
    }


def _entry(run: Planned, sparsity: float | None) -> dict[str, Any]:
    """What the results file says of a run, or of its student pruned, before it has ended."""
    paper = run.arm.paper if sparsity is None else None  # an arm's number is of the student as it was trained
    return {
        "group": run.group,
        "arm": run.arm.name,
        "at": run.arm.at,
        "paper": paper.model_dump() if isinstance(paper, GanScores) else paper,
        "paper_deviation": run.arm.paper_deviation,
        "network": run.network,
        "variant": run.variant,
        **({} if sparsity is None else {"sparsity": sparsity}),
        "seed": run.seed,
        "status": "not run",
    }


def planned_content(
    name: str, study: Study, budget: tuple[str, Budget], runs: Sequence[Planned]
) -> tuple[dict[str, Any], list[list[dict[str, Any]]]]:
    """A results file before any run has ended: its head, and the entries of each run."""
    head = {
        "study": name,
        "title": study.title,
        "source": study.source,
        "task": study.task,
        "axis": study.axis,
        "budget": {"name": budget[0], **budget[1].model_dump(mode="json")},
        "dataset": sorted({run.experiment.data.name for run in runs}),
        "environment": describe_environment(resolve_device(runs[0].experiment.step.device)),
    }
    if study.task == "gan":
        head |= generators.head(study, runs)
    return head, [[_entry(run, sparsity) for sparsity in run.sparsities] for run in runs]


class _Shown:
    """The results file of a study: every run, whether it has ended or not."""

    def __init__(
        self, folder: Path, name: str, study: Study, budget: tuple[str, Budget], runs: Sequence[Planned]
    ) -> None:
        self.path = folder / f"{name}-{budget[0]}.json"
        folder.mkdir(parents=True, exist_ok=True)
        self._head, self._entries = planned_content(name, study, budget, runs)
        self.runs = [entry for entries in self._entries for entry in entries]
        self._one_at_a_time = threading.Lock()  # runs end in threads of their own
        self._write()

    def done(self, number: int, status: str, folder: Path) -> None:
        """A run has ended; its results are in ``folder``: all of them, or of one that diverged those before."""
        with self._one_at_a_time:
            for entry in self._entries[number]:
                entry["folder"] = folder.name
                found = self._results(entry, status, folder)
                if found is None:
                    entry["status"] = status
                    break
                entry |= {"status": "done", **found}
            self._write()

    def _results(self, entry: dict[str, Any], status: str, folder: Path) -> dict[str, Any] | None:
        if self._head["task"] == "gan":
            return generators.found(folder) if status == "done" else None
        return None if status.startswith("failed") else _found(folder, entry)

    def _write(self) -> None:
        write_json(self.path, {**self._head, "runs": self.runs})
