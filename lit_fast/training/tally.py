"""Loss parts gathered over an epoch without a host sync per step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lit_fast.backends.options import LossParts
from lit_fast.errors import NotFinite

__all__ = ["LossTally", "named"]


class LossTally:
    """Sums of the loss parts, weighted by batch size: added on the device, read on the host every so often.

    Attributes:
        sums: of what has been read (loss, ce, kl, then one per section with an IR loss); empty before the first.
        images: how many images they are over.
    """

    def __init__(self, sums: list[float], images: int) -> None:
        self.sums, self.images = sums, images
        self._unread: list[tuple[int, Tensor]] = []

    def add(self, parts: LossParts, size: int) -> None:
        """Note one step over ``size`` images; no host sync."""
        self.add_row(torch.cat([torch.stack([parts.total, parts.ce, parts.kl]).detach(), parts.ir]), size)

    def add_row(self, row: Tensor, size: int) -> None:
        """As `add`, of parts in an order of one's own: ``row`` is 1-d, detached, and as long as those before."""
        self._unread.append((size, row))

    def read(self) -> list[float]:
        """Bring what was added since the last reading to the host (one sync); returns the last step's parts.

        Raises:
            NotFinite: at the first step whose parts are not all finite.
        """
        if not self._unread:
            return []
        sizes = [size for size, _ in self._unread]
        rows: list[list[float]] = torch.stack([row for _, row in self._unread]).tolist()
        self._unread.clear()
        for i, (size, row) in enumerate(zip(sizes, rows, strict=True)):
            if not all(math.isfinite(value) for value in row):
                raise NotFinite(len(rows) - 1 - i, row)
            self.sums = [a + size * b for a, b in zip(self.sums or [0.0] * len(row), row, strict=True)]
            self.images += size
        return rows[-1]

    def means(self) -> list[float]:
        return [total / self.images for total in self.sums]


def named(row: list[float]) -> dict[str, Any]:
    """The parts by name, as they are logged."""
    loss, ce, kl, *irs = row
    return {"loss": loss, "ce": ce, "kl": kl, "ir": irs}
