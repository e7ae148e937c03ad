"""lit_fast: compress deep networks by Learned Intermediate Representation Training (LIT, ICML 2019).

    from lit_fast import LITLoss
    criterion = LITLoss(alpha=0.95, beta=0.75, tau=6.0, ir="l2")
    loss = criterion(student_irs, teacher_irs, student_logits, teacher_logits, labels)

Everything is loaded when it is first used, so that ``import lit_fast`` costs little more than ``import torch``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lit_fast.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    Interrupted,
    LitFastError,
    LoweringError,
    NonFiniteLoss,
    PairError,
    RunFolderError,
    SharingError,
    SplitError,
    StoreError,
    UnavailableError,
    WorkerLost,
)
from lit_fast.version import __version__

if TYPE_CHECKING:
    from lit_fast import data, models, recipes
    from lit_fast.build import build_info
    from lit_fast.diagnostics import SectionDiagnostics, section_diagnostics
    from lit_fast.functional import ir_loss, kd_loss, lit_loss
    from lit_fast.losses import IRLoss, KDLoss, LITLoss
    from lit_fast.preflight import Report, inspect
    from lit_fast.projector import Projectors, make_projectors
    from lit_fast.running_stats import recalibrate
    from lit_fast.sections import SplitModel, copy_parts, split
    from lit_fast.step import LITStep
    from lit_fast.teacher import FrozenTeacher
    from lit_fast.training.distill import Distilled, distill

_HOME = {
    "build_info": "build",
    "SectionDiagnostics": "diagnostics",
    "section_diagnostics": "diagnostics",
    "lit_loss": "functional",
    "kd_loss": "functional",
    "ir_loss": "functional",
    "inspect": "preflight",
    "Report": "preflight",
    "LITLoss": "losses",
    "KDLoss": "losses",
    "IRLoss": "losses",
    "Projectors": "projector",
    "make_projectors": "projector",
    "recalibrate": "running_stats",
    "SplitModel": "sections",
    "copy_parts": "sections",
    "split": "sections",
    "LITStep": "step",
    "FrozenTeacher": "teacher",
    "Distilled": "training.distill",
    "distill": "training.distill",
}
_SUBMODULES = ("data", "models", "recipes")

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Distilled",
    "FrozenTeacher",
    "IRLoss",
    "Interrupted",
    "KDLoss",
    "LITLoss",
    "LITStep",
    "LitFastError",
    "LoweringError",
    "NonFiniteLoss",
    "PairError",
    "Projectors",
    "Report",
    "RunFolderError",
    "SectionDiagnostics",
    "SharingError",
    "SplitError",
    "SplitModel",
    "StoreError",
    "UnavailableError",
    "WorkerLost",
    "__version__",
    "build_info",
    "copy_parts",
    "data",
    "distill",
    "inspect",
    "ir_loss",
    "kd_loss",
    "lit_loss",
    "make_projectors",
    "models",
    "recalibrate",
    "recipes",
    "section_diagnostics",
    "split",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"lit_fast.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'lit_fast' has no attribute {name!r}")
    value = getattr(import_module(f"lit_fast.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
