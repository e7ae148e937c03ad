"""Data parallel training: one process per GPU (or several on CPUs), started by ``torchrun``.

Every process takes its share of each global batch; one sum over one flat buffer per step turns gradients and loss parts
into those of the whole batch, after one over a few counts of what each loss is a mean of. The teacher takes no part in
it. The first process (rank 0) writes; the others train.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lit_fast.errors import FirstFailed, SharingError, UnavailableError, WorkerLost

__all__ = [
    "ALONE",
    "SharedGradients",
    "Workers",
    "check_batches",
    "join",
]

T = TypeVar("T")

# The others wait while the first process evaluates and writes; a process that ended is noticed at once, not by this.
_TIMEOUT = timedelta(hours=2)
_LET_GO = 0.2  # seconds
_ALIGNED = 4  # elements: gradients start at multiples of 16 bytes, as kernels with wide loads like it


@dataclass(frozen=True)
class Workers:
    """The processes that train together, seen from one of them.

    Attributes:
        rank, size: which process this is, of how many.
        device: what it computes on, as a name: ``"cpu"``, ``"cuda:1"``, or ``"auto"`` for a process alone.
    """

    rank: int = 0
    size: int = 1
    device: str = "auto"

    @property
    def leads(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> None:
        """Add ``tensor`` up over all processes, in place."""
        if self.size > 1:
            self._talk(dist.all_reduce, tensor)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process; they all must ask."""
        if self.size == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self.device)
        self.sum_(flags)
        return bool(flags.item())

    def first(self, call: Callable[[], T]) -> T:
        """Call ``call`` in rank 0 alone; all get what it returned (which is pickled).

        Raises:
            FirstFailed: in the others, if it raised in rank 0.
        """
        if self.size == 1:
            return call()
        outcome: list[Any] = [None]
        if self.leads:
            try:
                outcome = [(True, call())]
            except Exception:
                self._talk(dist.broadcast_object_list, [(False, None)])
                raise
        self._talk(dist.broadcast_object_list, outcome)
        succeeded, value = outcome[0]
        if not succeeded:
            raise FirstFailed("rank 0 ended with an error; it tells which")
        return value

    def equalise(self, module: nn.Module) -> None:
        """Give all processes the parameters and buffers that rank 0's ``module`` has."""
        if self.size > 1:
            tensors = self.first(lambda: {name: tensor.cpu() for name, tensor in module.state_dict().items()})
            if not self.leads:
                module.load_state_dict(tensors)

    def _talk(self, collective: Callable[..., Any], argument: Any) -> None:
        try:
            collective(argument)
        except RuntimeError as error:  # gloo and NCCL have no type of their own for it
            raise WorkerLost(
                f"another process of this run has ended ({_reason(error)}); what was saved is kept, and the same "
                "command with --resume goes on from the last checkpoint, also with another number of processes"
            ) from error


def _reason(error: Exception) -> str:
    """What the communication library says, without its source line and advice."""
    text = re.sub(r"^\[[^]]*\.(?:cc|cpp|h|hpp):\d+\]\s*", "", str(error).strip())
    return text.splitlines()[0].split(". ")[0] if text else type(error).__name__


ALONE = Workers()


# -- starting --------------------------------------------------------------------------------------------------------


@contextmanager
def join(device: str = "auto") -> Iterator[Workers]:
    """Meet the other processes that ``torchrun`` started; alone without it.

    A process group that exists already is used, and left as it is.

    Args:
        device: ``"auto"`` and ``"cuda"`` give every process of a machine a GPU of its own, ``"cpu"`` works anywhere.

    Raises:
        SharingError: fewer GPUs than processes, or one GPU named for several of them.
        UnavailableError: the others cannot be reached.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if dist.is_initialized() and dist.get_world_size() > 1:
        yield Workers(dist.get_rank(), dist.get_world_size(), _own_device(device))
        return
    if size == 1:
        yield Workers(device=device)
        return
    own = _own_device(device)
    if own.startswith("cuda"):
        torch.cuda.set_device(own)
    try:
        dist.init_process_group("nccl" if own.startswith("cuda") else "gloo", timeout=_TIMEOUT)
    except (ValueError, RuntimeError) as error:
        raise UnavailableError(
            f"WORLD_SIZE is {size}, and the processes cannot meet ({_reason(error)}); start them with torchrun, or "
            "unset it"
        ) from error
    workers = Workers(dist.get_rank(), size, own)
    yield workers
    # Only where all went well: with an error about, the others may never come.
    workers.first(lambda: None)
    if dist.get_backend() == "gloo":
        # Its threads let go of the last tensors, for which they need the GIL. A group that is destroyed while they do
        # waits for them with the GIL held, for ever (pytorch#190489).
        time.sleep(_LET_GO)
    dist.destroy_process_group()


def _own_device(wanted: str) -> str:
    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    gpus = torch.cuda.device_count()
    if wanted == "cpu" or (wanted == "auto" and not gpus):
        return "cpu"
    if wanted not in ("auto", "cuda"):
        raise SharingError(f"step.device: expected auto, cuda or cpu with {here} processes, got {wanted!r}")
    if here > gpus:
        raise SharingError(
            f"step.device: {here} processes on this machine need as many GPUs, found {gpus}; start "
            f"torchrun --standalone --nproc-per-node {max(gpus, 1)}, or set step.device=cpu"
        )
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def check_batches(workers: Workers, batch_size: int, images: int, *, sync_batchnorm: bool) -> None:
    """Refuse what several processes cannot share.

    Args:
        batch_size: images per step, over all processes.
        images: in the training split.
        sync_batchnorm: whether BatchNorm takes its statistics over all processes.

    Raises:
        SharingError: naming the setting.
    """
    size = workers.size
    if size == 1:
        return
    if batch_size % size:
        raise SharingError(
            f"batch_size: it counts the images of all processes, so expected a multiple of {size}, got {batch_size}; "
            f"{batch_size - batch_size % size or size} is one"
        )
    if sync_batchnorm and not workers.device.startswith("cuda"):
        raise SharingError(
            "step.sync_batchnorm: torch.nn.SyncBatchNorm needs CUDA, got device "
            f"{workers.device!r}; set step.sync_batchnorm=false"
        )
    last = images % batch_size
    if sync_batchnorm and 0 < last < size:
        raise SharingError(
            f"step.sync_batchnorm: the last batch of an epoch has {last} images, too few for {size} processes; change "
            "batch_size or data.train_size"
        )


# -- the step --------------------------------------------------------------------------------------------------------


class SharedGradients:
    """Turns gradients and loss parts of each process's rows into those of all rows, by one sum per call.

    One buffer holds gradients, loss parts and a weight. Where each process has a mean over its own rows, that of the
    whole batch is the mean of these, weighted by their rows (`mean`). Where each has its share of the whole batch's
    (a loss with a normalizer), it is their sum (`sum`). Afterwards every gradient is a view of the buffer.

    Args:
        workers: who takes part.
        parameters: those that are trained, in the same order everywhere.
        parts: how many numbers the loss parts are.
    """

    def __init__(self, workers: Workers, parameters: Iterable[nn.Parameter], parts: int) -> None:
        self.parts = parts
        self._workers = workers
        self._parameters = list(parameters)
        double = any(p.dtype == torch.float64 for p in self._parameters)
        self.dtype = torch.float64 if double else torch.float32  # of all that is summed, in every process
        self._flat: Tensor | None = None  # [places of all gradients, parts, 1], made at the first call
        self._used: list[nn.Parameter] = []
        self._unused: list[nn.Parameter] = []
        self._views: list[Tensor] = []

    def sum(self, parts: Tensor) -> Tensor:
        """Add ``.grad`` of the parameters up, in place.

        Args:
            parts: loss parts of this process, [parts]; zeros where it has no rows.

        Returns:
            The sum of the loss parts, [parts].
        """
        return self._summed(parts, None)

    def mean(self, parts: Tensor | None, rows: int) -> Tensor:
        """Average ``.grad`` of the parameters in place.

        Args:
            parts: loss parts of this process, [parts]; ``None`` where it has no rows.
            rows: how many images they are means over; 0 adds nothing.

        Returns:
            The loss parts over all rows, [parts].
        """
        return self._summed(parts if rows else None, rows)

    def _summed(self, parts: Tensor | None, rows: int | None) -> Tensor:
        if self._flat is None:
            self._lay_out()
        flat = self._flat
        assert flat is not None
        if any(p.grad is not None for p in self._unused):
            raise RuntimeError("a parameter that had no gradient in the first step has one now: build a new LITStep")
        if parts is None:
            flat.zero_()
        else:
            given = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._used]
            torch._foreach_copy_(self._views, given)
            flat[-1 - self.parts : -1].copy_(parts)
            flat[-1] = 1.0
            if rows is not None:
                flat.mul_(rows)
        self._workers.sum_(flat)
        if rows is not None:
            flat.div_(flat[-1].clone())
        for parameter, view in zip(self._used, self._views, strict=True):
            parameter.grad = view.to(parameter.dtype)
        return flat[-1 - self.parts : -1].clone()

    def _lay_out(self) -> None:
        """Make the buffer, over the parameters that the loss reaches: an optimizer passes over those it does not."""
        parameters = self._parameters
        reached = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
        self._workers.sum_(reached)
        counts = reached.tolist()
        self._used = [p for p, count in zip(parameters, counts, strict=True) if count]
        self._unused = [p for p, count in zip(parameters, counts, strict=True) if not count]
        places = [_ALIGNED * -(-p.numel() // _ALIGNED) for p in self._used]
        size = sum(places) + self.parts + 1
        self._flat = torch.zeros(size, dtype=self.dtype, device=parameters[0].device)
        at = 0
        for p, place in zip(self._used, places, strict=True):
            dense = torch.empty_like(p).stride()  # the parameter's own layout: the optimizer then needs no copy
            self._views.append(self._flat.as_strided(p.shape, dense, at))
            at += place
