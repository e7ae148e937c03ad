"""Builds the compiled extension ``lit_fast._C``; everything else about the package is in pyproject.toml.

The extension needs torch (build_backend/ finds it) and a C++ compiler. Without a compiler the build stops and says so:
a silent install of the slow path would be noticed months later, if ever. CUDA kernels are built where torch has CUDA
and there is an nvcc for it (build_backend/cuda_build.py, which names more variables).

Environment variables:
    LIT_FAST_NO_EXT=1  install the Python code alone: losses are then computed by plain PyTorch operations.
    CXX, CXXFLAGS      the C++ compiler and further options for it.
    MAX_JOBS           how many files are compiled at once.
    LIT_FAST_CPU_ONLY=1, FORCE_CUDA=1  no CUDA; CUDA or an error.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import setup

ROOT = Path(__file__).resolve().parent
BUILDS = {"bdist_wheel", "build", "build_ext", "develop", "editable_wheel", "install"}


def extension() -> dict[str, Any]:
    """The arguments of ``setup()`` that build the extension against the torch that can be imported."""
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, get_cxx_compiler

    sys.path.insert(0, str(ROOT / "build_backend"))
    import cuda_build

    compiler = "cl" if sys.platform == "win32" else get_cxx_compiler()

    class Build(BuildExtension):
        def finalize_options(self) -> None:
            super().finalize_options()
            self.force = True  # ninja knows what is out of date; setuptools does not see that torch was replaced

        def run(self) -> None:
            if shutil.which(compiler) is None:
                raise SystemExit(
                    f"lit_fast: no C++ compiler: {compiler!r} is not on the PATH. Install one (Debian, Ubuntu: "
                    "apt install g++; macOS: xcode-select --install), or name yours in CXX, or set LIT_FAST_NO_EXT=1 "
                    "to install without the compiled extension (slower, equal results)."
                )
            super().run()

        def build_extensions(self) -> None:
            self.extensions[0].extra_objects += [
                str(cuda.compile(source, Path(self.build_temp).resolve()))
                for source in cuda_sources
                if cuda is not None
            ]
            super().build_extensions()

    if sys.platform == "win32":
        options = ["/O2", "/openmp"]
    else:
        # fno-...: loops with comparisons and calls vectorise; results and NaN keep their IEEE meaning.
        options = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-g0", "-Wall"]
        # Compiled for OpenMP, yet not linked to it: the runtime must be the one that torch has loaded.
        threads = "parallel backend: OpenMP" in torch.__config__.parallel_info() and sys.platform == "linux"
        options.append("-fopenmp" if threads else "-fopenmp-simd")
    headers = [*ROOT.glob("csrc/**/*.h"), *ROOT.glob("kernels/**/*.*h")]
    cuda = cuda_build.find()
    sources, cuda_sources = cuda_build.split_sources(
        (ROOT / "csrc/sources.txt").read_text().split(), cuda=cuda is not None
    )
    module = CppExtension(
        "lit_fast._C",
        sources,
        include_dirs=[str(ROOT), *(cuda.include_dirs if cuda else ())],
        library_dirs=cuda.library_dirs if cuda else [],
        libraries=["c10_cuda", "cudart"] if cuda else [],
        define_macros=[("LIT_CUDA", f'"{cuda.version}"'), ("LIT_CUDA_ARCHS", f'"{",".join(cuda.codes)}"')]
        if cuda
        else [],
        depends=[str(header.relative_to(ROOT)) for header in headers],
        extra_compile_args={"cxx": options},
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": Build}}


# Metadata and source archives need neither torch nor a compiler.
wanted = BUILDS.intersection(sys.argv) and os.environ.get("LIT_FAST_NO_EXT") != "1"
setup(**(extension() if wanted else {}))
