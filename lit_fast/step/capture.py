"""The whole training step as one CUDA graph: captured once for each shape of batch, then replayed.

A replay repeats the kernels of the captured step at the addresses and with the numbers they had. So batch and learning
rate are copied into static tensors, all state is changed in place, and whatever else the step read on the host
(momentum, modes of modules, frozen parameters) is compared before each replay: if it changed, the graph is stale.

Nothing here knows CUDA; ``lit_fast.step.cuda_graphs`` does, and with a stand-in for it all the rest runs on the CPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_fast.errors import NotCapturable
from lit_fast.loss.backends.options import LossParts
from lit_fast.step.batches import Batch, FedBatch
from lit_fast.step.cuda_graphs import Graphs, graphs_for
from lit_fast.step.state import (
    LearningRates,
    OptimizerTensors,
    Snapshot,
    addresses,
    forget_half_step,
    prepare_momentum,
    scaler_tensors,
)
from lit_fast.streams import SideStreams
from lit_fast.teacher.ahead import TeacherAhead
from lit_fast.teacher.frozen import FrozenTeacher

__all__ = ["CapturedSteps"]

MAX_SHAPES = 2  # the full batch and an epoch's last one
MAX_CAPTURES = 8  # of one step: a setting that changes all the time would capture all the time

Train = Callable[[Any, Tensor | None], LossParts]  # one step on inputs and labels


class CapturedSteps:
    """Replays training steps as graphs, and keeps the tensors that these read and write.

    Args:
        modules: all whose parameters and buffers a step reads or changes.
        optimizer, scaler: what updates them.
        nonfinite: the other tensor that a step changes, a flag on the modules' device.
        frozen: gives the teacher that is to run one batch ahead where batches come from a feed; None: it does not.

    Attributes:
        reason: why steps are replayed or not.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None,
        nonfinite: Tensor,
        frozen: Callable[[], FrozenTeacher | None] | None = None,
    ) -> None:
        self._frozen = frozen
        self._ran: _Captured | None = None
        self._optimizer, self._scaler, self._nonfinite, self._device = optimizer, scaler, nonfinite, nonfinite.device
        self._graphs: Graphs | None = None
        self._captured: dict[tuple[Any, ...], _Captured] = {}
        self._captures = 0
        self._read: tuple[Any, ...] = ()
        self.reason = "each shape of batch is captured when it first comes"
        try:
            _check_optimizer(optimizer)
            self._graphs = graphs_for(self._device)
        except NotCapturable as reason:
            self.reason = str(reason)
            return
        self._parts = [child for module in modules for child in module.modules()]
        self._slots = list(addresses(modules))
        if scaler is not None:
            scaler.scale(nonfinite)  # makes its tensors
        self._rates = LearningRates(len(optimizer.param_groups), self._device)
        self._state: OptimizerTensors | None = None

    @property
    def active(self) -> bool:
        """Whether batches are captured and replayed."""
        return self._graphs is not None

    def replayed(self, batch: Batch, train: Train) -> LossParts | None:
        """The parts of a step replayed on this batch; None where it must run eagerly.

        Args:
            train: the eager step, which is captured. It is not kept: its owner keeps this, and is to be freed at once.
        """
        if self._graphs is None:
            return None
        self._drop_if_stale()
        graph = self._captured.get(batch.key) or self._captured_now(self._graphs, batch, train)
        if graph is None:
            return None
        if self._state is not None:
            self._state.keep(self._optimizer)
        self._rates.write(self._optimizer)
        if graph.ahead is not None and graph is not self._ran:
            graph.ahead.forget()
        self._ran = graph
        return graph.run(batch)

    # -- capturing ---------------------------------------------------------------------------------------------------

    def _captured_now(self, graphs: Graphs, batch: Batch, train: Train) -> _Captured | None:
        """A new graph for batches like this one; None, with the reason, where there is none."""
        if len(self._captured) >= MAX_SHAPES:
            self.reason = f"{MAX_SHAPES} shapes of batch are captured; others, as {batch}, run eagerly"
            return None
        try:
            graph = self._capture(graphs, batch, train)
        except Exception as error:  # whatever it is, an eager step is still right, or raises the same
            self._graphs = None
            self._captured.clear()
            self.reason = _described(error)
            warnings.warn(f"lit_fast: the step is not captured: {self.reason}; it runs eagerly", stacklevel=4)
            return None
        self._captured[batch.key] = graph
        self.reason = f"{len(self._captured)} captured, the last for {batch}"
        return graph

    def _capture(self, graphs: Graphs, batch: Batch, train: Train) -> _Captured:
        self._captures += 1
        if self._captures > MAX_CAPTURES:
            raise NotCapturable(
                f"the optimizer's settings, frozen parts or modes changed more than {MAX_CAPTURES - 1} times, and each "
                "change needs another capture"
            )
        optimizer = self._optimizer
        _check_optimizer(optimizer)
        if self._state is not None:
            self._state.keep(optimizer)
        prepare_momentum(optimizer)
        self._rates.write(optimizer)
        static = batch.static()
        ahead = self._ahead(static)

        def run() -> Tensor:
            with self._rates.used_by(optimizer):
                inputs, labels = static.read()
                with nullcontext() if ahead is None else ahead.beside(inputs):
                    total, ce, kl, ir = train(inputs, labels)
            return torch.cat((torch.stack((total, ce, kl)), ir))

        def warm_up() -> Tensor:
            result = run()
            static.rewind()  # a dataset may end with this batch
            return result

        before = Snapshot([*self._changed(), *static.changed], optimizer, self._device)
        try:
            if ahead is not None:
                ahead.prepare()
            graphs.warm_up(warm_up)
            optimizer.zero_grad(set_to_none=True)  # gradients are then written, not added, where the graph keeps them
            replay = graphs.capture(run)
        finally:
            optimizer.zero_grad(set_to_none=True)  # theirs is the graphs' memory, shared by all of them
            forget_half_step(optimizer, self._scaler)
            before.restore()
        self._state = OptimizerTensors(optimizer)
        return _Captured(static, replay, ahead)

    def _ahead(self, static: Batch) -> TeacherAhead | None:
        frozen = None if self._frozen is None or not isinstance(static, FedBatch) else self._frozen()
        if frozen is None or not isinstance(static, FedBatch):
            return None
        streams = SideStreams(self._device, 1) if self._device.type == "cuda" else None
        return TeacherAhead(frozen, static.feed, static.empty(), streams)

    def _changed(self) -> list[Tensor]:
        return [*(held[name] for held, name in self._slots), self._nonfinite, *scaler_tensors(self._scaler)]

    # -- what a graph depends on besides tensors' values -------------------------------------------------------------

    def _drop_if_stale(self) -> None:
        read = self._read_on_host()
        if read != self._read:
            self._captured.clear()
            self._rates = LearningRates(len(self._optimizer.param_groups), self._device)
            self._read = read

    def _read_on_host(self) -> tuple[Any, ...]:
        """All that the host reads when a step is captured, and the addresses that the step uses."""
        groups = self._optimizer.param_groups
        settings = [(len(g["params"]), *(_plain(v) for k, v in g.items() if k not in ("params", "lr"))) for g in groups]
        held = [_address(tensors[name]) for tensors, name in self._slots]
        modes = [module.training for module in self._parts]
        return settings, held, modes, _constants(self._scaler)


class _Captured(NamedTuple):
    """A graph with the batch that it reads."""

    static: Batch
    replay: Callable[[], Tensor]
    ahead: TeacherAhead | None

    def run(self, batch: Batch) -> LossParts:
        self.static.copy_from(batch)
        if self.ahead is not None:
            self.ahead.prepare()
        row = self.replay().clone()  # the next replay writes to the same place
        if self.ahead is not None:
            self.ahead.left()
        return LossParts(row[0], row[1], row[2], row[3:])


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Whether its step runs without the host, learning rate and skipped updates included.

    Raises:
        NotCapturable: it does not.
    """
    kind = type(optimizer)
    if kind not in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        raise NotCapturable(f"optimizer {kind.__name__}: SGD, Adam and AdamW can be captured")
    wanted = ["fused"] if kind is torch.optim.SGD else ["fused", "capturable"]
    missing = [name for name in wanted if not all(group[name] for group in optimizer.param_groups)]
    if missing:
        settings = ", ".join(f"{name}=True" for name in missing)
        raise NotCapturable(f"optimizer {kind.__name__}: build it with {settings}")


def _constants(scaler: torch.amp.GradScaler | None) -> tuple[float, ...]:
    if scaler is None or not scaler.is_enabled():
        return ()
    return scaler.get_growth_factor(), scaler.get_backoff_factor(), scaler.get_growth_interval()


def _plain(value: Any) -> Any:
    return id(value) if isinstance(value, Tensor) else value


def _address(tensor: Tensor | None) -> tuple[int, bool]:
    return (0, False) if tensor is None else (tensor.data_ptr(), tensor.requires_grad)


def _described(error: BaseException) -> str:
    """What went wrong first: an error while capturing makes the end of the capture fail as well."""
    while error.__context__ is not None:
        error = error.__context__
    lines = str(error).splitlines()
    first = lines[0] if lines else ""
    return first if isinstance(error, NotCapturable) else f"{type(error).__name__}: {first}"
