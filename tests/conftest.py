"""What every test starts from: a seed, its share of the cores, and property tests that may be slow."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator

import drawing
import hypothesis
import pytest

# The workers of `pytest -n` share the cores: one thread each, also in the processes they start. torch reads it once.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as lit_fast/openmp.py

import torch

import lit_fast
from lit_fast.extension import EXTENSION
from lit_fast.loss import backends

hypothesis.settings.register_profile("default", deadline=None, max_examples=50)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_report_header() -> str:
    info = lit_fast.build_info()
    return f"lit_fast {info['version']}: torch {info['torch']}, backend {info['backend']} ({info['reason']})"


# What takes longest begins first, so that of several workers none waits for another at the end.
LONGEST = {"test_gpu_script.py", "test_triton.py", "test_benchmarks.py", "test_trainer.py", "test_docs.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _threads() -> Iterator[None]:
    """How many threads a module leaves torch is not for the next one."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _told() -> None:
    """Without the extension, the one warning that says so is no defect of what is tested."""
    if not EXTENSION.loaded:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            backends.select(torch.device("cpu"))


@pytest.fixture
def drawn() -> Iterator[None]:
    """Figures are drawn in this test."""
    with drawing.drawing():
        yield


def pytest_configure() -> None:
    """SIGINT as in a terminal: where a shell ignores it (background jobs), so would every program under test."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    drawing.figure.atomic_write = drawing.pixel
