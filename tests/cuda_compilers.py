"""Compile the CUDA kernels without a GPU, by nvcc or NVRTC, and read the compiler's report.

nvcc 13 knows sm_75 and later; NVRTC 12, which has sm_60 and sm_70 (P100, V100), comes as a Python package:
``pip install "nvidia-cuda-nvrtc-cu12==12.9.*"``.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SOURCE = """
#include "kernels/cuda/lit_loss.cuh"
#include "kernels/cuda/rescale.cuh"
using namespace lit_fast::cuda;
template __global__ void lit_fast::cuda::lit_loss<Half, float>(const Problem);
template __global__ void lit_fast::cuda::lit_loss<BFloat16, float>(const Problem);
template __global__ void lit_fast::cuda::lit_loss<float, float>(const Problem);
template __global__ void lit_fast::cuda::lit_loss<Any, float>(const Problem);
template __global__ void lit_fast::cuda::lit_loss<Any, double>(const Problem);
"""
_MANGLED = {
    "8lit_lossINS0_4HalfEfE": "lit_loss<f16>",
    "8lit_lossINS0_8BFloat16EfE": "lit_loss<bf16>",
    "8lit_lossIffE": "lit_loss<f32>",
    "8lit_lossINS0_3AnyEfE": "lit_loss<mixed>",
    "8lit_lossINS0_3AnyEdE": "lit_loss<f64>",
    "7rescaleE": "rescale",
}
KERNELS = tuple(_MANGLED.values())


class Usage(NamedTuple):
    """What ptxas says of one kernel."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


class Compiled(NamedTuple):
    usage: dict[str, Usage]  # by the names in KERNELS
    ptx: str


def nvcc() -> str | None:
    return shutil.which("nvcc")


@cache
def nvcc_knows(arch: int) -> bool:
    return f"sm_{arch}" in _run([nvcc() or "nvcc", "--list-gpu-code"]).split()


@cache
def nvrtc_path() -> Path | None:
    """NVRTC 12: the file in LIT_FAST_NVRTC, or that of the package nvidia-cuda-nvrtc-cu12."""
    given = os.environ.get("LIT_FAST_NVRTC")
    if given:
        return Path(given)
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else spec.submodule_search_locations or []
    found = [file for folder in folders for file in Path(folder).glob("cuda_nvrtc/lib/libnvrtc.so.12")]
    return found[0] if found else None


@cache
def with_nvcc(arch: int) -> Compiled:
    """Compile for sm_<arch>; raises RuntimeError with the compiler's words if it fails or warns."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernels.cu")
        source.write_text(SOURCE)
        options = ["-std=c++17", f"-I{ROOT}", "-Werror=all-warnings", "-Xptxas=-v", "-cubin", f"-arch=sm_{arch}"]
        log = _run([nvcc() or "nvcc", *options, "--keep", f"--keep-dir={folder}", "-o", f"{folder}/out", str(source)])
        return Compiled(_usage(log), next(Path(folder).glob("*.ptx")).read_text())


@cache
def with_nvrtc(arch: int) -> Compiled:
    """Compile for sm_<arch>; raises RuntimeError with the compiler's words if it fails."""
    library = ctypes.CDLL(str(nvrtc_path()))
    program = ctypes.c_void_p()
    options = [f"-I{ROOT}", "-std=c++17", "--ptxas-options=-v", f"-arch=sm_{arch}"]
    texts = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    status = library.nvrtcCreateProgram(ctypes.byref(program), SOURCE.encode(), b"kernels.cu", 0, None, None)
    if status == 0:
        status = library.nvrtcCompileProgram(program, len(options), texts)
    log = _nvrtc_text(library, program, "ProgramLog")
    if status != 0:
        raise RuntimeError(f"NVRTC, {' '.join(options)}: error {status}\n{log}")
    return Compiled(_usage(log), _nvrtc_text(library, program, "PTX"))


def _nvrtc_text(library: ctypes.CDLL, program: ctypes.c_void_p, name: str) -> str:
    size = ctypes.c_size_t()
    getattr(library, f"nvrtcGet{name}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(library, f"nvrtcGet{name}")(program, text)
    return text.raw.rstrip(b"\0").decode()


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def _usage(log: str) -> dict[str, Usage]:
    found = {}
    for report in log.split("Compiling entry function '")[1:]:
        name = next(plain for mangled, plain in _MANGLED.items() if mangled in report.split("'", 1)[0])
        stack, stores, loads = map(
            int,
            re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report).groups(),
        )
        shared = re.search(r"(\d+) bytes smem", report)
        registers = int(re.search(r"Used (\d+) registers", report).group(1))
        found[name] = Usage(registers, stack, stores, loads, int(shared.group(1)) if shared else 0)
    return found
