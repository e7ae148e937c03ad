"""table.md and report.png of train.sh, from the content of its results.json alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.train_plan import EPOCHS, TIME, WAYS, Run, runs
from lit_fast.figure import WAY_COLORS, legend, panels, save, whole_epochs
from lit_fast.files import atomic_write
from lit_fast.report.curves import curve, finite, history
from lit_fast.tables import markdown_table

_COLUMNS = (
    "network",
    "training",
    "compared at",
    "epochs",
    "seed",
    "images seen",
    "seconds",
    "images/s",
    "val %, best (epoch)",
    "test %, last",
    "test %, best",
    "state",
)
_DASHES = {EPOCHS: "-", TIME: "--"}


def write(content: Mapping[str, Any], out: Path, *, figure: bool) -> None:
    """Write the table, and the figure where there is something to draw and matplotlib to draw it."""
    text = markdown(content)
    atomic_write(out / "table.md", lambda path: path.write_text(text, encoding="utf-8"))
    if figure and (content["runs"] or any(content["begun"].values())):
        try:
            _draw(content, out / "report.png")
        except ImportError:
            print("no report.png: matplotlib is not installed")


def epochs_in(log: Path) -> list[dict[str, Any]]:
    """The epochs that a run's log.jsonl holds; its last line may be cut."""
    found = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            break
        if entry["event"] == "epoch":
            found.append(entry)
    return found


def markdown(content: Mapping[str, Any]) -> str:
    """The table, with what it was measured on."""
    title = f"# {content['networks'][1]} from {content['networks'][0]} on CIFAR-10"
    if content["dry_run"]:
        title = "# A dry run: tiny networks on made-up images; the numbers mean nothing"
    splits = content["splits"]
    parts = [
        title,
        f"**{content['data']}**: {splits['train']:,} to train on, {splits['val']:,} for validation; {splits['test']:,} "
        "test images."
        + (" Not the whole training set: compare nothing with published numbers." if content["partial"] else ""),
        markdown_table(_COLUMNS, [_teacher(content), *map(_cells, _all(content))], left=3),
        "Equal epochs: all three alike. LIT's time: as many epochs as fit into the seconds that LIT took. Seconds and "
        "images/s: training alone, with the capture of its graphs, without evaluation. Last: after the last epoch; "
        "best: the weights best on validation; both measured on the test images once, at the end.",
        *_schedules(content),
        "" if content["plan"] else "Nothing is planned yet: the trials that decide on the epochs have not ended.",
        *(f"Warning: {message}" for message in content["warnings"]),
        *(f"Failed: {name}: {message}" for name, message in content["failed"].items()),
        f"{content['device']}; Python {content['versions']['python']}, torch {content['versions']['torch']}, CUDA "
        f"{content['versions']['cuda'] or 'none'}; commit {content['commit']}; {content['date']}. "
        f"{', '.join(content['settings'])}.",
        f"```text\n{content['command']}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _teacher(content: Mapping[str, Any]) -> tuple[str, ...]:
    test = (content["teacher"].get("accuracy") or {}).get("test_last")
    shown = "-" if test is None else f"{test:.2f}"
    return (content["networks"][0], "given", *["-"] * 7, shown, "-", "the teacher")


def _all(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every run of the first seed, begun or not, and those of further seeds that were begun."""
    plan = content["plan"]
    if not plan:
        return
    finished = {run["name"]: run for run in content["runs"]}
    rows = []
    for run in runs(plan, content["seeds"]):
        done, begun = finished.get(run.name), content["begun"].get(run.name)
        if done is not None or begun or run.seed == 0:
            rows.append(_row(content, run, done, begun or []))
    for way in ("kd", "scratch"):
        epochs = plan["equal_time"].get(way)
        if epochs is None or epochs <= plan["epochs"]:
            reason = "missing: LIT's time is not known yet" if epochs is None else "as above: no faster than LIT"
            rows.append({**_row(content, Run(way, 0, 0, TIME), None, []), "state": reason})
    order = [(at, way) for at in (EPOCHS, TIME) for way in WAYS]
    yield from sorted(rows, key=lambda row: (row["run"].seed, order.index((row["run"].compared_at, row["run"].way))))


def _row(
    content: Mapping[str, Any], run: Run, done: Mapping[str, Any] | None, begun: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    row: dict[str, Any] = {"network": content["networks"][1], "run": run, "state": "not begun"}
    if done is not None:
        return {**row, **done, "state": "done"}
    if begun:
        last = begun[-1]
        best = max(begun, key=lambda entry: entry["val_accuracy"])
        row |= {
            "images": last["images"],
            "seconds": last["seconds"],
            "state": f"epoch {last['epoch']} of {run.epochs} so far",
        }
        row |= {"accuracy": {"val_best": best["val_accuracy"], "best_epoch": best["epoch"]}}
    return {**row, **({"state": "failed"} if run.name in content["failed"] else {})}


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    run, accuracy, seconds, images = row["run"], row.get("accuracy") or {}, row.get("seconds"), row.get("images")
    val = accuracy.get("val_best")
    return (
        row["network"],
        run.way,
        run.compared_at,
        str(run.epochs or "-"),
        str(run.seed),
        "-" if images is None else f"{images:,}",
        "-" if seconds is None else f"{seconds:.1f}",
        "-" if not seconds or not images else f"{images / seconds:,.0f}",
        "-" if val is None else f"{val:.2f} ({accuracy['best_epoch']})",
        *("-" if accuracy.get(key) is None else f"{accuracy[key]:.2f}" for key in ("test_last", "test_best")),
        row["state"],
    )


def _schedules(content: Mapping[str, Any]) -> list[str]:
    """The learning rates of the runs at equal epochs; the others' milestones move in proportion."""
    lines = []
    for way, phases in content["schedules"].items():
        said = []
        for phase in phases:
            drops = ", ".join(f"{milestone:.3g}" for milestone in phase["milestones"])
            said.append(f"{phase['lr']:g} for {phase['epochs']} epochs, a tenth after {drops}")
        lines.append(f"{way}: {'; then '.join(said)}")
    if not lines:
        return []
    return ["Learning rates, the paper's schedules in proportion to the epochs: " + ". ".join(lines) + "."]


def _draw(content: Mapping[str, Any], path: Path) -> None:
    figure, ((by_epoch, by_time),) = panels(1, 2, (11.0, 4.5))
    for ax, key, label in ((by_epoch, "epoch", "epochs"), (by_time, "seconds", "seconds of training")):
        for (way, compared_at), together in _grouped(content).items():
            curve(
                ax,
                together,
                lambda run, key=key: finite((entry[key], entry["val_accuracy"]) for entry in history(run)),
                WAY_COLORS[way],
                _DASHES[compared_at],
            )
            ax.plot([], [], color=WAY_COLORS[way], linestyle=_DASHES[compared_at], label=f"{way}, {compared_at}")
        ax.set(xlabel=label, ylabel="validation accuracy, %")
    whole_epochs(by_epoch)
    legend(by_time)
    figure.suptitle(f"{' to '.join(content['networks'])}, {content['data']}; {content['device']}", fontsize=10)
    save(figure, path)


def _grouped(content: Mapping[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in _all(content):
        run = row["run"]
        found = row.get("history") or content["begun"].get(run.name)
        if found and run.way in WAYS:
            groups.setdefault((run.way, run.compared_at), []).append({"history": found})
    return groups
