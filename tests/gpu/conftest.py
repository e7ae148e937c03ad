"""What every test on a GPU leaves as it found it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _debug_mode() -> Iterator[None]:
    """A test that fails while waits are watched must not make the next ones fail as well."""
    yield
    if torch.cuda.is_available() and torch.cuda.get_sync_debug_mode() != 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode(0)
