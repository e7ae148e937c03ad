"""`distill`: compress a network of one's own with one call."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from torch import Tensor, nn

from lit_fast.data import Data
from lit_fast.data.formats.datasets import as_data
from lit_fast.data.loaders import Loader
from lit_fast.errors import ConfigError, expect, expect_integer, expect_switches
from lit_fast.literals import TargetsKind
from lit_fast.loss.targets import TargetsOf
from lit_fast.models.behaviour import code_of, cuts_of, forward_of
from lit_fast.models.own import cut, digest, structure
from lit_fast.pair.inspect import check_pair
from lit_fast.report.run import write_report
from lit_fast.runs.schema import RunResult
from lit_fast.sections.model import SplitModel
from lit_fast.sections.projector import make_projectors
from lit_fast.settings.classifier import DataConfig, Experiment, ModelConfig, TeacherConfig, load_experiment
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
        The student with its last weights; both weight files lie under ``run_dir/runs/<name>``, a report in ``run_dir``.

    Raises:
        PairError: the two do not fit together (see `lit_fast.inspect`).
        TypeError: a callback that is none.
        ValueError, OSError, NonFiniteLoss, Interrupted: see `lit_fast.training`.

    Source: paper, section 3 and appendix A.

    Example:
        >>> lf.distill(teacher, student, data, recipe="resnet-cifar10", run_dir="runs/r20")  # doctest: +SKIP
    """
    for role, network in (("teacher", teacher), ("student", student)):
        expect(role, network, nn.Module, "a network, an nn.Module")
    expect("recipe", recipe, str, "the name of a recipe", "lit_fast.recipes.names() has them")
    expect("run_dir", run_dir, (str, os.PathLike), "a folder's path")
    if console is not None:
        expect("console", console, Console, "a rich.console.Console")
    if not callable(targets):
        expect("targets", targets, str, "a name or a function")
    expect("variant", variant, str, "the name of a variant")
    expect_integer("seed", seed, "an integer")
    expect_switches(resume=resume, skip_padding=skip_padding)
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks: expected objects of classes derived from lf.Callback, got {callback!r}")
    if not isinstance(data, Loader):
        data = as_data(data, "datasets")
    whole: Data = data.data if isinstance(data, Loader) else data
    labels = {"teacher": _label(teacher), "student": _label(student)}
    own = {
        "data": {**_defaults(DataConfig, _OF_NAMED_DATA), "name": whole.name},
        "teacher": {**_defaults(TeacherConfig, _OF_TRAINING), "model": labels["teacher"]},
        "student": {"models": [labels["student"]]},
        "variants": [variant],
        "seeds": [seed],
        "blocks": blocks,
        "sections": sections,
        "targets": targets if isinstance(targets, str) else _name(targets),
        "skip_padding": skip_padding,
    }
    experiment = load_experiment(recipe, None, [own, *_listed(overrides)], own_objects=True)
    _refuse_contradictions(experiment, own)
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
    identity: dict[str, Any] = {
        "teacher.weights": digest(teacher_split.model),
        "teacher.forward": forward_of(teacher_split),
        "teacher.cuts": cuts_of(teacher_split),
        "student.structure": structure(student_split.model),
        "student.forward": forward_of(student_split),
        "student.cuts": cuts_of(student_split),
    }
    if not isinstance(targets, str):
        identity["targets.code"] = code_of(targets)
    with (
        _layouts_kept(teacher_split.model, student_split.model),
        open_session(experiment, data, Path(run_dir), identity, resume=resume, console=console) as session,
    ):
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
        session.tell_notes()
        spec = RunSpec(
            f"{labels['student']}-{variant}-seed{seed}", variant, seed, experiment.plan(experiment.variants[0])
        )
        session.check_pruning(spec, student_split)
        config = ModelConfig.model_construct(model=labels["student"], cardinality=None)
        session.train(spec, student_split, given, config)
        session.prune(spec, student_split, given, config)
        if session.workers.leads:
            write_report(run_dir)
    return Distilled(student_split.model, session.results)


def _listed(overrides: Any) -> list[str | Mapping[str, Any]]:
    """Raises ConfigError for anything but strings and mappings."""
    if isinstance(overrides, str | Mapping):
        raise ConfigError(f"overrides: expected a list of 'key=value' or mappings, got {overrides!r}; write [...]")
    listed = list(overrides)
    for override in listed:
        if not isinstance(override, str | Mapping):
            raise ConfigError(f"overrides: expected 'key=value' or a mapping, got {override!r}")
    return listed


def _refuse_contradictions(experiment: Experiment, given: Mapping[str, Any]) -> None:
    """Raises ConfigError where an override says other than an argument: what is written is what runs."""
    says = {
        "data": (experiment.data.name, given["data"]["name"]),
        "teacher": (experiment.teacher.model, given["teacher"]["model"]),
        "student": ([config.model for config in experiment.student.models], given["student"]["models"]),
        "variant": (list(experiment.variants), given["variants"]),
        "seed": (list(experiment.seeds), given["seeds"]),
        "targets": (experiment.targets, given["targets"]),
        "skip_padding": (experiment.skip_padding, given["skip_padding"]),
        "blocks": (experiment.blocks, given["blocks"] or experiment.blocks),
        "sections": (experiment.sections, given["sections"] or experiment.sections),
    }
    for argument, (override, said) in says.items():
        if override != said and override != _tuple(said):
            raise ConfigError(
                f"overrides: {override!r} contradicts the argument {argument}=, which says {said!r}; leave it out there"
            )
    for section, keys, why in (("data", _OF_NAMED_DATA, "the dataset"), ("teacher", _OF_TRAINING, "a trained teacher")):
        for key in keys:
            if getattr(getattr(experiment, section), key) != given[section][key]:
                raise ConfigError(f"overrides: {section}.{key}: {why} is given; leave it out")
    if experiment.student.sequence:
        raise ConfigError("overrides: student.sequence is for several students, and one is given; leave it out")


# Settings that say how a dataset is opened, and how a teacher is made, where they are given by name.
_OF_NAMED_DATA = tuple(DataConfig.model_fields.keys() - {"name", "augment", "loader"})
_OF_TRAINING = ("checkpoint", "epochs", "seed", "cardinality")


def _defaults(config: type[BaseModel], keys: Iterable[str]) -> dict[str, Any]:
    return {key: config.model_fields[key].default for key in keys}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


@contextmanager
def _layouts_kept(*models: nn.Module) -> Iterator[None]:
    """Contiguous tensors are contiguous again afterwards, also after an error: safetensors saves no others."""
    modules = [module for model in models for module in model.modules()]
    kept = [(module, name) for module in modules for name, tensor in _tensors(module) if tensor.is_contiguous()]
    try:
        yield
    finally:
        for module, name in kept:
            tensor = getattr(module, name)
            tensor.data = tensor.data.contiguous()


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _label(model: nn.Module | SplitModel) -> str:
    return type(model.model if isinstance(model, SplitModel) else model).__name__.lower()


def _name(targets: TargetsOf) -> str:
    return f"{targets.__module__}:{getattr(targets, '__qualname__', type(targets).__name__)}"
