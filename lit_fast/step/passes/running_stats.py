"""BatchNorm running statistics of a student whose sections run twice per step on two input distributions.

Each pass normalises with its own batch statistics whatever the policy, so the policy never changes the training
trajectory; it decides what the deployed (eval mode) student normalises with. Source: method, "BatchNorm".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import get_args

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lit_fast.errors import shown
from lit_fast.literals import StatsPolicy
from lit_fast.sections.model import SplitModel, expect_split

__all__ = ["POLICIES", "RunningStats", "recalibrate", "refused_in_backward"]

POLICIES: tuple[StatsPolicy, ...] = get_args(StatsPolicy)


class RunningStats:
    """Switches the running statistics of a section on, off or to double weight around each of its passes.

    Args:
        student: the split student.
        policy: one of `POLICIES`.
        teacher_fed_sections: 0-based sections that have a teacher-fed pass. Section 0's is its composed pass
            (one computation), so under ``both`` its statistics count double.

    Raises:
        ValueError: unknown policy, or ``both`` with a BatchNorm of ``momentum=None`` in section 1.
    """

    def __init__(self, student: SplitModel, *, policy: str, teacher_fed_sections: Collection[int]) -> None:
        if policy not in POLICIES:
            raise ValueError(f"bn_policy: expected one of {list(POLICIES)}, got {policy!r}")
        self.policy = policy
        self._fed = frozenset(teacher_fed_sections)
        self._modules = [list(_tracking(section)) for section in student.sections]
        if policy == "both" and 0 in self._fed and any(m.momentum is None for m in self._modules[0]):
            raise ValueError(
                "bn_policy: 'both' counts section 1 twice, which needs an exponential average; its BatchNorm has "
                "momentum=None. Give it a momentum or choose 'composed'"
            )

    @property
    def needs_composed_pass(self) -> bool:
        """Whether the composed pass must run even where the loss does not need it (beta = 0)."""
        return self.policy != "teacher_fed" and any(self._modules[1:])

    @contextmanager
    def composed_pass(self, i: int) -> Iterator[None]:
        if self.policy == "teacher_fed" and i > 0 and i in self._fed:
            with _paused(self._modules[i]):
                yield
        elif self.policy == "both" and i == 0 and 0 in self._fed:
            with _counting_double(self._modules[0]):
                yield
        else:
            yield

    @contextmanager
    def teacher_fed_pass(self, i: int) -> Iterator[None]:
        if self.policy in ("composed", "recalibrate"):
            with _paused(self._modules[i]):
                yield
        else:
            yield


@contextmanager
def refused_in_backward(student: SplitModel) -> Iterator[None]:
    """Around backward: refuse checkpoints, which run BatchNorm again there, when nothing pauses its statistics.

    Raises:
        RuntimeError: a BatchNorm of the student ran in backward, or torch found that it ran otherwise than in forward.
    """
    counts = [m.num_batches_tracked for m in _tracking(student) if m.num_batches_tracked is not None]
    before = [count._version for count in counts]
    mend = (
        "the student's checkpoints contain BatchNorm, which backward runs again, on the statistics of both passes; "
        "leave BatchNorm out of what is checkpointed, or train without checkpoints"
    )
    try:
        yield
    except torch.utils.checkpoint.CheckpointError as error:
        if not counts:
            raise
        raise RuntimeError(mend) from error
    if [count._version for count in counts] != before:
        raise RuntimeError(mend)


def _tracking(module: nn.Module) -> Iterator[_BatchNorm]:
    """Batch normalisations with running statistics (instance norms that track them count: they average too)."""
    for child in module.modules():
        if isinstance(child, _BatchNorm) and child.running_mean is not None:
            yield child


@contextmanager
def _paused(modules: Iterable[_BatchNorm]) -> Iterator[None]:
    """Normalise with batch statistics, leave the running ones alone. Modules in eval mode stay as they are."""
    changed = [m for m in modules if m.training and m.track_running_stats]
    for m in changed:
        m.track_running_stats = False
    try:
        yield
    finally:
        for m in changed:
            m.track_running_stats = True


@contextmanager
def _counting_double(modules: Iterable[_BatchNorm]) -> Iterator[None]:
    """Two updates with the same batch statistics at once: r <- (1-m)^2 r + (1-(1-m)^2) batch."""
    changed = [m for m in modules if m.training and m.track_running_stats]
    momenta = [m.momentum for m in changed]
    for m in changed:
        assert m.momentum is not None  # refused at construction
        m.momentum = 1.0 - (1.0 - m.momentum) ** 2
    try:
        yield
    finally:
        for m, momentum in zip(changed, momenta, strict=True):
            m.momentum = momentum
            if m.num_batches_tracked is not None:
                m.num_batches_tracked.add_(1)


@torch.no_grad()
def recalibrate(student: SplitModel, batches: Iterable[Tensor]) -> int:
    """Re-estimate all running statistics of unfrozen parts over ``batches`` with the composed pass alone.

    Args:
        student: the split student; its mode and its BatchNorm momenta are as before afterwards.
        batches: model inputs, [B, ...] each, as in training (the whole training set once).

    Returns:
        The number of batches seen.

    Raises:
        ValueError: no batches, which would leave the statistics reset.

    Source: method, BatchNorm policy ``recalibrate``.
    """
    expect_split(student=student)
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise TypeError(f"batches: expected an iterable of inputs, [B, ...] each, got {shown(batches)}; write [batch]")
    was_training = student.training
    student.train()
    modules = [m for m in _tracking(student.model) if m.training]
    saved = [(m.momentum, {k: v.clone() for k, v in m.named_buffers(recurse=False)}) for m in modules]
    seen = 0
    try:
        for m in modules:
            m.reset_running_stats()
            m.momentum = None  # cumulative average: every batch weighs the same
        for images in batches:
            student.run(images)
            seen += 1
    finally:
        for m, (momentum, buffers) in zip(modules, saved, strict=True):
            m.momentum = momentum
            if not seen:
                for name, value in buffers.items():
                    getattr(m, name).copy_(value)
        student.train(was_training)
    if not seen:
        raise ValueError("recalibrate: expected at least one batch, got none; the statistics are as they were")
    return seen
