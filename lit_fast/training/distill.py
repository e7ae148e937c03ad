"""`distill`: compress a network of one's own with one call."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from lit_fast.data import Data
from lit_fast.data.loaders import Loader
from lit_fast.errors import ConfigError
from lit_fast.pair.inspect import check_pair
from lit_fast.runs.results import RunResult
from lit_fast.sections.cutting import split
from lit_fast.sections.model import SplitModel
from lit_fast.sections.projector import make_projectors
from lit_fast.settings.classifier import ModelConfig, load_experiment
from lit_fast.training.experiment import open_session
from lit_fast.training.task import RunSpec

__all__ = ["Distilled", "distill"]


@dataclass(frozen=True)
class Distilled:
    """The trained ``student`` (the object that was given, with its last weights) and the ``results`` of all runs."""

    student: nn.Module
    results: list[RunResult]


def distill(
    teacher: nn.Module | SplitModel,
    student: nn.Module | SplitModel,
    data: Data | Loader,
    *,
    recipe: str,
    run_dir: str | Path,
    variant: str = "lit",
    seed: int = 0,
    resume: bool = False,
    overrides: Iterable[str | Mapping[str, Any]] = (),
    console: Console | None = None,
) -> Distilled:
    """Train ``student`` to stand in for ``teacher``: LIT phase, then fine-tune phase, as the recipe says.

    Args:
        teacher: trained network; a model that is not split yet needs default cuts (the built-in ones have them).
        student: network of the same sections; trained in place.
        data: see `lit_fast.data.open_data`, ``from_arrays``, ``from_datasets``. Or a loader of your own, such as
            `lit_fast.data.loaders.own_pipeline.PipelineLoader`; it is closed at the end.
        recipe: a name of `lit_fast.recipes.names()`; its schedule, loss and optimizer are used.
        run_dir: folder for checkpoints, logs, weights and results.
        variant: ``lit``, ``kd``, ``scratch``, ``hint``, ``one_ir_teacher_input`` or ``multi_ir``.
        seed: of the order of the data and its augmentation.
        resume: continue an interrupted call with the same arguments.
        overrides: ``"key=value"`` strings or mappings on top of the recipe, for example ``"epochs=20"``.
        console: a `rich.console.Console` for progress; default: standard output.

    Returns:
        The student with its last weights; both weight files lie under ``run_dir/runs/<name>``.

    Raises:
        PairError: the two do not fit together (see `lit_fast.inspect`).
        ValueError, OSError, NonFiniteLoss, Interrupted: see `lit_fast.training`.

    Source: paper, section 3 and appendix A.

    Example:
        >>> lf.distill(teacher, student, data, recipe="resnet-cifar10", run_dir="runs/r20")  # doctest: +SKIP
    """
    teacher_split, student_split = _as_split(teacher), _as_split(student)
    labels = {"teacher": _label(teacher_split), "student": _label(student_split)}
    own = {
        "data": {"name": (data.data if isinstance(data, Loader) else data).name},
        "teacher": {"model": labels["teacher"]},
        "student": {"models": [labels["student"]]},
        "variants": [variant],
        "seeds": [seed],
    }
    experiment = load_experiment(recipe, None, [own, *overrides], own_objects=True)
    if experiment.step.sync_batchnorm:
        raise ConfigError(
            "step.sync_batchnorm: it is for the built-in networks; give a student of your own as "
            "torch.nn.SyncBatchNorm.convert_sync_batchnorm(student), before it is split"
        )
    identity = {"teacher.weights": _digest(teacher_split.model), "student.structure": _structure(student_split.model)}
    with open_session(experiment, data, Path(run_dir), identity, resume=resume, console=console) as session:
        session.place(teacher_split).eval().requires_grad_(False)
        session.place(student_split)
        session.workers.equalise(teacher_split.model)
        example = next(session.loader.eval_batches("val", batch_size=2))[0]
        projector = make_projectors(teacher_split, student_split, example) if experiment.student.projector else None
        check_pair(teacher_split, student_split, example, projector=projector)
        given = session.as_teacher(f"teacher-{labels['teacher']}", labels["teacher"], teacher_split)
        session.record_given_teacher(given)
        spec = RunSpec(
            f"{labels['student']}-{variant}-seed{seed}", variant, seed, experiment.plan(experiment.variants[0])
        )
        session.check_pruning(spec, student_split)
        config = ModelConfig.model_construct(model=labels["student"], cardinality=None)
        session.train(spec, student_split, given, config)
        session.prune(spec, student_split, given, config)
    return Distilled(student_split.model, session.results)


def _as_split(model: nn.Module) -> SplitModel:
    return model if isinstance(model, SplitModel) else split(model)


def _label(model: SplitModel) -> str:
    return type(model.model).__name__.lower()


def _structure(model: nn.Module) -> str:
    shapes = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in model.state_dict().items()]
    return hashlib.sha256(repr(shapes).encode()).hexdigest()


def _digest(model: nn.Module) -> str:
    sha = hashlib.sha256(_structure(model).encode())
    for tensor in model.state_dict().values():
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
