"""Noticing that a step waits for the device, before it is captured: torch's warnings, without a device."""

from __future__ import annotations

import contextlib
import threading
import warnings

import pytest
import torch

from lit_fast.errors import NotCapturable
from lit_fast.step import cuda_graphs as graphs
from lit_fast.step.cuda_graphs import graphs_for

MESSAGE = "called a synchronizing CUDA operation (Triggered internally at ...)"


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The modes that were set."""
    found: list[object] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", found.append)
    return found


def wait() -> None:
    warnings.warn(MESSAGE, stacklevel=1)


def wait_in_a_thread() -> None:
    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()


def test_a_wait_is_told_with_its_place(modes: list[object]) -> None:
    with pytest.raises(NotCapturable, match=r"it waits for the GPU at .*test_graphs.py:\d+$"), graphs._no_waiting():
        wait()
    assert modes == ["warn", 0]


def test_other_warnings_pass(modes: list[object]) -> None:
    with pytest.warns(UserWarning, match="something else"), graphs._no_waiting():
        warnings.warn("something else", stacklevel=1)
    assert modes == ["warn", 0]


def test_other_threads_may_wait(modes: list[object]) -> None:
    with pytest.warns(UserWarning, match="synchronizing"), graphs._no_waiting():
        wait_in_a_thread()
    assert modes == ["warn", 0]


def test_torchs_note_on_the_mode_is_no_error(modes: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says once in a process that the mode is a prototype, after it has set it."""

    def note(mode: object) -> None:
        modes.append(mode)
        warnings.warn("Synchronization debug mode is a prototype feature and does not yet detect all", stacklevel=2)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", note)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with graphs._no_waiting():
            pass
    assert modes == ["warn", 0]


def test_a_mode_that_is_set_although_setting_it_raises_goes_back(
    modes: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(mode: object) -> None:
        modes.append(mode)
        if mode == "warn":
            raise RuntimeError("not here")

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", refuse)
    with pytest.raises(RuntimeError, match="not here"), graphs._no_waiting():
        pass
    assert modes == ["warn", 0]


class Stream:
    """Notes who waits for whom."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log, self.device = name, log, None

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.mark.filterwarnings("ignore:called a synchronizing")
def test_the_caller_waits_for_the_side_stream_also_after_an_error(
    modes: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be captured has begun on the side stream; the caller restores the same tensors."""
    log: list[str] = []
    caller = Stream("caller", log)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: caller)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    captures = graphs.CudaGraphs.__new__(graphs.CudaGraphs)
    captures._stream = Stream("side", log)  # type: ignore[assignment]

    def run() -> torch.Tensor:
        log.append("run")
        wait()
        return torch.zeros(())

    with pytest.raises(NotCapturable):
        captures.warm_up(run)
    assert log == ["side waits for caller", *["run"] * graphs.WARM_UPS, "caller waits for side"]


def test_an_error_comes_through_and_the_mode_goes_back(modes: list[object]) -> None:
    with pytest.raises(ZeroDivisionError), graphs._no_waiting():
        _ = 1 / 0
    assert modes == ["warn", 0]


def test_devices_without_graphs() -> None:
    with pytest.raises(NotCapturable, match="the student is on cpu, and only CUDA devices capture"):
        graphs_for(torch.device("cpu"))
