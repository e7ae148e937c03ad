"""Whether and how the CUDA part of the extension is built: shared by setup.py and CMakeLists.txt.

CUDA is built where torch is built for CUDA and an nvcc of the same major version is found; whether this machine has a
GPU plays no role. ``find`` tells the compiler, the toolkit's folder and the architectures.

Environment variables:
    LIT_FAST_CPU_ONLY=1   build for the CPU alone.
    FORCE_CUDA=1          fail, with the mend, where CUDA cannot be built, in place of building for the CPU alone.
    CUDA_HOME             the toolkit's folder; else that of the nvcc on the PATH, or /usr/local/cuda.
    TORCH_CUDA_ARCH_LIST  compute capabilities, as "8.0 9.0+PTX"; else all ARCHS that nvcc knows, and PTX of the newest.
    NVCC_PREPEND_FLAGS, NVCC_CCBIN  further options and the host compiler, which nvcc reads itself.
    MAX_JOBS              how many architectures nvcc compiles at once.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ARCHS = (60, 70, 75, 80, 86, 89, 90, 100, 120)
OPTIONS = ("-std=c++17", "-O3", f"-I{ROOT}")
FOLDER = "csrc/cuda/"  # the sources that need CUDA


class NoCuda(Exception):
    """Why CUDA cannot be built, and the mend."""


class Cuda(NamedTuple):
    """A CUDA toolkit and what to build with it.

    Attributes:
        nvcc: the compiler.
        home: the toolkit's folder; holds ``include`` or ``targets/*/include``.
        version: as ``"13.0"``.
        archs: as ``("sm_80", "sm_90")``, ascending.
        ptx: as ``("compute_90",)``: what newer devices compile for themselves.
    """

    nvcc: str
    home: Path
    version: str
    archs: tuple[str, ...]
    ptx: tuple[str, ...]

    @property
    def include_dirs(self) -> list[str]:
        """The toolkit's headers; behind them those of the packages that come with torch, which a bare toolkit lacks."""
        import torch

        own = _folders(self.home, "cuda_runtime.h", "include", "targets/*/include")
        packages = sorted(Path(torch.__file__).parents[1].glob("nvidia/**/include"))
        return list(map(str, [*own, *packages]))

    @property
    def library_dirs(self) -> list[str]:
        """Where the toolkit's libcudart is."""
        return list(map(str, _folders(self.home, "libcudart.so", "lib64", "lib", "targets/*/lib")))

    @property
    def codes(self) -> tuple[str, ...]:
        """Machine code and PTX, as ``("sm_80", "sm_90", "compute_90")``."""
        return (*self.archs, *self.ptx)

    @property
    def gencode(self) -> list[str]:
        """nvcc's options for the architectures."""
        return [f"-gencode=arch=compute_{code.partition('_')[2]},code={code}" for code in self.codes]

    def compile(self, source: str, objects: Path) -> Path:
        """Compile a .cu file, unless it has been since it and the headers were last changed, with the same command."""
        target = objects / Path(source).with_suffix(".cu.o").name
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        host = ["-Xcompiler=-fPIC,-fvisibility=hidden"] if sys.platform != "win32" else []
        command = [self.nvcc, *OPTIONS, *host, *self.gencode, "-c", source, "-o", str(target)]
        note, recipe = target.with_suffix(".command"), f"CUDA {self.version}: {' '.join(command)}"
        inputs = [ROOT / source, *ROOT.glob("csrc/cuda/*.h"), *ROOT.glob("kernels/**/*.*h")]
        newest = max(file.stat().st_mtime for file in inputs)
        fresh = target.is_file() and target.stat().st_mtime > newest
        if fresh and note.is_file() and note.read_text() == recipe:
            return target
        objects.mkdir(parents=True, exist_ok=True)
        print("lit_fast:", " ".join(command), flush=True)
        if subprocess.run([*command, f"--threads={jobs}"], cwd=ROOT, check=False).returncode != 0:
            raise SystemExit(f"lit_fast: {source} did not compile (see above); LIT_FAST_CPU_ONLY=1 builds without CUDA")
        note.write_text(recipe)
        return target


def find() -> Cuda | None:
    """The toolkit to build with, or None, having said why, where the extension is for the CPU alone.

    Raises:
        SystemExit: FORCE_CUDA=1 and CUDA cannot be built; or TORCH_CUDA_ARCH_LIST cannot be met.
    """
    import torch

    forced = os.environ.get("FORCE_CUDA") == "1"
    if os.environ.get("LIT_FAST_CPU_ONLY") == "1":
        return None
    try:
        if torch.version.cuda is None:
            if forced:
                raise NoCuda(f"torch {torch.__version__} is built without CUDA; install a build of torch with CUDA")
            return None
        return _toolkit(torch.version.cuda)
    except NoCuda as reason:
        if forced:
            raise SystemExit(f"lit_fast: FORCE_CUDA=1, but {reason}") from None
        print(f"lit_fast: building for the CPU alone: {reason}", file=sys.stderr, flush=True)
        return None


def split_sources(sources: Sequence[str], *, cuda: bool) -> tuple[list[str], list[str]]:
    """(for the C++ compiler, for nvcc) of csrc/sources.txt."""
    wanted = [source for source in sources if cuda or not source.startswith(FOLDER)]
    return [s for s in wanted if not s.endswith(".cu")], [s for s in wanted if s.endswith(".cu")]


def _toolkit(torch_cuda: str) -> Cuda:
    major = torch_cuda.split(".")[0]
    nvcc = _find_nvcc()
    if nvcc is None:
        raise NoCuda(
            f"torch is built for CUDA {torch_cuda}, and there is no nvcc on the PATH, in CUDA_HOME or in "
            f"/usr/local/cuda; install the CUDA toolkit {major}.x, or name its folder in CUDA_HOME"
        )
    release = re.search(r"release (\d+)\.(\d+)", _output([nvcc, "--version"]))
    if release is None:
        raise NoCuda(f"{nvcc} --version does not tell a release; name the CUDA toolkit's folder in CUDA_HOME")
    if release.group(1) != major:
        raise NoCuda(
            f"torch is built for CUDA {torch_cuda}, {nvcc} is of {release.group(1)}.{release.group(2)}; "
            f"install the CUDA toolkit {major}.x and name its folder in CUDA_HOME"
        )
    known = [f"sm_{number}" for number in re.findall(r"sm_(\d+[a-z]?)\b", _output([nvcc, "--list-gpu-code"]))]
    archs, ptx = _architectures(known, os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
    return Cuda(nvcc, _home_of(nvcc), f"{release.group(1)}.{release.group(2)}", archs, ptx)


def _find_nvcc() -> str | None:
    name = "nvcc.exe" if sys.platform == "win32" else "nvcc"
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return shutil.which(Path(home, "bin", name))
    return shutil.which(name) or shutil.which(Path("/usr/local/cuda/bin", name))


def _home_of(nvcc: str) -> Path:
    """The toolkit's folder as nvcc sees it: the nvcc on the PATH may be a script that calls another."""
    told = re.search(r"^#\$ TOP=(.+)$", _output([nvcc, "--dryrun", "-c", "-x", "cu", os.devnull]), re.MULTILINE)
    guesses = [Path(told.group(1).strip())] if told else []
    guesses += [Path(os.environ.get("CUDA_HOME", nvcc)), Path(nvcc).resolve().parents[1], Path("/usr/local/cuda")]
    for home in guesses:
        if _folders(home, "cuda_runtime.h", "include", "targets/*/include"):
            return home.resolve()
    raise NoCuda(f"{nvcc} has no include/cuda_runtime.h beside it; name the CUDA toolkit's folder in CUDA_HOME")


def _architectures(known: Sequence[str], asked: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(sm_*, compute_*) to build, of those that nvcc knows and, if given, a TORCH_CUDA_ARCH_LIST."""
    if not asked.strip():
        archs = [f"sm_{number}" for number in ARCHS if f"sm_{number}" in known]
        if not archs:
            raise NoCuda(f"nvcc knows none of the architectures {', '.join(map(str, ARCHS))}; set TORCH_CUDA_ARCH_LIST")
        return tuple(archs), (archs[-1].replace("sm_", "compute_"),)
    chosen, ptx = set(), set()
    for word in re.split(r"[\s;,]+", asked.strip()):
        match = re.fullmatch(r"(\d+)\.(\d+)([a-z]?)(\+PTX)?", word)
        arch = match and f"sm_{match.group(1)}{match.group(2)}{match.group(3)}"
        if match is None or arch not in known:
            raise SystemExit(
                f"lit_fast: TORCH_CUDA_ARCH_LIST={asked!r}: expected compute capabilities that this nvcc knows "
                f"({' '.join(known)}), as '8.0 9.0+PTX', got {word!r}"
            )
        chosen.add(str(arch))
        if match.group(4):
            ptx.add(str(arch).replace("sm_", "compute_"))
    return tuple(sorted(chosen, key=_number)), tuple(sorted(ptx, key=_number))


def _number(arch: str) -> int:
    return int(re.sub(r"\D", "", arch))


def _folders(home: Path, file: str, *patterns: str) -> list[Path]:
    """The folders under `home` that match one of the patterns and hold `file`."""
    found = [folder for pattern in patterns for folder in sorted(home.glob(pattern)) if (folder / file).is_file()]
    return list(dict.fromkeys(folder.resolve() for folder in found))


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def _print_facts() -> None:
    """For CMake, one fact a line: nvcc, version, codes, include and library folders; nothing without CUDA."""
    cuda = find()
    if cuda is not None:
        lists = [cuda.codes, cuda.gencode, cuda.include_dirs, cuda.library_dirs]
        print(cuda.nvcc, cuda.version, *(";".join(items) for items in lists), sep="\n")


if __name__ == "__main__":
    _print_facts()
