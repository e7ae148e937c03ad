"""The CUDA kernels, compiled for every generation of devices, without one: what the compilers say of them.

Compilers that are not there are skipped; with LIT_FAST_REQUIRE_CUDA_TOOLS=1 (.ci/cuda) that is an error.
"""

from __future__ import annotations

import os
import re

import cuda_compilers
import pytest
from cuda_compilers import KERNELS, ROOT, Compiled
from everyday import exhaustive

NVCC_13 = (75, 80, 90, 100, 120)
NVRTC_12 = (60, 70)  # Pascal and Volta: P100, V100


@pytest.fixture(
    params=[pytest.param(arch, marks=exhaustive) for arch in (*NVRTC_12, *NVCC_13)],
    ids=lambda arch: f"sm_{arch}",
    scope="module",
)
def compiled(request: pytest.FixtureRequest) -> Compiled:
    if request.param in NVRTC_12:
        if cuda_compilers.nvrtc_path() is None:
            missing("no NVRTC 12: pip install 'nvidia-cuda-nvrtc-cu12==12.9.*', or name its file in LIT_FAST_NVRTC")
        return cuda_compilers.with_nvrtc(request.param)
    if cuda_compilers.nvcc() is None:
        missing("no nvcc on the PATH")
    if not cuda_compilers.nvcc_knows(request.param):
        missing(f"this nvcc does not know sm_{request.param}")
    return cuda_compilers.with_nvcc(request.param)


def missing(reason: str) -> None:
    if os.environ.get("LIT_FAST_REQUIRE_CUDA_TOOLS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def test_no_register_is_spilled_to_memory(compiled):
    assert sorted(compiled.usage) == sorted(KERNELS)
    for name, usage in compiled.usage.items():
        assert (usage.spill_stores, usage.spill_loads) == (0, 0), f"{name}: {usage}"


def test_stack_holds_at_most_the_arguments_of_a_message(compiled):
    """An array that is indexed at run time, such as the table of sections, would be copied to the stack."""
    for name, usage in compiled.usage.items():
        assert usage.stack <= 32, f"{name}: {usage}"


def test_several_blocks_fit_a_multiprocessor(compiled):
    """512 threads and more: of 65,536 registers, and far from 48 KiB of shared memory."""
    for name, usage in compiled.usage.items():
        assert usage.registers <= 128, f"{name}: {usage}"
        assert usage.shared <= 1024, f"{name}: {usage}"


def test_memory_is_read_and_written_16_bytes_at_a_time(compiled):
    for kernel in compiled.ptx.split(".entry ")[1:]:
        name = kernel.split("(", 1)[0]
        assert re.search(r"ld\.global(\.\w+)*\.v4\.[ubf]32", kernel), name
        assert re.search(r"st\.global(\.\w+)*\.v4\.[ubf]32", kernel), name


def test_several_loads_are_in_flight(compiled):
    """A thread asks for 128 bytes of IRs, 64 of each tensor, before it uses any."""
    kernels = [text for text in compiled.ptx.split(".entry ")[1:] if re.match(r"\w+8lit_lossI\w*fE", text)]
    assert len(kernels) == 4  # all but that of float64
    for kernel in kernels:
        blocks = re.split(r"^\$\w+:", kernel, flags=re.MULTILINE)  # at labels
        before_first_use = [re.split(r"\b(?:sub|fma|cvt)\.", block, maxsplit=1)[0] for block in blocks]
        loads = [len(re.findall(r"ld\.global(?:\.\w+)*\.v4", text)) for text in before_first_use]
        assert max(loads) >= 2 * 64 // 16


def test_arguments_fit_what_every_device_takes(compiled):
    sizes = [int(size) for size in re.findall(r"\.param \.align 8 \.b8 \w+_param_0\[(\d+)\]", compiled.ptx)]
    assert len(sizes) == len(KERNELS)
    assert max(sizes) < 4096


def test_kernels_need_neither_torch_nor_cuda_headers():
    for file in [ROOT / "kernels/math.h", *(ROOT / "kernels/cuda").iterdir()]:
        included = set(re.findall(r"#include <(.+)>", file.read_text()))
        assert included <= {"algorithm", "cmath", "cstddef", "cstdio", "numeric", "vector"}, file.name
    assert "torch" not in re.sub(r"//[^\n]*", "", (ROOT / "csrc/cuda/launch.cu").read_text())
