"""Random tables of one epoch: order, crop offsets and flips as pure functions of (seed, epoch); who takes which rows.

Nothing is drawn while batches are made, so a run resumed at any step sees the very batches it would have seen, without
any saved generator state and without computing the batches it skips.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_fast.data.augment import Augmentation


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded from `key`, the same on every machine and Python.

    The key is hashed because torch's Mersenne twister takes only the low 32 bits of a seed: seeds built by arithmetic
    such as seed + epoch would make run 1's epoch 0 equal run 0's epoch 1.
    """
    digest = hashlib.sha256(":".join(str(part) for part in key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@dataclass(frozen=True)
class EpochTables:
    """What one epoch does, position by position in the order of training.

    `order` holds indices into the training split; `rows` and `columns` are crop offsets in 0..2*pad (None: no crop);
    `flips` says which images are mirrored (None: none).
    """

    order: Tensor  # int64 [N]
    rows: Tensor | None  # int64 [N]
    columns: Tensor | None  # int64 [N]
    flips: Tensor | None  # bool [N]


def epoch_tables(size: int, seed: int, epoch: int, augmentation: Augmentation | None) -> EpochTables:
    """Draw the tables of one epoch over `size` training images; `augmentation` None draws the order only.

    Each table has its own generator: switching one kind of augmentation off leaves the others as they were.
    """
    order = torch.randperm(size, generator=generator("order", seed, epoch))
    rows = columns = flips = None
    if augmentation is not None and augmentation.pad:
        offsets = torch.randint(0, 2 * augmentation.pad + 1, (2, size), generator=generator("crop", seed, epoch))
        rows, columns = offsets.unbind(0)
    if augmentation is not None and augmentation.flip:
        flips = torch.randint(0, 2, (size,), generator=generator("flip", seed, epoch)).bool()
    return EpochTables(order, rows, columns, flips)


def share(count: int, rank: int, size: int) -> slice:
    """The rows of a batch of `count` that process `rank` of `size` takes; together they are all rows, once each.

    Sizes differ by one at most. Rank 0's is empty only if all are.
    """
    return slice(-(-rank * count // size), -(-(rank + 1) * count // size))
