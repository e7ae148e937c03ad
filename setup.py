"""Builds the compiled extension ``lit_fast._C``; everything else about the package is in pyproject.toml.

The extension needs torch (build_backend/ finds it) and a C++ compiler. Without a compiler the build stops and says so:
a silent install of the slow path would be noticed months later, if ever.

Environment variables:
    LIT_FAST_NO_EXT=1  install the Python code alone: losses are then computed by plain PyTorch operations.
    CXX, CXXFLAGS      the C++ compiler and further options for it.
    MAX_JOBS           how many files are compiled at once.
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

    if sys.platform == "win32":
        options = ["/O2", "/openmp"]
    else:
        # fno-...: loops with comparisons and calls vectorise; results and NaN keep their IEEE meaning.
        options = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-g0", "-Wall"]
        # Compiled for OpenMP, yet not linked to it: the runtime must be the one that torch has loaded.
        threads = "parallel backend: OpenMP" in torch.__config__.parallel_info() and sys.platform == "linux"
        options.append("-fopenmp" if threads else "-fopenmp-simd")
    headers = [*ROOT.glob("csrc/**/*.h"), *ROOT.glob("kernels/*.h")]
    module = CppExtension(
        "lit_fast._C",
        (ROOT / "csrc/sources.txt").read_text().split(),
        include_dirs=[str(ROOT)],
        depends=[str(header.relative_to(ROOT)) for header in headers],
        extra_compile_args={"cxx": options},
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": Build}}


# Metadata and source archives need neither torch nor a compiler.
wanted = BUILDS.intersection(sys.argv) and os.environ.get("LIT_FAST_NO_EXT") != "1"
setup(**(extension() if wanted else {}))
