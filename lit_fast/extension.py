"""The compiled extension ``lit_fast._C``: `EXTENSION` says whether it is loaded, and why not.

A library that was compiled for another torch may fail to load, or load and crash. So what it was compiled with
is written into the file as text (csrc/bindings.cpp) and compared with the torch in use before it is loaded.
"""

from __future__ import annotations

import importlib
import mmap
import os
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

import torch

_MARK = b"lit_fast-build;"
# pip would take the wheel that it built last time, for another torch, from its cache.
_MEND = "install lit_fast again: pip install --force-reinstall --no-deps --no-cache-dir . in its checkout"


class Extension(NamedTuple):
    """The compiled extension as found.

    Attributes:
        loaded: its ops are registered under ``torch.ops.lit_fast``.
        reason: why it is used, or why not and what to do.
        built: what it was compiled with (torch, compiler, openmp, cxx11_abi, cuda, cuda_archs); empty if there is none.
        path: the file; None if there is none.
    """

    loaded: bool
    reason: str
    built: dict[str, str]
    path: Path | None

    @property
    def instruction_set(self) -> str | None:
        """The processor's instructions that its loops use: ``"avx512"``, ``"avx2"`` or ``"baseline"``."""
        return importlib.import_module("lit_fast._C").instruction_set if self.loaded else None

    @property
    def devices(self) -> tuple[str, ...]:
        """The types of devices that it has code for."""
        return ("cpu", "cuda") if self.cuda_archs else ("cpu",)

    @property
    def cuda_archs(self) -> tuple[str, ...]:
        """GPU architectures that it has code for, ``"sm_80"``, and PTX, ``"compute_90"``; empty for a CPU build."""
        return tuple(filter(None, self.built.get("cuda_archs", "").split(",")))


# Of the ops that compute the loss: first the fields of `lit_fast.loss.backends.Inputs`, in order.
LOSS_ARGUMENTS = (
    "Tensor[] student_irs, Tensor[] teacher_irs, Tensor? student_logits, Tensor? teacher_logits, Tensor? labels, "
    "Tensor? class_weight, Tensor? grad_scale, Tensor? rows, Tensor? counts, Tensor[] ir_rows, "
    "float[] section_weights, int ir_kind, float alpha, float beta, float tau, bool tau_squared, int ignore_index, "
    "float label_smoothing"
)
_LIBRARY = torch.library.Library("lit_fast", "FRAGMENT")


def load() -> Extension:
    """Load the extension if there is one for this torch; never raises for one that is missing or unfit.

    With ``LIT_FAST_NO_EXT=1`` in the environment it is as if there were none.
    """
    if os.environ.get("LIT_FAST_NO_EXT") == "1":
        return Extension(False, "LIT_FAST_NO_EXT=1 is in the environment", {}, None)
    # Beside this package's own files and nowhere else: an editable install of another checkout may offer its own.
    spec = PathFinder.find_spec("lit_fast._C", [str(Path(__file__).parent)])
    if spec is None or spec.origin is None:
        return Extension(False, "lit_fast was installed without its compiled extension", {}, None)
    path = Path(spec.origin)
    built = _read_build(path)
    misfit = _misfit(built)
    if misfit is not None:
        return Extension(False, f"{misfit}; {_MEND}", built, path)
    try:
        importlib.import_module("lit_fast._C")
    except ImportError as error:
        return Extension(False, f"{path.name} does not load: {error}; {_MEND}", built, path)
    # At once: torch.compile and torch.export ask for the schemas of all composite ops there are (csrc/autograd.cpp).
    _LIBRARY.define(f"lit_loss_total({LOSS_ARGUMENTS}) -> (Tensor total, Tensor parts)")
    return Extension(True, f"compiled for torch {built['torch']} by {built['compiler']}", built, path)


def _read_build(path: Path) -> dict[str, str]:
    """The build text in the file, ``lit_fast-build;key=value;...;``, as a dictionary; empty if there is none."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(_MARK)
        if start < 0:
            return {}
        text = content[start + len(_MARK) : content.find(b"\0", start)].decode()
    return dict(item.split("=", 1) for item in text.split(";") if item)


def _misfit(built: dict[str, str]) -> str | None:
    """Why a library with this build text must not be loaded into this torch, or None."""
    if not built:
        return "the compiled extension does not say what it was built for"
    release = torch.__version__.split("+")[0]
    # C++ interfaces are kept within a minor release; the CPU and CUDA builds of one release share them.
    if built["torch"].split(".")[:2] != release.split(".")[:2]:
        return f"the compiled extension is for torch {built['torch']}, this is torch {torch.__version__}"
    if built["cxx11_abi"] not in ("none", str(int(torch.compiled_with_cxx11_abi()))):  # none: not GNU's C++ library
        return f"the compiled extension has _GLIBCXX_USE_CXX11_ABI={built['cxx11_abi']}, this torch has the other"
    return None


# Loaded with this module, so that a compiled graph sees a fact and no loading.
EXTENSION = load()
