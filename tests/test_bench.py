"""The step's measuring code: pairs, probes, the ways to compute a step, the picture of one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_graphs import RecordedGraphs

import lit_fast as lf
from lit_fast.bench import probes, step, timeline, ways
from lit_fast.bench.pairing import FEWEST, MOST, Pairs, spread
from lit_fast.bench.timeline import Bar
from lit_fast.step import capture


def problem(batch: int = 4, **options: Any) -> ways.Problem:
    torch.manual_seed(0)
    teacher, student = (lf.split(lf.models.ResNet(depth)) for depth in (14, 8))
    return ways.Problem(teacher, student, torch.randn(batch, 3, 8, 8), torch.randint(0, 10, (batch,)), **options)


# -- pairing -----------------------------------------------------------------------------------------------------------


def test_all_variants_are_timed_in_every_round_and_ratios_are_of_pairs() -> None:
    pairs = Pairs({"slow": lambda: time.sleep(0.004), "fast": lambda: time.sleep(0.001)}, "cpu")
    pairs.run(0.1)
    assert FEWEST <= len(pairs.times["slow"]) == len(pairs.times["fast"]) <= MOST
    assert 2 < pairs.ratio("fast", "slow") < 4.5
    assert pairs.spread("slow").low <= pairs.spread("slow").median <= pairs.spread("slow").high


def test_a_variant_that_raises_is_dropped_and_the_others_go_on() -> None:
    calls = []

    def breaks() -> None:
        calls.append(1)
        if len(calls) > 4:
            raise ValueError("no more")

    pairs = Pairs({"breaks": breaks, "good": lambda: None}, "cpu")
    for _ in range(5):
        pairs.round()
    assert pairs.failed == {"breaks": "ValueError: no more"}
    assert list(pairs.times) == ["good"]
    assert len(pairs.times["good"]) == 5


def test_the_spread_is_median_and_quartiles() -> None:
    assert spread([5.0, 1.0, 2.0, 3.0, 4.0]) == (3.0, 2.0, 4.0)
    assert spread([7.0]) == (7.0, 7.0, 7.0)


# -- probes ------------------------------------------------------------------------------------------------------------


def test_peak_memory_is_what_was_held_at_a_time() -> None:
    kept = [torch.empty(1 << 19, dtype=torch.uint8)]

    def one_after_the_other() -> list[torch.Tensor]:
        for _ in range(3):
            last = torch.empty(1 << 20, dtype=torch.uint8)
            del last
        return [torch.empty(1 << 18, dtype=torch.uint8)]

    def together() -> list[torch.Tensor]:
        return [torch.empty(1 << 20, dtype=torch.uint8) for _ in range(3)]

    assert probes.peak_bytes(one_after_the_other, "cpu") == pytest.approx(1 << 20, rel=0.01)
    assert probes.peak_bytes(together, "cpu") == pytest.approx(3 << 20, rel=0.01)
    assert probes.peak_bytes(lambda: kept, "cpu") == 1 << 19  # memory that is used again


# -- the ways ----------------------------------------------------------------------------------------------------------


def test_the_captured_way_is_compared_from_its_first_step_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeing that it captures takes a step; float32's band is narrower than what a step of training changes."""
    monkeypatch.setattr(capture, "graphs_for", lambda device: RecordedGraphs())
    given = problem()
    assert ways.drift(ways.captured_step(given), ways.eager_step(given)) <= step.BANDS["fp32"]
    late, behind = ways.eager_step(given), ways.eager_step(given)
    late()
    assert ways.drift(late, behind) > step.BANDS["fp32"]


def test_a_repeated_way_trains_as_often_and_gives_the_last_result() -> None:
    given = problem()
    one, many = ways.eager_step(given), ways.repeated(ways.eager_step(given), 3)
    assert ways.steps_of(many) == 3
    assert ways.drift(many, one) == 0.0


def test_float32_may_differ_more_where_cuda_multiplies_in_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem()
    assert step.band(given) == step.BANDS["fp32"]
    given.device = "cuda"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert step.band(given) == step.TF32_BAND
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert step.band(given) == step.BANDS["fp32"]


def test_every_way_of_the_step_trains_the_same() -> None:
    found = step.measured(problem(), step.builders(problem(), compiled=False), seconds=0.1)
    assert {row["variant"]: row["status"] for row in found} == dict.fromkeys(("plain", "eager", "runner"), "measured")
    for row in found:
        assert 0 < row["quartiles_us"][0] <= row["median_us"] <= row["quartiles_us"][1]
        assert row["images_s"] == pytest.approx(4e6 / row["median_us"])
        assert row["peak_bytes"] > 0


def test_without_labels_there_is_the_ir_loss_alone() -> None:
    torch.manual_seed(0)
    teacher, student = (lf.split(lf.models.ResNet(depth)) for depth in (14, 8))
    images = torch.randn(4, 3, 8, 8)
    with pytest.raises(ValueError, match="labels: expected class indices, got None"):
        ways.Problem(teacher, student, images, None)
    one = ways.Problem(teacher, student, images, None, beta=0.0)
    found = step.measured(one, step.builders(one, compiled=False), seconds=0.1)
    assert {row["status"] for row in found} == {"measured"}


def test_a_way_that_trains_something_else_is_named() -> None:
    right, other = problem(), problem(alpha=0.5)
    built = {**step.builders(right, compiled=False), "runner": lambda: ways.runner_step(other)}
    found = {row["variant"]: row["status"] for row in step.measured(right, built, seconds=0.1)}
    assert found["plain"] == found["eager"] == "measured"
    assert "its loss differs from eager's by" in found["runner"]


def test_a_way_is_left_out_after_the_deadline_if_it_has_to_be_compiled() -> None:
    one = problem()
    chosen = {"eager": lambda: ways.eager_step(one), "compile:default": lambda: pytest.fail("compiled")}
    found = step.measured(one, chosen, deadline=time.monotonic() - 1, seconds=0.1)
    assert {row["variant"]: row["status"] for row in found} == {"eager": "measured", "compile": "out of time"}


def test_a_problem_leaves_its_networks_as_they_are() -> None:
    one = problem()
    before = {name: value.clone() for name, value in one.student.state_dict().items()}
    ways.runner_step(one)()
    assert all(torch.equal(before[name], value) for name, value in one.student.state_dict().items())
    assert not next(one.student.parameters()).is_contiguous(memory_format=torch.channels_last)


def test_the_work_of_a_step_is_that_of_the_method() -> None:
    torch.manual_seed(0)
    teacher, student = lf.split(lf.models.resnet110()), lf.split(lf.models.resnet20())
    one = ways.Problem(teacher, student, torch.randn(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64))
    operations, moved = ways.work(one)
    # method, "Models": teacher 253 MMACs, composed forward and backward 122, teacher-fed 121 of which 43 are double.
    assert operations / 2 / 2 / 1e6 == pytest.approx(253 + 122 + 121 - 43, rel=0.01)
    assert moved > 4 * 7 * 269_722


# -- the picture -------------------------------------------------------------------------------------------------------


def event(cat: str, name: str, start: float, end: float, thread: int = 1, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": end - start, "tid": thread, "args": args}


def test_a_trace_is_read_by_thread_stream_and_part() -> None:
    annotated = [("step", 100, 200), ("teacher", 110, 130), ("backward", 150, 190)]
    events = [
        *(event("user_annotation", f"lit_fast: {name}", start, end) for name, start, end in annotated),
        event("cpu_op", "aten::conv2d", 110, 125),
        event("cpu_op", "aten::_convolution", 111, 124),  # inside the one before
        event("cpu_op", "aten::zeros", 131, 132),
        event("cpu_op", "aten::mul", 160, 170, thread=2),
        event("cpu_op", "aten::early", 10, 20),
        event("cuda_runtime", "cudaLaunchKernel", 112, 113, correlation=7),
        event("kernel", "conv", 140, 155, thread=0, stream=5, correlation=7),
        event("gpu_memcpy", "copy", 205, 210, thread=0, stream=5, correlation=8),
    ]
    found = timeline._read(events, "one")
    assert found.total == 110  # to the end of the last kernel
    assert found.rows == {
        "CPU thread 1": [Bar(10, 25, "teacher"), Bar(31, 32, "between")],
        "CPU thread 2": [Bar(60, 70, "backward")],
        "GPU stream 5": [Bar(40, 55, "teacher"), Bar(105, 110, "between")],
    }
    assert found.busy("GPU stream 5") == {"teacher": 15, "between": 5}


@pytest.mark.usefixtures("drawn")
def test_a_step_is_recorded_part_by_part_and_drawn(tmp_path: Path) -> None:
    one = problem()
    one.mark = timeline.mark
    lit = ways.lit_step(one, "eager", "eager")
    lit.mark = timeline.mark
    recorded = [
        timeline.record(ways.plain_step(one), "plain", tmp_path / "plain.json"),
        timeline.record(lambda: lit(one.inputs, one.labels), "eager", tmp_path / "eager.json"),
    ]
    for found in recorded:
        parts = {bar.part for bars in found.rows.values() for bar in bars}
        assert set(timeline.PARTS) <= parts
        assert all(0 <= bar.start <= bar.end <= found.total for bars in found.rows.values() for bar in bars)
    timeline.draw(recorded, tmp_path / "step.svg", "a step")
    drawn = (tmp_path / "step.svg").read_text()
    assert all(f"{found.title}: {found.total / 1e3:.1f} ms" in drawn for found in recorded)
