"""Loss parts gathered over an epoch without a host sync per step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_fast.errors import NotFinite

__all__ = ["LossTally"]


class LossTally:
    """Sums of the loss parts of each kind of update, weighted by batch size: added on the device, read now and then.

    Attributes:
        sums: of what has been read, by kind: the sum of each part, and how many images they are over.
    """

    def __init__(self, sums: Mapping[str, Any] | None = None) -> None:
        self.sums: dict[str, tuple[list[float], int]] = {} if sums is None else dict(sums)
        self._unread: dict[str, list[tuple[int, int, Tensor]]] = {}

    def add(self, rows: Mapping[str, Tensor], size: int, step: int) -> None:
        """Note what step ``step`` did over ``size`` images; no host sync.

        Args:
            rows: by kind of update its parts, 1-d, detached, always as many and in the same order.
        """
        for kind, row in rows.items():
            self._unread.setdefault(kind, []).append((step, size, row))

    def read(self) -> dict[str, list[float]]:
        """Bring what was added since the last reading to the host, with one sync for each kind.

        Returns:
            By kind the parts of the last update.

        Raises:
            NotFinite: of the first step whose parts are not all finite.
        """
        unread, self._unread = self._unread, {}
        last = {}
        broken = []
        for kind, added in unread.items():
            rows: list[list[float]] = torch.stack([row for _, _, row in added]).tolist()
            sums, images = self.sums.get(kind, ([0.0] * len(rows[0]), 0))
            for (step, size, _), row in zip(added, rows, strict=True):
                if not all(math.isfinite(value) for value in row):
                    broken.append(NotFinite(step, kind, row))
                    break
                sums = [a + size * b for a, b in zip(sums, row, strict=True)]
                images += size
            self.sums[kind] = sums, images
            last[kind] = rows[-1]
        if broken:
            raise min(broken, key=lambda error: error.step)
        return last

    def means(self) -> dict[str, list[float]]:
        return {kind: [total / images for total in sums] for kind, (sums, images) in self.sums.items()}
