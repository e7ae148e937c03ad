"""What `LITModel` and `LITStep` are given, looked at before anything is made of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lit_fast.errors import expect, expect_integer, expect_number, expect_switches, shown
from lit_fast.loss.modules import IRLoss, KDLoss, LITLoss
from lit_fast.sections.model import SplitModel, expect_split
from lit_fast.sections.projector import Projectors
from lit_fast.step.parallel import ALONE, Workers

__all__ = ["check_optimizer", "check_parts", "check_student", "check_update", "section_numbers", "workers_of"]


def check_student(student: Any) -> None:
    """Raises TypeError for anything but a split model."""
    wrapped = isinstance(student, nn.parallel.DistributedDataParallel)
    mend = "wrap a LITModel in it instead, or pass workers=" if wrapped else "use split(student, ...)"
    expect("student", student, SplitModel, "a split model", mend)


def check_parts(teacher: Any, student: Any, criterion: Any, projector: Any, **switches: Any) -> None:
    """What a `LITModel` is made of.

    Raises:
        TypeError: one is something else.
    """
    if teacher is not None:
        expect_split(teacher=teacher)
    check_student(student)
    mends: dict[type, str] = {KDLoss: "write LITLoss(beta=1, ...) for it", IRLoss: "write LITLoss(beta=0, ...) for it"}
    mend = mends.get(type(criterion), "its CE is that of the labels, with class_weight, label_smoothing, ignore_index")
    expect("criterion", criterion, LITLoss, "a lit_fast.LITLoss", mend)
    if projector is not None:
        mend = "use make_projectors(teacher, student, example)"
        expect("projector", projector, Projectors, "lit_fast.Projectors", mend)
    expect_switches(**switches)


def section_numbers(wanted: Any, count: int) -> list[int]:
    """The numbers of ``ir_sections``, from 1.

    Raises:
        TypeError, ValueError: they are no such numbers.
    """
    if isinstance(wanted, str) and wanted == "all":
        return list(range(1, count + 1))
    what = f"'all' or numbers from 1 to {count}"
    if isinstance(wanted, str) or not isinstance(wanted, Iterable):
        raise TypeError(f"ir_sections: expected {what}, got {shown(wanted)}")
    numbers = list(wanted)
    for number in numbers:
        expect_integer("ir_sections", number, what)
    if not numbers or not all(1 <= n <= count for n in numbers):
        raise ValueError(f"ir_sections: expected numbers from 1 to {count}, got {wanted!r}")
    return [int(number) for number in numbers]


def check_update(scaler: Any, clip_grad_norm: Any, accumulate: Any, scheduler: Any) -> None:
    """What a `LITStep` updates with, beside its optimizer.

    Raises:
        TypeError, ValueError: one is something else, or out of range.
    """
    if scaler is not None and not all(hasattr(scaler, name) for name in ("scale", "step", "update", "unscale_")):
        raise TypeError(f"scaler: expected a torch.amp.GradScaler or None, got {shown(scaler)}")
    what = "a number of calls for each update, 1 or more"
    expect_integer("accumulate", accumulate, what)
    if accumulate < 1:
        raise ValueError(f"accumulate: expected {what}, got {accumulate}")
    if clip_grad_norm is not None:
        expect_number("clip_grad_norm", clip_grad_norm, "a norm > 0, or None")
        if not clip_grad_norm > 0:
            raise ValueError(f"clip_grad_norm: expected a norm > 0, or None, got {clip_grad_norm}")
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise TypeError(
            "scheduler: ReduceLROnPlateau needs a metric, and the step has none; call its step(metric) after each epoch"
        )
    if scheduler is not None and not callable(getattr(scheduler, "step", None)):
        raise TypeError(f"scheduler: expected a learning-rate scheduler of torch or None, got {shown(scheduler)}")


def check_optimizer(optimizer: torch.optim.Optimizer, student: SplitModel, projector: nn.Module | None) -> None:
    """Whether it can make a step, and holds what is to be trained.

    Raises:
        TypeError, ValueError: it does not; the message names the first parameter that it lacks.
    """
    if isinstance(optimizer, type) or not hasattr(optimizer, "param_groups") or not hasattr(optimizer, "step"):
        raise TypeError(f"optimizer: expected one of torch's, of the student's parameters, got {shown(optimizer)}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "optimizer: LBFGS computes the loss several times for one update, a LITStep once; use another, or a loop "
            "of your own around LITModel"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    modules: list[tuple[str, nn.Module]] = [("student", student.model)]
    if projector is not None:
        modules.append(("projector", projector))
    for owner, module in modules:
        missing = [n for n, p in module.named_parameters() if p.requires_grad and id(p) not in held]
        if missing:
            raise ValueError(
                f"optimizer: it does not hold {len(missing)} trainable parameters of the {owner}, first "
                f"{missing[0]!r}; build it from the {owner}'s parameters() or freeze them"
            )


def workers_of(given: Workers | None) -> Workers:
    """Those that share the batches; this process alone where none are given and there is no other.

    Raises:
        TypeError, ValueError: they are none, or there are other processes and nothing is said of them.
    """
    if given is not None:
        expect("workers", given, Workers, "the workers of lit_fast.step.parallel.join, or None")
        return given
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise ValueError(
            f"workers: there are {dist.get_world_size()} processes, and this step would train in each for itself; pass "
            "workers= of lit_fast.step.parallel.join, or wrap a LITModel in DistributedDataParallel"
        )
    return ALONE
