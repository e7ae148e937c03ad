"""Passes side by side: the same numbers, and no tensor is touched on a stream that has not waited for it.

Streams are stood in for by a detector of races: every operation is dated by the stream it is given to, a wait hands on
what the other stream knows, and an operation must know of all that was done to the tensors it touches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lit_fast as lf
import lit_fast.streams

CALLER = -1
Clock = dict[int, int]  # of each stream, the number of its last operation that is known


class Race(Exception):
    pass


class Streams(TorchDispatchMode):
    """In place of `lit_fast.streams.SideStreams`; `skip`: the number of a wait that is left out."""

    def __init__(self, skip: int | None = None) -> None:
        super().__init__()
        self.current, self.skip, self.waits, self.used = CALLER, skip, 0, {CALLER}
        self.known: dict[int, Clock] = {}
        self.read: dict[int, Clock] = {}  # by storage: of each stream, its last operation that read it
        self.written: dict[int, Clock] = {}
        self.kept: list[Tensor] = []  # so that no address is used twice

    @contextmanager
    def beside(self, number: int, after: int | None = None) -> Iterator[None]:
        self._wait(number, self.current if after is None else after)
        before, self.current = self.current, number
        self.used.add(number)
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def backward(self) -> Iterator[None]:
        yield
        self.join()

    def join(self) -> None:
        for number in sorted(self.used - {CALLER}):
            self._wait(self.current, number)

    def _wait(self, waiting: int, other: int) -> None:
        self.waits += 1
        if self.waits - 1 != self.skip:
            ours, theirs = self._clock(waiting), self._clock(other)
            self.known[waiting] = {s: max(ours.get(s, 0), theirs.get(s, 0)) for s in {*ours, *theirs}}

    def _clock(self, stream: int) -> Clock:
        return self.known.setdefault(stream, {})

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        clock = self._clock(self.current)
        clock[self.current] = now = clock.get(self.current, 0) + 1
        read = _storages((args, kwargs))
        written = _storages(out) - read | _storages(_changed(func, args, kwargs))  # a view writes nothing
        self.kept += [tensor for tensor in tree_leaves((args, kwargs, out)) if isinstance(tensor, Tensor)]
        for table, storages in ((self.written, read | written), (self.read, written)):
            for storage in storages:
                for stream, time in table.get(storage, {}).items():
                    if clock.get(stream, 0) < time:
                        raise Race(f"{func} on stream {self.current}: stream {stream} is not waited for")
        for table, storages in ((self.written, written), (self.read, read)):
            for storage in storages:
                table.setdefault(storage, {})[self.current] = now
        return out


def _changed(func: Any, args: tuple[Any, ...], kwargs: Any) -> list[Any]:
    """The arguments that an operation writes to."""
    given = {**dict(zip((argument.name for argument in func._schema.arguments), args)), **(kwargs or {})}
    return [given.get(argument.name) for argument in func._schema.arguments if argument.is_write]


def _storages(tree: Any) -> set[int]:
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and not leaf.is_mkldnn)
    return {tensor.untyped_storage()._cdata for tensor in tensors}


def made(engine: str = "eager", **options: Any) -> tuple[lf.LITStep, Tensor, Tensor]:
    torch.manual_seed(0)
    teacher, student = lf.split(lf.models.resnet32()), lf.split(lf.models.resnet20()).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    step = lf.LITStep(teacher, student, lf.LITLoss(), optimizer, engine=engine, **options)
    return step, torch.randn(4, 3, 8, 8), torch.arange(4)


def loss(step: lf.LITStep, images: Tensor, labels: Tensor, streams: Streams) -> Tensor:
    """The loss of one batch on stand-ins of streams."""
    step.loss(images, labels)  # what is built at the first batch is there
    step.passes.streams = streams  # type: ignore[assignment]
    with streams:
        return step.loss(images.clone(), labels)  # made on the caller's stream


@pytest.mark.parametrize("engine", ["eager", "auto"])
@pytest.mark.parametrize("options", [{}, {"ir_sections": [3]}, {"bn_policy": "teacher_fed"}], ids=str)
def test_no_stream_touches_what_it_has_not_waited_for(engine: str, options: dict[str, Any]) -> None:
    streams = Streams()
    loss(*made(engine, **options), streams)
    assert len(streams.used) == 2 + len(options.get("ir_sections", [2, 3]))


def test_every_wait_is_needed() -> None:
    streams = Streams()
    loss(*made(), streams)
    assert streams.waits == 1 + 2 + 3
    for number in range(streams.waits):
        with pytest.raises(Race):
            loss(*made(), Streams(skip=number))


@pytest.mark.parametrize("options", [{}, {"student_input": "composed"}, {"bn_policy": "teacher_fed"}], ids=str)
def test_side_by_side_trains_the_same(options: dict[str, Any]) -> None:
    (plain, images, labels), (beside, _, _) = made(**options), made(**options)
    for number in range(3):
        streams = Streams()
        beside.passes.streams = streams  # type: ignore[assignment]
        ours, right = beside(images + number, labels), plain(images + number, labels)
        assert torch.equal(ours.total, right.total)
        assert torch.equal(ours.ir, right.ir)
    for name, value in plain.student.model.state_dict().items():
        assert torch.equal(beside.student.model.state_dict()[name], value), name


def test_a_teacher_that_was_prefetched_feeds_the_sections_as_well() -> None:
    (plain, images, labels), (beside, _, _) = made("runner"), made("runner")
    right = plain(images, labels)
    beside.passes.streams = Streams()  # type: ignore[assignment]
    beside.prefetch(images)
    ours = beside(images, labels)
    assert torch.equal(ours.total, right.total)
    assert torch.equal(ours.ir, right.ir)


def test_what_began_is_waited_for_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    step, images, labels = made()
    streams = Streams()
    step.passes.streams = streams  # type: ignore[assignment]
    monkeypatch.setattr(step.passes, "composed", lambda images: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        step.loss(images, labels)
    assert streams.waits == 1 + 2 + 3


def test_two_passes_that_write_the_same_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="side_by_side: both passes of a section write its running statistics"):
        made(side_by_side=True, bn_policy="both")


def test_on_a_cpu_the_passes_follow_each_other() -> None:
    step, images, labels = made(side_by_side=True)
    assert step.passes.streams is None
    assert step(images, labels).total.isfinite()


def test_torchs_warning_of_other_streams_is_off_in_backward_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that two passes use on two streams is no mistake here; under `python -W error` it would be one."""
    told: list[bool] = []
    monkeypatch.setattr(lit_fast.streams, "_set_warning", told.append)
    monkeypatch.setattr(lit_fast.streams, "_warns", lambda: True)
    streams = lit_fast.streams.SideStreams.__new__(lit_fast.streams.SideStreams)
    joined: list[int] = []
    monkeypatch.setattr(streams, "join", lambda: joined.append(len(told)))
    with pytest.raises(ZeroDivisionError):
        _in_backward(streams)
    assert told == [False, True]
    assert joined == [2]


def _in_backward(streams: lit_fast.streams.SideStreams) -> None:
    with streams.backward():
        _ = 1 / 0
