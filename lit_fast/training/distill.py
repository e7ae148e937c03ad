"""`distill`: compress a network of one's own with one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from lit_fast.data import Data
from lit_fast.data.formats.datasets import as_data
from lit_fast.data.loaders import Loader
from lit_fast.errors import ConfigError
from lit_fast.literals import TargetsKind
from lit_fast.loss.targets import TargetsOf
from lit_fast.models.own import cut, digest, structure
from lit_fast.pair.inspect import check_pair
from lit_fast.runs.results import RunResult
from lit_fast.sections.model import SplitModel
from lit_fast.sections.projector import make_projectors
from lit_fast.settings.classifier import ModelConfig, load_experiment
from lit_fast.training.callbacks import Callback
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
    data: Any,
    *,
    recipe: str,
    run_dir: str | Path,
    blocks: str | Sequence[str] | None = None,
    sections: int | None = None,
    targets: TargetsKind | TargetsOf = "classification",
    skip_padding: bool = False,
    variant: str = "lit",
    seed: int = 0,
    resume: bool = False,
    overrides: Iterable[str | Mapping[str, Any]] = (),
    console: Console | None = None,
    callbacks: Sequence[Callback] = (),
) -> Distilled:
    """Train ``student`` to stand in for ``teacher``: LIT phase, then fine-tune phase, as the recipe says.

    Args:
        teacher: trained network; a model that is not split yet is split here, by ``blocks``, by its default cuts (the
            built-in ones have them), or as the keys of ``overrides`` say: ``teacher.cuts=[4, 8]``, ``at=[low, high]``.
        student: network of the same sections; trained in place.
        data: see `lit_fast.data.open_data`, ``from_arrays``, ``from_datasets``. Or a mapping or an object with the
            PyTorch datasets ``train``, ``val`` and ``test``, and perhaps ``num_classes`` and ``collate``, whose items
            go to the networks as they are. Or a loader of your own, such as
            `lit_fast.data.loaders.own_pipeline.PipelineLoader`; it is closed at the end.
        recipe: a name of `lit_fast.recipes.names()`; its schedule, loss and optimizer are used.
        run_dir: folder for checkpoints, logs, weights and results.
        blocks, sections: as for `lit_fast.split`, of both networks where they are not split yet.
        targets, skip_padding: as for `lit_fast.LITStep`.
        variant: ``lit``, ``kd``, ``scratch``, ``hint``, ``one_ir_teacher_input`` or ``multi_ir``.
        seed: of the order of the data and its augmentation.
        resume: continue an interrupted call with the same arguments.
        overrides: ``"key=value"`` strings or mappings on top of the recipe, for example ``"epochs=20"``.
        console: a `rich.console.Console` for progress; default: standard output.
        callbacks: told of the run, and of those that follow by pruning; see `lit_fast.Callback`.

    Returns:
        The student with its last weights; both weight files lie under ``run_dir/runs/<name>``.

    Raises:
        PairError: the two do not fit together (see `lit_fast.inspect`).
        TypeError: a callback that is none.
        ValueError, OSError, NonFiniteLoss, Interrupted: see `lit_fast.training`.

    Source: paper, section 3 and appendix A.

    Example:
        >>> lf.distill(teacher, student, data, recipe="resnet-cifar10", run_dir="runs/r20")  # doctest: +SKIP
    """
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks: expected objects of classes derived from lf.Callback, got {callback!r}")
    if not isinstance(data, Loader):
        data = as_data(data, "datasets")
    whole: Data = data.data if isinstance(data, Loader) else data
    labels = {"teacher": _label(teacher), "student": _label(student)}
    own = {
        "data": {"name": whole.name},
        "teacher": {"model": labels["teacher"]},
        "student": {"models": [labels["student"]]},
        "variants": [variant],
        "seeds": [seed],
        "blocks": blocks,
        "sections": sections,
        "targets": targets if isinstance(targets, str) else _name(targets),
        "skip_padding": skip_padding,
    }
    experiment = load_experiment(recipe, None, [own, *overrides], own_objects=True)
    teacher_split, student_split = (
        cut(network, role, experiment.cuts_of(config), whole.example(2), alone=experiment.cut_config(config).given)
        for network, role, config in (
            (teacher, "teacher", experiment.teacher),
            (student, "student", experiment.student.models[0]),
        )
    )
    if experiment.step.sync_batchnorm:
        raise ConfigError(
            "step.sync_batchnorm: it is for the built-in networks; give a student of your own as "
            "torch.nn.SyncBatchNorm.convert_sync_batchnorm(student), before it is split"
        )
    identity = {"teacher.weights": digest(teacher_split.model), "student.structure": structure(student_split.model)}
    with open_session(experiment, data, Path(run_dir), identity, resume=resume, console=console) as session:
        session.own_targets = None if isinstance(targets, str) else targets
        session.callbacks = callbacks
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


def _label(model: nn.Module | SplitModel) -> str:
    return type(model.model if isinstance(model, SplitModel) else model).__name__.lower()


def _name(targets: TargetsOf) -> str:
    return f"{targets.__module__}:{getattr(targets, '__qualname__', type(targets).__name__)}"
