"""Cases for every implementation of the op ``gather_batch``, and what it must give, by the functions of the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_fast.data.augment import Augmentation, crop_and_flip, normalise
from lit_fast.data.gather import Gather, levels
from lit_fast.data.tables import epoch_tables

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MEAN, STD = (0.4914, 0.4822, 0.4465, 0.5), (0.2470, 0.2435, 0.2616, 0.3)

BOTH = Augmentation(pad=4, flip=True)


@dataclass(frozen=True)
class Case:
    """A batch of `batch` rows from `start + first` on, of a plan over `planned` of `count` images."""

    name: str
    shape: tuple[int, ...] = (3, 32, 32)
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    augmentation: Augmentation = BOTH
    count: int = 40
    planned: int = 30
    start: int = 5
    first: int = 0
    batch: int = 8


@dataclass
class Problem:
    """The op's arguments on a device, and what it must write."""

    arguments: list[Tensor | int | None]
    out: Tensor
    labels: Tensor
    right_out: Tensor
    right_labels: Tensor


CASES = [
    *(Case(f"{dtype} {layout}", dtype=dtype, channels_last=layout) for dtype in DTYPES for layout in (False, True)),
    Case("one channel", (1, 8, 8)),
    Case("one channel last", (1, 8, 8), channels_last=True),
    Case("four channels last, not square", (4, 5, 9), channels_last=True),
    Case("wide", (3, 3, 70), torch.bfloat16),
    Case("one pixel", (3, 1, 1)),
    Case("crops only", augmentation=Augmentation(pad=3)),
    Case("flips only", augmentation=Augmentation(flip=True)),
    Case("neither", augmentation=Augmentation()),
    Case("padded by more than the image", (2, 3, 4), augmentation=Augmentation(pad=6, flip=True)),
    Case("another process's rows", first=6, batch=4),
    Case("to the last row", start=20, first=3, batch=7),
    Case("one row", batch=1),
    Case("no row", batch=0),
    Case("several blocks of a program", (3, 40, 40), torch.float16, channels_last=True),
    Case("tokens", (1014,), torch.int64, augmentation=Augmentation()),
    Case("few tokens", (5,), torch.int64, augmentation=Augmentation(), first=2),
]


def build(case: Case, device: torch.device | str = "cpu") -> Problem:
    draws = torch.Generator().manual_seed(7)
    images = torch.randint(0, 256, (case.count, *case.shape), generator=draws).to(torch.uint8)
    rows = torch.randperm(case.count, generator=draws)[: case.planned]
    labels = torch.randint(0, 1000, (case.planned,), generator=draws)
    tables = epoch_tables(case.planned, 3, 1, case.augmentation)
    text = len(case.shape) == 1
    mean, std = ((), ()) if text else (MEAN[: case.shape[0]], STD[: case.shape[0]])

    plan = torch.stack([rows[tables.order], labels[tables.order]])
    if case.augmentation != Augmentation():
        unmoved = torch.full((case.planned,), case.augmentation.pad)
        crops = [unmoved if table is None else table for table in (tables.rows, tables.columns)]
        flips = torch.zeros(case.planned, dtype=torch.int64) if tables.flips is None else tables.flips.long()
        plan = torch.cat([plan, torch.stack([*crops, flips])])

    begin = case.start + case.first
    at = slice(begin, begin + case.batch)
    moves = (None if table is None else table[at] for table in (tables.rows, tables.columns, tables.flips))
    raw = images[rows[tables.order[at]]]
    right = raw.long() if text else normalise(crop_and_flip(raw, case.augmentation.pad, *moves), mean, std)
    out = torch.full((case.batch, *case.shape), 77, dtype=case.dtype, device=device)
    if case.channels_last:
        out = out.contiguous(memory_format=torch.channels_last)
    arguments = [
        torch.tensor(case.start, device=device),
        plan.to(device),
        images.to(device),
        None if text else levels(mean, std, case.dtype).to(device),
        case.augmentation.pad,
        case.first,
    ]
    marked = torch.full((case.batch,), -5, device=device)
    return Problem(arguments, out, marked, right.to(case.dtype), labels[tables.order[at]])


def check(gather: Gather, case: Case, device: torch.device | str = "cpu") -> None:
    """Every bit is right, and the output keeps its layout."""
    problem = build(case, device)
    before = problem.out.stride()
    gather(*problem.arguments, problem.out, problem.labels)
    assert problem.out.stride() == before
    assert torch.equal(problem.out.cpu(), problem.right_out)
    assert torch.equal(problem.labels.cpu(), problem.right_labels)
