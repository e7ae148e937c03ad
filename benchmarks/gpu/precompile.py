"""Compiles Triton's kernels for a GPU that need not be there: ``python -m benchmarks.gpu.precompile CACHE CAPABILITY``.

Triton keeps what it compiled under a key of its own files, the kernel's source, the types and alignments of the
arguments and the GPU's capability. Nothing else of a machine is in it, so the cache of one serves another with the same
Triton. Kernels are asked for as ``tests/gpu`` and the benchmarks ask for them; what those ask for beyond that is
compiled when it runs. The launchers, which Triton builds with the C compiler, are made as well.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loss_cases import Case

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))

BATCH = 2  # kernels do not depend on it, as long as it is not 1
CLASSES = (10, 100, 1000, 1025, 50257)
SCALES = (None, 1024.0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.precompile")
    parser.add_argument("cache", type=Path, help="Triton's cache folder")
    parser.add_argument("capability", help='of the GPU, as "9.0"')
    chosen = parser.parse_args()
    start = time.monotonic()
    cache = chosen.cache.resolve()
    os.environ |= {"TRITON_CACHE_DIR": str(cache), "TRITON_STORE_BINARY_ONLY": "1"}
    kernels = compile_all(int(chosen.capability.replace(".", "")), cache)
    for earlier in {path.parent for path in cache.glob("*/*.cubin")} - kernels:
        shutil.rmtree(earlier)
    for source in cache.glob("*/*.source"):  # more than half of the cache, and nothing reads it
        source.unlink()
    print(f"Triton: {len(kernels)} kernels for capability {chosen.capability} in {time.monotonic() - start:.0f} s")


def compile_all(capability: int, cache: Path) -> set[Path]:
    """Compile what is not in the cache; the folders of all kernels that are asked for."""
    import triton
    from named_gpu import Driver

    from lit_fast.triton.launch import Launch

    triton.runtime.driver.set_active(Driver(capability))
    make_launcher = launcher_maker(cache)
    found = set()

    def compile_(one: Launch) -> None:
        kernel = one.kernel.warmup(**one.arguments, grid=(one.programs,), num_warps=one.warps)
        folder = Path(next(iter(kernel.metadata_group.values()))).parent
        if folder not in found:
            make_launcher(kernel.src, kernel.metadata)
        found.add(folder)

    Launch.run = compile_  # type: ignore[method-assign]
    _ask_for_losses()
    _ask_for_batches()
    _ask_for_norms()
    return found


def _ask_for_losses() -> None:
    """Forward and backward; tensors of the CPU do: types, alignments and counts are what a kernel depends on."""
    import loss_cases

    from lit_fast.loss.backends import triton

    for case in (*loss_cases.matrix(), *_real_cases()):
        loss_cases.run(triton.lit_loss, loss_cases.build(case), case.options)


def _real_cases() -> Iterator[Case]:
    """The sizes of ``tests/gpu`` and of the benchmarks."""
    import loss_cases

    from benchmarks import settings

    sections = tuple((BATCH, *shape) for shape in settings.CIFAR)
    for dtype, classes in itertools.product(loss_cases.DTYPES, CLASSES):
        yield loss_cases.Case("real", dtype, shapes=sections, batch=BATCH, classes=classes)
    measured = {(one.dtype, bool(one.sections), one.classes, one.beta) for one in settings.settings("cuda")}
    for (dtype, with_irs, classes, beta), scale in itertools.product(measured, SCALES):
        shapes, options = sections if with_irs else (), {"beta": beta, "alpha": 0.95, "tau": 6.0}
        yield loss_cases.Case(
            "measured", dtype, shapes=shapes, batch=BATCH, classes=classes, settings=options, grad_scale=scale
        )


def _ask_for_batches() -> None:
    import gather_cases

    from lit_fast.triton.gather import gather_launch

    for problem in map(gather_cases.build, gather_cases.CASES):
        if len(problem.out) > 0:
            gather_launch(*problem.arguments, problem.out, problem.labels).run()


def _ask_for_norms() -> None:
    """Those of ``tests/gpu`` and of the captured steps of ResNets, with running statistics and without."""
    import torch
    from norm_cases import DTYPES, Case, build, matrix

    from lit_fast.models.fused_norm import _fused

    sizes = ((4, 16, 32, 32), (4, 32, 32, 32), (4, 64, 32, 32), (64, 64, 32, 32), (128, 16, 32, 32), (64, 32, 32, 32))
    of_networks = [
        Case("real", shape, dtype, residual, options={"track_running_stats": tracked})
        for shape, dtype, residual, tracked in itertools.product(sizes, DTYPES, (False, True), (False, True))
    ]
    for case in (*matrix(), *of_networks):
        problem = build(case)
        y = _fused(problem.norm, problem.x, problem.residual, problem.relu)
        torch.autograd.grad(y, problem.leaves(), problem.dy)


def launcher_maker(cache: Path) -> Any:
    """What makes a launcher of (source, metadata): as Triton does, without NVIDIA's driver; it is not loaded."""
    from triton import knobs
    from triton.backends.nvidia import driver
    from triton.runtime import build

    knobs.nvidia.libcuda_path = str(_stand_in(cache.parent / "stand-in", Path(driver.dirname)))
    build._load_module_from_path = lambda *_: _Anything()
    driver.CudaUtils()
    if not hasattr(driver, "make_launcher"):
        return lambda _source, _metadata: None  # from Triton 3.7 on, CudaUtils launches every kernel
    return driver.CudaLauncher


def _stand_in(folder: Path, triton_driver: Path) -> Path:
    """A folder with a library to link with in place of NVIDIA's driver.

    It has the functions that Triton calls: linkers may leave out a library of which nothing is used.
    """
    text = "".join((triton_driver / name).read_text(encoding="utf-8") for name in ("driver.c", "driver.py"))
    names = sorted(set(re.findall(r"\b(cu[A-Z]\w+)\(", text)))
    folder.mkdir(parents=True, exist_ok=True)
    source, library = folder / "libcuda.c", folder / "libcuda.so.1"
    source.write_text("".join(f"void {name}(void) {{}}\n" for name in names), encoding="utf-8")
    command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    return folder


class _Anything(SimpleNamespace):
    """Has every attribute."""

    def __getattr__(self, _name: str) -> None:
        return None


if __name__ == "__main__":
    main()
