"""Noticing that a step waits for the device, before it is captured: torch's warnings, without a device."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch

from lit_fast import graphs
from lit_fast.graphs import NotCapturable, graphs_for

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


def test_an_error_comes_through_and_the_mode_goes_back(modes: list[object]) -> None:
    with pytest.raises(ZeroDivisionError), graphs._no_waiting():
        _ = 1 / 0
    assert modes == ["warn", 0]


def test_devices_without_graphs() -> None:
    with pytest.raises(NotCapturable, match="the student is on cpu, and only CUDA devices capture"):
        graphs_for(torch.device("cpu"))
