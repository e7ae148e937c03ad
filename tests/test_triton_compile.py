"""The Triton kernels, compiled for NVIDIA's GPUs on a machine that need not have one.

Triton asks a driver for the GPU to compile for; a driver that only names one is enough to compile, not to launch. The
arguments are those that the backend would launch the kernels with.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gather_cases
import pytest
import torch
from everyday import but_first, in_turn
from torch import Tensor

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton interprets in this process", allow_module_level=True)

import triton
from named_gpu import Driver

from lit_fast.triton import batch_norm, launch, loss
from lit_fast.triton.gather import gather_launch
from lit_fast.triton.rescale import rescale_launches

PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
CAPABILITIES = (70, 80, 90)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
KINDS = [(capability, dtype) for capability in CAPABILITIES for dtype in DTYPES]
# ptxas gives up to 4 registers for another program on a multiprocessor; a spilt block of numbers would be hundreds.
FEW_BYTES = 16
WIDE_LOAD, WIDE_STORE = r"ld\.global\.(v4\.b32|v2\.b64)", r"st\.global\.(v4\.b32|v2\.b64)"


@pytest.fixture
def compiled_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that compiles a launch for a capability: (PTX, what ptxas says of registers and spills)."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))

    def compile_(one: launch.Launch, capability: int) -> tuple[str, str]:
        triton.runtime.driver.set_active(Driver(capability))
        kernel = one.kernel.warmup(**one.arguments, grid=(one.programs,), num_warps=one.warps)
        ptx = kernel.asm["ptx"]
        source = tmp_path / "kernel.ptx"
        source.write_text(ptx)
        (target,) = re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)
        command = [str(PTXAS), "-v", f"--gpu-name={target}", str(source), "-o", str(tmp_path / "kernel.cubin")]
        return ptx, subprocess.run(command, check=True, capture_output=True, text=True).stderr

    yield compile_
    with contextlib.suppress(RuntimeError):  # no GPU: no driver to go back to
        triton.runtime.driver.reset_active()


def loss_launches(
    dtype: torch.dtype, *, sections: int = 3, classes: int = 10, offset: int = 0, counted: bool = False, **changes: Any
) -> list[launch.Launch]:
    """The launches of a loss of IRs [8192], logits [8, classes], all options on; `offset`: elements into the memory.

    counted: with soft labels, and rows that do not count.
    """

    def tensor(*shape: int) -> Tensor:
        return torch.zeros(offset + torch.Size(shape).numel(), dtype=dtype)[offset:].view(shape)

    irs = [tensor(8192) for _ in range(2 * sections)]
    ir_rows = torch.ones(64, dtype=torch.uint8) if counted else None
    pairs = [launch.Section(s, t, tensor(8192), ir_rows) for s, t in zip(irs[:sections], irs[sections:])]
    labels, weight = torch.zeros(8, dtype=torch.long), torch.ones(classes)
    rows = loss.Rows(*(tensor(8, classes) for _ in range(2)), labels, weight, tensor(8, classes))
    counts = None
    if counted:
        soft_labels, counts = tensor(8, classes), torch.ones(2 + sections, dtype=torch.float64)
        rows = replace(rows, labels=None, soft_labels=soft_labels, counted=torch.ones(8, dtype=torch.uint8))
    settings = loss.Settings(**{
        "section_weights": (1.0,) * sections, "ir_kind": 0, "alpha": 0.9, "beta": 0.5, "tau": 6.0, "tau_squared": True,
        "ignore_index": -100, "label_smoothing": 0.1, **changes,
    })  # fmt: skip
    parts = torch.zeros(3 + sections, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    return loss.loss_launches(pairs, rows, parts, torch.tensor(1.0), settings, counts)


@pytest.mark.parametrize(("capability", "dtype"), in_turn(KINDS, lambda kind: kind[1]), ids=str)
def test_aligned_irs_move_16_bytes_at_a_time_and_nothing_spills(
    capability: int, dtype: torch.dtype, compiled_for: Any
) -> None:
    stage_one, stage_two = loss_launches(dtype)
    rescale = rescale_launches([torch.zeros(8192, dtype=dtype)], torch.tensor(2.0), torch.tensor(2.0))
    for one in (stage_one, stage_two, *rescale):
        ptx, report = compiled_for(one, capability)
        spilt = [int(count) for count in re.findall(r"(\d+) bytes spill", report)]
        assert len(spilt) == 2, report
        assert max(spilt) <= FEW_BYTES, report
        if one is stage_two:
            continue
        # student, teacher and gradient, BLOCK elements of each over 128 threads
        words = launch.BLOCK // (32 * one.warps) * dtype.itemsize // 16
        loads, stores = (len(re.findall(wide, ptx)) for wide in (WIDE_LOAD, WIDE_STORE))
        assert (loads, stores) == ((2 * words if one is stage_one else words), words)


@pytest.mark.parametrize("ir_kind", [1, 2])
def test_every_element_loss_compiles(ir_kind: int, compiled_for: Any) -> None:
    stage_one, _ = loss_launches(torch.float16, ir_kind=ir_kind)
    ptx, _ = compiled_for(stage_one, 90)
    assert re.search(WIDE_LOAD, ptx)


@pytest.mark.parametrize(("capability", "dtype"), in_turn(KINDS, lambda kind: kind[0]), ids=str)
def test_soft_labels_and_rows_that_do_not_count_compile_and_nothing_spills(
    capability: int, dtype: torch.dtype, compiled_for: Any
) -> None:
    for one in loss_launches(dtype, counted=True):
        _, report = compiled_for(one, capability)
        assert max(int(count) for count in re.findall(r"(\d+) bytes spill", report)) <= FEW_BYTES, report


def test_irs_that_are_not_aligned_are_not_read_as_if_they_were(compiled_for: Any) -> None:
    stage_one, _ = loss_launches(torch.float16, offset=1)
    ptx, _ = compiled_for(stage_one, 80)
    assert not re.search(WIDE_LOAD, ptx)
    assert not re.search(WIDE_STORE, ptx)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_long_rows_have_a_launch_of_their_own_that_does_not_spill(dtype: torch.dtype, compiled_for: Any) -> None:
    of_rows, of_irs, _ = loss_launches(dtype, classes=50_257)
    _, report = compiled_for(of_rows, 80)
    assert "0 bytes spill stores, 0 bytes spill loads" in report
    (registers,) = map(int, re.findall(r"Used (\d+) registers", report))
    assert registers * 32 * of_rows.warps <= 65536  # one program fits a multiprocessor
    _, report = compiled_for(of_irs, 80)
    (registers,) = map(int, re.findall(r"Used (\d+) registers", report))
    assert registers <= 64  # at least 8 programs on a multiprocessor


def test_a_kernel_does_not_depend_on_sizes_that_vary(compiled_for: Any) -> None:
    """Another batch, other numbers of elements, weights and labels must not cost a compilation."""
    from lit_fast.triton.stages import loss_kernel, parts_kernel

    def compilations(batch: int, numel: int, alpha: float, ignore_index: int) -> list[int]:
        irs = [torch.zeros(numel + i, dtype=torch.float16) for i in range(3)]
        pairs = [launch.Section(ir, ir.clone(), ir.clone()) for ir in irs]
        logits = torch.zeros(batch, 10)
        rows = loss.Rows(logits, logits.clone(), torch.zeros(batch, dtype=torch.long), None, logits.clone())
        numbers = loss.Settings((1.0, alpha, 2.0), 0, alpha, 0.5, 6.0, True, ignore_index, 0.0)
        launches = loss.loss_launches(pairs, rows, torch.zeros(6), None, numbers)
        for one in launches:
            compiled_for(one, 90)
        return [len(kernel.device_caches[90][0]) for kernel in (loss_kernel, parts_kernel)]

    first = compilations(32, 4096, 0.9, -100)
    assert compilations(1, 5, 0.5, 3) == first
    assert compilations(33, 4099, 0.1, 0) == first
    assert compilations(16, 1_000_000, 0.1, 255) == first


def test_label_kernel_compiles(compiled_for: Any) -> None:
    labels = torch.zeros(20_000, dtype=torch.long)
    logits = torch.zeros(20_000, 3)
    rows = loss.Rows(logits, None, labels, torch.ones(3), logits.clone())
    numbers = loss.Settings((), 0, 1.0, 1.0, 1.0, True, -100, 0.0)
    launches = loss.loss_launches([], rows, torch.zeros(3), None, numbers)
    assert [one.programs for one in launches[::2]] == [3, 1]
    for one in launches:
        compiled_for(one, 80)


@pytest.mark.parametrize("case", gather_cases.CASES[:6] + gather_cases.CASES[-2:], ids=lambda case: case.name)
@pytest.mark.parametrize("capability", but_first(CAPABILITIES))
def test_gather_compiles_and_does_not_spill(capability: int, case: gather_cases.Case, compiled_for: Any) -> None:
    problem = gather_cases.build(case)
    ptx, report = compiled_for(gather_launch(*problem.arguments, problem.out, problem.labels), capability)
    assert "0 bytes spill stores, 0 bytes spill loads" in report
    assert re.search(r"ld\.global\.b8", ptx)  # pixels are read as bytes


def test_another_batch_is_no_other_gather_kernel(compiled_for: Any) -> None:
    from lit_fast.triton.gather import gather_kernel

    def compilations(**changes: int) -> int:
        problem = gather_cases.build(gather_cases.Case("sizes", **changes))
        compiled_for(gather_launch(*problem.arguments, problem.out, problem.labels), 90)
        return len(gather_kernel.device_caches[90][0])

    first = compilations()
    assert compilations(batch=3, first=1) == first
    assert compilations(count=64, planned=16, batch=1) == first


def norm_launches(
    dtype: torch.dtype, channels: int, *, batch: int = 32, residual: bool = True, momentum: float | None = 0.1
) -> list[launch.Launch]:
    """Those of BatchNorm and ReLU over [batch, channels, 32, 32], forward and backward."""
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    x, y, dy, dx, other, masked = (torch.empty(batch * 1024, channels, dtype=dtype) for _ in range(6))
    weight, bias, mean, var, grad_weight, grad_bias = (torch.empty(channels, dtype=computed) for _ in range(6))
    moments = torch.empty(2, channels, dtype=computed)
    running = batch_norm.Running(mean, var, torch.zeros((), dtype=torch.int64), momentum)
    rest = (y, masked) if residual else (None, None)
    return [
        *batch_norm.forward_launches(
            batch_norm.Forward(x, other if residual else None, weight, bias, y, moments, running, 1e-5, True)
        ),
        *batch_norm.backward_launches(
            batch_norm.Backward(dy, x, rest[0], weight, bias, moments, dx, rest[1], grad_weight, grad_bias, True)
        ),
    ]


@pytest.mark.parametrize(
    ("capability", "dtype", "residual"),
    in_turn([(*kind, residual) for kind in KINDS for residual in (False, True)], lambda kind: kind[1]),
    ids=str,
)
def test_norms_move_16_bytes_at_a_time_and_nothing_spills(
    capability: int, dtype: torch.dtype, residual: bool, compiled_for: Any
) -> None:
    launches = norm_launches(dtype, 16, batch=16, residual=residual)
    assert len(launches) == 4
    words = batch_norm.TILE // 256 * dtype.itemsize // 16  # of 256 threads; a tile of float64 is half as large
    words = words // 2 if dtype == torch.float64 else words
    read = {"moments_kernel": 1, "normalise_kernel": 1 + residual, "sums_kernel": 2 + residual, "slope_kernel": 2}
    written = {"moments_kernel": 0, "normalise_kernel": 1, "sums_kernel": int(residual), "slope_kernel": 1}
    for one in launches:
        ptx, report = compiled_for(one, capability)
        spilt = [int(count) for count in re.findall(r"(\d+) bytes spill", report)]
        assert max(spilt) <= FEW_BYTES, report
        if dtype == torch.bfloat16 and capability >= 80:
            (registers,) = map(int, re.findall(r"Used (\d+) registers", report))
            assert registers <= 128  # at least 2 programs on a multiprocessor
        name = one.kernel.__name__
        assert len(re.findall(WIDE_LOAD, ptx)) >= read[name] * words
        assert len(re.findall(WIDE_STORE, ptx)) >= written[name] * words


@pytest.mark.parametrize(
    ("channels", "momentum"), but_first([(c, m) for c in (70, 1, 3, 24, 1024) for m in (0.1, None)])
)
def test_norms_of_any_width_compile(channels: int, momentum: float | None, compiled_for: Any) -> None:
    for one in norm_launches(torch.bfloat16, channels, batch=2, momentum=momentum):
        compiled_for(one, 90)


def test_norms_of_many_rows_have_a_launch_in_between(compiled_for: Any) -> None:
    launches = norm_launches(torch.bfloat16, 16, batch=1024)
    names = [one.kernel.__name__ for one in launches]
    assert names[:3] == ["moments_kernel", "finish_moments_kernel", "normalise_kernel"]
    assert names[3:] == ["sums_kernel", "finish_sums_kernel", "slope_kernel"]
    for one in launches:
        _, report = compiled_for(one, 90)
        assert "0 bytes spill stores, 0 bytes spill loads" in report


def test_another_batch_is_no_other_norm_kernel(compiled_for: Any) -> None:
    kernels = (batch_norm.moments_kernel, batch_norm.normalise_kernel, batch_norm.sums_kernel, batch_norm.slope_kernel)

    def compilations(batch: int, channels: int) -> list[int]:
        for one in norm_launches(torch.bfloat16, channels, batch=batch):
            compiled_for(one, 90)
        return [len(kernel.device_caches[90][0]) for kernel in kernels]

    compilations(32, 64)  # a launch in between finishes the moments
    both = compilations(1, 64)  # each program does
    assert compilations(2, 64) == both
    assert compilations(33, 64) == both
    assert compilations(2, 512) == both
