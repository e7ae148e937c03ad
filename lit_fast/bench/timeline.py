"""Where the time of a step goes: one call under torch's profiler, as a trace file and as a picture."""

from __future__ import annotations

import bisect
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from lit_fast.bench.ways import Way
from lit_fast.figure import BLUE, DARK, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, panels, save
from lit_fast.files import atomic_write

__all__ = ["PARTS", "Bar", "Timeline", "draw", "mark", "record"]

PARTS = ("teacher", "student, composed", "student, teacher-fed", "loss", "backward", "update")
_REST = "between"  # what is in none of them
_PREFIX = "lit_fast: "
_WARM_UPS = 5
_COLORS = dict(zip((*PARTS, _REST), (BLUE, SKY, GREEN, ORANGE, VERMILION, PURPLE, GREY)))


def mark(part: str) -> AbstractContextManager[Any]:
    """What a step's ``mark`` has to be while it is recorded."""
    return record_function(_PREFIX + part)


class Bar(NamedTuple):
    """Something that ran: microseconds from the start of the step, and the part of the step that it belongs to."""

    start: float
    end: float
    part: str


class Timeline(NamedTuple):
    """One step.

    Attributes:
        title: what was recorded.
        total: microseconds.
        rows: what ran on each thread of the host and each stream of the GPU, by name.
    """

    title: str
    total: float
    rows: dict[str, list[Bar]]

    def busy(self, row: str) -> dict[str, float]:
        """Microseconds of each part on a row."""
        found = dict.fromkeys((*PARTS, _REST), 0.0)
        for bar in self.rows[row]:
            found[bar.part] += bar.end - bar.start
        return {part: time for part, time in found.items() if time}


def record(way: Way, title: str, trace: Path) -> Timeline:
    """Record one call, after some that warm up.

    Args:
        way: a step whose ``mark`` is `mark`.
        title: for the picture.
        trace: file for the profiler's trace (chrome://tracing, ui.perfetto.dev).
    """
    for _ in range(_WARM_UPS):
        way()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        with record_function(_PREFIX + "step"):
            way()
        if cuda:
            torch.cuda.synchronize()
    atomic_write(trace, lambda path: profiler.export_chrome_trace(str(path)))
    events = json.loads(trace.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    return _read([event for event in events if event.get("ph") == "X"], title)


def _read(events: Sequence[Mapping[str, Any]], title: str) -> Timeline:
    """The timeline of a trace's complete events (Chrome's trace event format; times in microseconds)."""
    marks = sorted(
        (event["ts"], event["ts"] + event["dur"], event["name"].removeprefix(_PREFIX))
        for event in events
        if event.get("cat") == "user_annotation" and event["name"].startswith(_PREFIX)
    )
    whole = next(interval for interval in marks if interval[2] == "step")
    parts = _Parts([interval for interval in marks if interval[2] in PARTS])
    rows: dict[str, list[Bar]] = {}
    threads = _outermost([event for event in events if event.get("cat") == "cpu_op"])
    for number, (_, thread) in enumerate(sorted(threads.items(), key=lambda item: item[1][0]["ts"]), 1):
        inside = [event for event in thread if whole[0] <= event["ts"] < whole[1]]
        if inside:
            rows[f"CPU thread {number}"] = [
                Bar(event["ts"] - whole[0], event["ts"] + event["dur"] - whole[0], parts.at(event["ts"]))
                for event in inside
            ]
    launched = {
        event["args"]["correlation"]: event["ts"]
        for event in events
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
    }
    end = whole[1]
    for event in sorted(events, key=lambda event: event["ts"]):
        if event.get("cat") not in ("kernel", "gpu_memcpy", "gpu_memset"):
            continue
        part = parts.at(launched.get(event["args"].get("correlation"), float("-inf")))
        bar = Bar(event["ts"] - whole[0], event["ts"] + event["dur"] - whole[0], part)
        rows.setdefault(f"GPU stream {event['args'].get('stream', event['tid'])}", []).append(bar)
        end = max(end, event["ts"] + event["dur"])
    return Timeline(title, end - whole[0], rows)


class _Parts:
    """Which part of the step runs at a time; they do not overlap."""

    def __init__(self, intervals: Sequence[tuple[float, float, str]]) -> None:
        self._intervals = intervals
        self._starts = [start for start, _, _ in intervals]

    def at(self, time: float) -> str:
        place = bisect.bisect_right(self._starts, time) - 1
        if place < 0 or time >= self._intervals[place][1]:
            return _REST
        return self._intervals[place][2]


def _outermost(events: Sequence[Mapping[str, Any]]) -> dict[Any, list[Mapping[str, Any]]]:
    """By thread, the events that no other of that thread contains."""
    threads: dict[Any, list[Mapping[str, Any]]] = {}
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        kept = threads.setdefault(event["tid"], [])
        if not kept or event["ts"] >= kept[-1]["ts"] + kept[-1]["dur"]:
            kept.append(event)
    return threads


def draw(timelines: Sequence[Timeline], path: Path, heading: str) -> None:
    """One panel for each timeline, all on one axis of milliseconds, as a PNG (or what the suffix says).

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.patches import Patch

    counts = [len(timeline.rows) for timeline in timelines]
    size = 11.0, 1.5 + 0.45 * sum(counts) + 0.55 * len(counts)
    figure, axes = panels(len(counts), 1, size, sharex=True, height_ratios=[n + 0.6 for n in counts])
    for ax, timeline in zip(axes[:, 0], timelines):
        for place, bars in enumerate(timeline.rows.values()):
            for part in (*PARTS, _REST):
                spans = [(bar.start / 1e3, (bar.end - bar.start) / 1e3) for bar in bars if bar.part == part]
                ax.broken_barh(spans, (place - 0.38, 0.76), color=_COLORS[part], linewidth=0)
        ax.axvline(timeline.total / 1e3, color=DARK, linewidth=0.8, linestyle="--")
        ax.set_title(f"{timeline.title}: {timeline.total / 1e3:.1f} ms", loc="left", fontsize=10)
        ax.set_yticks(range(len(timeline.rows)), list(timeline.rows), fontsize=8)
        ax.set_ylim(len(timeline.rows) - 0.4, -0.6)
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.grid(visible=False, axis="y")
    axes[-1, 0].set_xlim(0, 1.02 * max(timeline.total for timeline in timelines) / 1e3)
    axes[-1, 0].set_xlabel("milliseconds from the start of the step (recorded under the profiler, which slows it)")
    shown = [
        part
        for part in (*PARTS, _REST)
        if any(bar.part == part for t in timelines for r in t.rows.values() for bar in r)
    ]
    figure.legend(
        handles=[Patch(color=_COLORS[part], label=part) for part in shown],
        loc="outside upper center", ncols=len(shown), fontsize=8, frameon=False, title=heading,
    )  # fmt: skip
    save(figure, path)
