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
    UntraceableError,
    WorkerLost,
)
from lit_fast.version import __version__

if TYPE_CHECKING:
    from lit_fast import data, models, recipes
    from lit_fast.loss import targets
    from lit_fast.loss.backends.counts import LossCounts
    from lit_fast.loss.functional import ir_loss, kd_loss, lit_loss
    from lit_fast.loss.modules import IRLoss, KDLoss, LITLoss
    from lit_fast.pair.inspect import Report, inspect
    from lit_fast.runs.build import build_info
    from lit_fast.sections.copying import copy_blocks, copy_parts
    from lit_fast.sections.cutting import split
    from lit_fast.sections.model import SplitModel
    from lit_fast.sections.projector import Projectors, make_projectors
    from lit_fast.step.diagnostics import SectionDiagnostics, section_diagnostics
    from lit_fast.step.lit_model import LITModel
    from lit_fast.step.lit_step import LITStep
    from lit_fast.step.output import LITOutput
    from lit_fast.step.passes.running_stats import recalibrate
    from lit_fast.teacher.frozen import FrozenTeacher
    from lit_fast.training.callbacks import Callback
    from lit_fast.training.distill import Distilled, distill

_HOME = {
    "build_info": "runs.build",
    "SectionDiagnostics": "step.diagnostics",
    "section_diagnostics": "step.diagnostics",
    "lit_loss": "loss.functional",
    "kd_loss": "loss.functional",
    "ir_loss": "loss.functional",
    "inspect": "pair.inspect",
    "Report": "pair.inspect",
    "LITLoss": "loss.modules",
    "LossCounts": "loss.backends.counts",
    "KDLoss": "loss.modules",
    "IRLoss": "loss.modules",
    "Projectors": "sections.projector",
    "make_projectors": "sections.projector",
    "recalibrate": "step.passes.running_stats",
    "SplitModel": "sections.model",
    "copy_blocks": "sections.copying",
    "copy_parts": "sections.copying",
    "split": "sections.cutting",
    "LITModel": "step.lit_model",
    "LITOutput": "step.output",
    "LITStep": "step.lit_step",
    "FrozenTeacher": "teacher.frozen",
    "Callback": "training.callbacks",
    "Distilled": "training.distill",
    "distill": "training.distill",
}
_SUBMODULES = {
    "data": "data",
    "functional": "loss.functional",
    "models": "models",
    "recipes": "recipes",
    "targets": "loss.targets",
}

__all__ = [
    "Callback",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Distilled",
    "FrozenTeacher",
    "IRLoss",
    "Interrupted",
    "KDLoss",
    "LITLoss",
    "LITModel",
    "LITOutput",
    "LITStep",
    "LitFastError",
    "LossCounts",
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
    "UntraceableError",
    "WorkerLost",
    "__version__",
    "build_info",
    "copy_blocks",
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
    "targets",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"lit_fast.{_SUBMODULES[name]}")
    if name not in _HOME:
        raise AttributeError(f"module 'lit_fast' has no attribute {name!r}")
    value = getattr(import_module(f"lit_fast.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
