"""What ``prepare.sh`` made elsewhere for a machine with a GPU: whether it fits here, and putting it where it belongs.

A folder holds ``carry.json``, the extension in ``lit_fast/``, the cache of Triton's compiled kernels in ``triton/`` and
Python packages in ``wheels/``; the last two may be missing. ``python -m benchmarks.gpu.carry FOLDER``, in the tree that
the extension was built in, writes ``carry.json``. Imports Python's own modules alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NOTE = "carry.json"
MAKE = "make it again: benchmarks/gpu/prepare.sh"
# What the extension is built from.
SOURCES = ("csrc", "kernels", "build_backend", "setup.py")


def digest(tree: Path) -> str:
    """Of the names and contents of everything that the extension is built from."""
    found = hashlib.sha256()
    for path in sorted(path for name in SOURCES for path in (tree / name, *(tree / name).rglob("*"))):
        if path.is_file() and path.suffix != ".pyc":
            name, content = path.relative_to(tree).as_posix(), path.read_bytes()
            found.update(f"{name}\0{len(content)}\0".encode() + content)
    return found.hexdigest()


def python_tag() -> str:
    """As ``"cpython-312-x86_64-linux-gnu"``: what an extension's file name says of the Python it is for."""
    return str(sysconfig.get_config_var("SOABI"))


def torch_version() -> str:
    """Of the torch that would be imported, as ``"2.11.0+cu130"``; ``"none"`` where there is none."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return "none"
    return str(runpy.run_path(str(Path(spec.origin).with_name("version.py")))["__version__"])


# --- on the machine with the GPU


def fits(folder: Path, tree: Path = ROOT, capability: str | None = None) -> str | None:
    """Why the folder's extension cannot be used by this Python; None where it can.

    Args:
        tree: the project's root; the extension must be built from these sources.
        capability: of the GPU, as ``"9.0"``; None: not asked for.
    """
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{folder} holds no {NOTE}; {MAKE}"
    python, torch, sources = python_tag(), torch_version(), digest(tree)
    arch = None if capability is None else f"sm_{capability.replace('.', '')}"
    needed, glibc = note["needs"].get("GLIBC", "0"), platform.libc_ver()[1]
    asked = (
        ("Python", note["python"], python, note["python"] == python),
        ("torch", note["torch"], torch, note["torch"] == torch),
        ("GPU", ", ".join(note["archs"]), arch, arch is None or arch in note["archs"]),
        ("sources", note["sources"][:12], sources[:12], note["sources"] == sources),
        ("glibc", f"{needed} or newer", glibc, _numbers(glibc) >= _numbers(needed)),
    )
    for name, made_for, here, right in asked:
        if not right:
            return f"{folder}: {name}: made for {made_for}, here it is {here}; {MAKE}"
    if not (folder / "lit_fast" / _library()).is_file():
        return f"{folder}/lit_fast holds no {_library()}; {MAKE}"
    return None


def use(folder: Path, tree: Path, scratch: Path, *, extension: bool = True) -> dict[str, str]:
    """Put a folder to use.

    The extension goes into the tree's ``lit_fast/``; a copy of Triton's cache and the packages of the wheels go into
    `scratch`, since the folder may be read-only.

    Args:
        extension: whether it fits; kernels and packages are of use without it.

    Returns:
        Environment variables to run commands with, PYTHONPATH with what it holds already.

    Raises:
        RuntimeError: the wheels cannot be installed.
    """
    if extension:
        target = tree / "lit_fast" / _library()
        target.unlink(missing_ok=True)  # a process that has loaded it keeps the file that it had
        shutil.copy(folder / "lit_fast" / _library(), target)
    found = {}
    if (folder / "triton").is_dir():
        found["TRITON_CACHE_DIR"] = str(_copy_cache(folder / "triton", scratch / "carried-triton"))
    wheels = sorted((folder / "wheels").glob("*.whl"))
    if wheels:
        packages = _install(wheels, scratch / "carried-packages")
        others = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        found["PYTHONPATH"] = os.pathsep.join([str(packages), *others])
    return found


def _library() -> str:
    return f"_C.{python_tag()}.so"


def _copy_cache(source: Path, target: Path) -> Path:
    """Triton finds the files of a kernel by the absolute paths in its ``__grp__`` file."""
    shutil.copytree(source, target)
    for group in target.glob("*/__grp__*.json"):
        content = json.loads(group.read_text(encoding="utf-8"))
        content["child_paths"] = {name: str(group.parent / name) for name in content["child_paths"]}
        group.write_text(json.dumps(content), encoding="utf-8")
    return target


def _install(wheels: list[Path], target: Path) -> Path:
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), *map(str, wheels)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the wheels of {wheels[0].parent} cannot be installed: {done.stderr.strip()[-400:]}")
    return target


def _numbers(version: str) -> list[int]:
    return list(map(int, re.findall(r"\d+", version)))


# --- on the machine without


def describe(folder: Path, tree: Path) -> dict[str, Any]:
    """What ``carry.json`` says: the Python and the torch that import the extension, and what it needs of a system."""
    code = "import json, torch, lit_fast; print(json.dumps([torch.version.cuda, lit_fast.build_info()]))"
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"prepare.sh: the extension does not load: {done.stderr.strip()[-800:]}")
    cuda, info = json.loads(done.stdout.splitlines()[-1])
    if not info["extension"] or not info["cuda_archs"]:
        raise SystemExit(f"prepare.sh: expected an extension with CUDA, got one for the CPU: {info['reason']}")
    return {
        "python": python_tag(),
        "torch": torch_version(),
        "cuda": cuda,
        "archs": info["cuda_archs"],
        "needs": system_versions(folder / "lit_fast" / _library()),
        "sources": digest(tree),
        "wheels": sorted(path.name for path in (folder / "wheels").glob("*.whl")),
        "triton_kernels": len(list((folder / "triton").glob("*/*.cubin"))),
    }


def system_versions(library: Path) -> dict[str, str]:
    """The newest versions of glibc and libstdc++ whose symbols the library asks for, as ``{"GLIBC": "2.32"}``."""
    symbols = subprocess.run(["objdump", "-T", str(library)], capture_output=True, text=True, check=True).stdout
    found: dict[str, str] = {}
    for name, version in re.findall(r"\b(GLIBC|GLIBCXX|CXXABI)_([\d.]+)", symbols):
        found[name] = max(found.get(name, "0"), version, key=_numbers)
    return found


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    note = describe(folder, ROOT)
    (folder / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    needs = ", ".join(f"{name} {version}" for name, version in sorted(note["needs"].items()))
    print(f"extension: {note['python']}, torch {note['torch']}, {', '.join(note['archs'])}; needs {needs}")


if __name__ == "__main__":
    main()
