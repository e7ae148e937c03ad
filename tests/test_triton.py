"""The Triton backend: when it is available, and its kernels on the CPU, in a process whose Triton interprets them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from everyday import but_first

from lit_fast.loss import backends
from lit_fast.loss.backends import native
from lit_fast.loss.backends import triton as backend

TESTS = Path(__file__).parent
HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
interpreting = os.environ.get("TRITON_INTERPRET") == "1"


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables |= {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), **environment}
    return subprocess.run([sys.executable, *arguments], env=variables, capture_output=True, text=True, cwd=TESTS.parent)


@needs_triton
@pytest.mark.parametrize("chosen", but_first(["not exhaustive", "exhaustive"]))
@pytest.mark.parametrize(
    "file", ["triton_interpreted.py", "triton_gather_interpreted.py", "triton_norm_interpreted.py"]
)
def test_kernels_in_the_interpreter(file: str, chosen: str) -> None:
    """The tests in that file; what failed there is in the message."""
    done = python("-m", "pytest", "-q", "-m", chosen, str(TESTS / file), TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_triton_is_imported_for_nothing_but_its_backend() -> None:
    code = """
import sys, torch, lit_fast
assert "triton" not in sys.modules
from lit_fast.loss.functional import ir_loss  # torch's own compiler, which this needs, looks whether there is a Triton
ir_loss([torch.zeros(3)], [torch.ones(3)])
ir_loss([torch.zeros(3)], [torch.ones(3)], backend="eager")
assert not {"lit_fast.triton", "lit_fast.loss.backends.triton"} & set(sys.modules)
import lit_fast.loss.backends.triton, lit_fast.triton.support
assert not {"lit_fast.triton.maths", "lit_fast.triton.launch", "lit_fast.triton.loss"} & set(sys.modules)
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_batches_of_the_device_register_no_loss() -> None:
    code = """
import torch, lit_fast.data.gather, lit_fast.models.fused_norm
from lit_fast.triton import support
support.available()
assert not hasattr(torch.ops.lit_fast, "lit_loss_triton")
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_the_ops_of_all_backends_have_one_schema() -> None:
    if not native.available()[0]:
        pytest.skip(native.available()[1])

    def schema(op: Any) -> str:
        return str(op.default._schema).partition("(")[2]

    ops = torch.ops.lit_fast
    assert schema(ops.lit_loss) == schema(ops.lit_loss_triton)
    assert schema(ops.rescale_) == schema(ops.rescale_triton_)
    assert schema(ops.lit_loss).startswith(schema(ops.lit_loss_total).partition(")")[0] + ", bool need_grad)")


def test_without_triton_the_backend_says_so() -> None:
    code = """
import sys
sys.modules["triton"] = None
import torch
from lit_fast.loss import backends
from lit_fast.loss.backends import triton
print(triton.available("cuda"))
backends.check("triton")
"""
    done = python("-c", code)
    assert done.stdout == "(False, 'Triton is not installed')\n", done.stderr
    assert "UnavailableError: backend 'triton' is not available: Triton is not installed" in done.stderr


@needs_triton
@pytest.mark.skipif(interpreting, reason="Triton interprets in this process")
def test_compiled_kernels_do_not_run_on_the_cpu() -> None:
    usable, reason = backend.available("cpu")
    assert not usable
    assert reason == "Triton's kernels run on CUDA GPUs, not on cpu; TRITON_INTERPRET=1 interprets them"
    with pytest.raises(RuntimeError, match="backend 'triton' is not available: Triton's kernels run on CUDA GPUs"):
        backends.select(torch.device("cpu"), "triton")


@needs_triton
@pytest.mark.skipif(interpreting, reason="Triton interprets in this process")
@pytest.mark.parametrize(
    ("capability", "usable", "reason"),
    [
        ((6, 0), False, "Triton needs a GPU of capability 7.0, this one has 6.0"),
        ((7, 0), True, "Triton compiles for capability 7.0"),
        ((9, 0), True, "Triton compiles for capability 9.0"),
    ],
)
def test_the_capability_decides(
    capability: tuple[int, int], usable: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device=None: capability)
    assert backend.available("cuda", 0) == (usable, reason)


@needs_triton
def test_an_old_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    monkeypatch.setattr(triton, "__version__", "3.3.1")
    assert backend.available("cuda") == (False, "the kernels need Triton 3.4, this is Triton 3.3.1")
