"""CUDA streams for the CPU: what torch offers of them, with a detector of races in place of a device.

Every operation is dated by the stream it is given to, a wait hands on what the other stream knows, and an operation
must know of all that was done to the tensors it touches. Operations compute at once, one after the other.

Autograd runs the backward of an operation on the stream of its forward, and has it wait for the streams that gave its
gradients. That is imitated. Its own wait at the end, for the leaves' gradients, is not: who reads them waits himself.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CALLER = -1
Clock = dict[int, int]  # of each stream, the number of its last operation that is known


class Race(Exception):
    pass


class Stream:
    """In place of `torch.cuda.Stream`."""

    def __init__(self, streams: RecordedStreams, number: int) -> None:
        self.streams, self.number = streams, number

    def wait_stream(self, other: Stream) -> None:
        self.streams.wait(self.number, other.number)


class RecordedStreams(TorchDispatchMode):
    """All streams of a device; as a context, what is computed inside is watched.

    Args:
        skip: the number of a wait that is left out.

    Attributes:
        waits: how many there were.
        used: the streams that were given something.
    """

    def __init__(self, skip: int | None = None) -> None:
        super().__init__()
        self.skip, self.waits, self.used = skip, 0, {CALLER}
        self.made: list[Stream] = []
        self.caller = self.current = Stream(self, CALLER)
        self._known: dict[int, Clock] = {}
        self._read: dict[int, Clock] = {}  # by storage: of each stream, its last operation that read it
        self._written: dict[int, Clock] = {}
        self._kept: list[Any] = []  # so that no address is used twice
        # The streams of nodes of autograd: those from each number on; by node, those whose gradients it takes.
        self._starts, self._streams_from = [0], [CALLER]
        self._givers: dict[Any, set[int]] = {}
        self._begun: set[Any] = set()
        self._in_backward: int | None = None

    def replace_torchs(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(torch.cuda, "Stream", self.new)
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _device=None: self.current)
        backward = torch.autograd.backward

        def from_roots(tensors: Any, *args: Any, **kwargs: Any) -> None:
            for tensor in tensors if isinstance(tensors, (list, tuple)) else [tensors]:
                self._look_from(tensor.grad_fn)  # its first nodes may launch nothing
            backward(tensors, *args, **kwargs)

        monkeypatch.setattr(torch.autograd, "backward", from_roots)

    def new(self, _device: Any = None) -> Stream:
        self.made.append(Stream(self, len(self.made)))
        return self.made[-1]

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before = self.current
        self._switch(stream)
        try:
            yield
        finally:
            self._switch(before)

    def wait(self, waiting: int, other: int) -> None:
        self._in_backward = None  # who waits has come back from it
        self.waits += 1
        if self.waits - 1 != self.skip:
            self._learn(waiting, other)

    def _learn(self, stream: int, other: int) -> None:
        ours, theirs = self._clock(stream), self._clock(other)
        self._known[stream] = {s: max(ours.get(s, 0), theirs.get(s, 0)) for s in {*ours, *theirs}}

    def _switch(self, stream: Stream) -> None:
        self.current = stream
        self._starts.append(torch._C._autograd._get_sequence_nr())
        self._streams_from.append(stream.number)

    def _clock(self, stream: int) -> Clock:
        return self._known.setdefault(stream, {})

    # -- operations --------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        stream = self._stream_of_this(args)
        self.used.add(stream)
        out = func(*args, **(kwargs or {}))
        clock = self._clock(stream)
        clock[stream] = now = clock.get(stream, 0) + 1
        read = _storages((args, kwargs))
        written = _storages(out) - read | _storages(_changed(func, args, kwargs))  # a view writes nothing
        self._kept += [tensor for tensor in tree_leaves((args, kwargs, out)) if isinstance(tensor, Tensor)]
        for table, storages in ((self._written, read | written), (self._read, written)):
            for storage in storages:
                for other, time in table.get(storage, {}).items():
                    if clock.get(other, 0) < time:
                        raise Race(f"{func} on stream {stream}: stream {other} is not waited for")
        for table, storages in ((self._written, written), (self._read, read)):
            for storage in storages:
                table.setdefault(storage, {})[stream] = now
        return out

    def _stream_of_this(self, args: tuple[Any, ...]) -> int:
        node = torch._C._current_autograd_node()
        if node is not None:
            self._in_backward = self._begin(node)
        elif self._in_backward is not None:  # autograd adds gradients
            for storage in _storages(args):
                for other in self._written.get(storage, {}):
                    self._learn(self._in_backward, other)
        return self.current.number if self._in_backward is None else self._in_backward

    def _begin(self, node: Any) -> int:
        """The stream of a node of autograd, which has waited for those whose gradients it takes."""
        key = _key(node)
        self._look_from(node)
        if isinstance(key, int):
            stream = self._streams_from[bisect.bisect_right(self._starts, key) - 1]
        else:  # gradients of a leaf: on any stream, so on one that gave them
            stream = max(self._givers[key])
        if key not in self._begun:
            self._begun.add(key)
            for other in self._givers[key]:
                self._learn(stream, other)
        return stream

    def _look_from(self, node: Any) -> None:
        if _key(node) not in self._givers:
            self._givers[_key(node)] = set()
            self._look_behind(node)

    def _look_behind(self, node: Any) -> None:
        """Note who gives gradients to whom, from this node on."""
        todo = [node]
        while todo:
            giver = todo.pop()
            self._kept.append(giver)
            number = _key(giver)
            for taker, _ in giver.next_functions:
                if taker is None:
                    continue
                if _key(taker) not in self._givers:
                    self._givers[_key(taker)] = set()
                    todo.append(taker)
                if isinstance(number, int):
                    stream = self._streams_from[bisect.bisect_right(self._starts, number) - 1]
                    self._givers[_key(taker)].add(stream)


def _key(node: Any) -> Any:
    """Of an operation its number; of a leaf the leaf."""
    return ("leaf", id(node.variable)) if hasattr(node, "variable") else node._sequence_nr()


def _changed(func: Any, args: tuple[Any, ...], kwargs: Any) -> list[Any]:
    """The arguments that an operation writes to."""
    given = {**dict(zip((argument.name for argument in func._schema.arguments), args)), **(kwargs or {})}
    return [given.get(argument.name) for argument in func._schema.arguments if argument.is_write]


def _storages(tree: Any) -> set[int]:
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and not leaf.is_mkldnn)
    return {tensor.untyped_storage()._cdata for tensor in tensors}
