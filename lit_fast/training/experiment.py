"""An experiment from its config: the teacher, then every student by seed and variant, each a resumable run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import nn

from lit_fast import models
from lit_fast.data import Data
from lit_fast.data.loaders import Loader
from lit_fast.errors import ConfigError
from lit_fast.literals import TargetsKind
from lit_fast.loss.targets import TargetsOf, resolve
from lit_fast.models.own import cut, own_network
from lit_fast.pair.counting import count_layers, count_macs, count_nonzero, count_parameters
from lit_fast.pair.inspect import check_pair
from lit_fast.runs.environment import cudnn_benchmark
from lit_fast.runs.schema import Accuracy, Pruned, RunResult, Size
from lit_fast.runs.weights import WeightInfo, save_weights
from lit_fast.sections.cutting import split
from lit_fast.sections.model import SplitModel
from lit_fast.sections.projector import Projectors, make_projectors
from lit_fast.settings.classifier import Experiment, ModelConfig
from lit_fast.settings.given import known_weights, open_experiment_data
from lit_fast.settings.notes import notes
from lit_fast.settings.variants import VARIANTS
from lit_fast.training.callbacks import Callback
from lit_fast.training.classifier import ClassifierTask, Teacher, perplexity
from lit_fast.training.evaluation import Scores, evaluate, refuse_chance
from lit_fast.training.pruning import claim, prunable, pruned_specs, refuse_others
from lit_fast.training.run import Outcome
from lit_fast.training.run_state import weights_of
from lit_fast.training.session import UNTRAINED, BaseSession, cost, frozen_teacher, opened, specs
from lit_fast.training.task import RunSpec

__all__ = ["Session", "run_experiment", "train_model"]


class Session(BaseSession[Experiment]):
    """The runs of an experiment with classifiers; arguments as `BaseSession`.

    Attributes:
        score_test: whether the test split is used once, at the end of each run; a search must not.
    """

    score_test = True
    own_targets: TargetsOf | None = None  # in place of those of the settings

    @property
    def scores_test(self) -> bool:
        """Whether there is a test split to be used."""
        return self.score_test and len(self.data.test) > 0

    @property
    def targets(self) -> TargetsKind | TargetsOf:
        """As for `LITStep`."""
        return self.own_targets or self.experiment.loss_targets

    @classmethod
    def check_data(cls, data: Data) -> None:
        if data.has_attributes:
            raise ConfigError(
                f"dataset {data.name}: its images have several attributes each, a classifier needs one class each; "
                "recipe stargan-celeba trains on it"
            )
        if not len(data.val):
            raise ConfigError(f"dataset {data.name}: the validation split is empty; set data.val_size to at least 1")

    def tell_notes(self) -> None:
        """Tell which settings are known to be worse."""
        for text in notes(self.experiment, self.data.steps_per_epoch(self.experiment.batch_size)):
            self.note(text)

    # -- models ------------------------------------------------------------------------------------------------------

    def build(self, config: ModelConfig, seed: int) -> SplitModel:
        """A network with the weights that ``seed`` gives, split, on the device."""
        torch.manual_seed(seed)
        if config.is_own:
            network = own_network(config.model)
            whole = network if isinstance(network, SplitModel) else self.prepare(network)
            return self.place(self.cut(whole, config, config.model))
        if (models.Network(config.model).kind == "texts") != self.data.is_text:
            takes, given = ("images", "texts") if self.data.is_text else ("texts", "images")
            raise ConfigError(f"{config.model} takes {takes}, dataset {self.data.name} has {given}: choose another")
        model = models.create(
            config.model,
            num_classes=self.data.num_classes,
            in_channels=None if self.data.is_text else self.data.shape[0],
            cardinality=config.cardinality,
        )
        return self.place(split(self.prepare(model)))

    def cut(self, network: nn.Module | SplitModel, config: ModelConfig, name: str) -> SplitModel:
        """A network of one's own, split as the settings say."""
        cuts, alone = self.experiment.cuts_of(config), self.experiment.cut_config(config).given
        return cut(network, name, cuts, self.data.example(2), alone=alone)

    def prepare(self, model: nn.Module) -> nn.Module:
        """``model``, which is not split yet, with the BatchNorm that the workers need."""
        if self.workers.size > 1 and self.experiment.step.sync_batchnorm:
            return nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return model

    def place(self, model: SplitModel) -> SplitModel:
        """Move ``model`` to the device, in the layout of the step."""
        model.to(self.device)
        if self.experiment.step.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        return model

    # -- runs --------------------------------------------------------------------------------------------------------

    def teacher(self) -> Teacher:
        """The teacher, trained already or trained here, with its result recorded."""
        config = self.experiment.teacher
        if config.checkpoint is None and not config.is_own:
            return self.trained_teacher()
        model = self.build(config, config.seed)
        if config.checkpoint is not None:
            models.load_checkpoint(model.model, config.checkpoint)
        teacher = self.as_teacher(f"teacher-{config.label}", config.label, model)
        self.record_given_teacher(teacher)
        return teacher

    def trained_teacher(self) -> Teacher:
        """The teacher, trained here from scratch, with its result recorded."""
        config = self.experiment.teacher
        spec = RunSpec(f"teacher-{config.label}", "scratch", config.seed, self.experiment.teacher_plan())
        model = self.build(config, config.seed)
        self.train(spec, model, None, config, role="teacher")
        return self.as_teacher(spec.name, config.label, model)

    def record_given_teacher(self, teacher: Teacher) -> None:
        """Measure and record a teacher that was not trained here.

        Raises:
            ValueError: it is no better than chance, so it was never trained or is fed what it does not know.
        """
        self.record(self.workers.first(lambda: self._result_of_given(teacher)))

    def _result_of_given(self, teacher: Teacher) -> RunResult:
        done = self.folder.finished(teacher.name)
        if done is None:
            val = self._scores(teacher.split, "val")
            if self.targets == "classification":
                refuse_chance(teacher.label, val.accuracy, val.images, self.data.num_classes or val.classes)
            test = self._scores(teacher.split, "test") if self.scores_test else None
            result = {
                "name": teacher.name,
                "role": "teacher",
                "model": teacher.label,
                "variant": "checkpoint",
                "seed": None,
                "teacher": None,
                **self._size(teacher.split.model, teacher.parameters),
                "accuracy": _accuracies(val.accuracy, val.accuracy, 0, *[None if test is None else test.accuracy] * 2),
                **self._further(test),
                **UNTRAINED,
            }
            done = cast(RunResult, result)
            self.folder.finish(teacher.name, done)
        return done

    def check(self) -> None:
        """Build every pair of the experiment with fresh weights and go through its phases' steps without training.

        Raises:
            PairError, SplitError, ValueError: what would otherwise stop the experiment after hours.
        """
        example = self.data.example(2, self.device)
        teacher_config: ModelConfig = self.experiment.teacher
        for config in self.experiment.student.models:
            teacher = self.build(teacher_config, 0).eval().requires_grad_(False)
            for variant in self.experiment.variants:
                student = self.build(config, 0)
                spec = RunSpec(f"{config.label}-{variant}", variant, 0, self.experiment.plan(variant))
                given = self.as_teacher(f"teacher-{teacher_config.label}", teacher_config.label, teacher)
                task = self._task(spec, student, given)
                if VARIANTS[variant].needs_teacher:
                    check_pair(teacher, student, example, projector=task.projector)
                self.run(task, self.folder.path).check()
            if self.experiment.student.sequence:
                teacher_config = config
        if self.experiment.pruning.sparsities:
            for spec, config in specs(self.experiment):
                self.check_pruning(spec, self.build(config, 0))

    def check_pruning(self, spec: RunSpec, student: SplitModel) -> None:
        """Whether ``student`` can be pruned once ``spec`` has trained it.

        Raises:
            ValueError: nothing to prune; or it was pruned here with other settings.
        """
        for pruned in pruned_specs(self.experiment, spec):
            prunable(student, pruned, self.experiment)
            refuse_others(self.folder.path / "runs" / pruned.name, pruned)

    def _task(self, spec: RunSpec, student: SplitModel, teacher: Teacher | None) -> ClassifierTask:
        copies = VARIANTS[spec.variant].ir != "none" or self.experiment.student.copied_to == "all"
        return ClassifierTask(
            spec,
            self.experiment,
            self.loader,
            student,
            teacher if VARIANTS[spec.variant].needs_teacher else None,
            copied_from=teacher.split if copies and teacher is not None else None,
            projector=self._projector(spec, student, teacher),
            targets=self.targets,
            workers=self.workers,
        )

    def train(
        self, spec: RunSpec, student: SplitModel, teacher: Teacher | None, config: ModelConfig, *, role: str = "student"
    ) -> RunResult:
        """Run ``spec`` to its end (or find it ended); ``student`` then holds its last weights."""

        def finish(task: ClassifierTask, folder: Path, outcome: Outcome) -> RunResult:
            return self._finish(task, folder, outcome, teacher, config, role)

        def load(done: RunResult) -> None:
            models.load_checkpoint(student.model, self.folder.path / done["files"]["last"])

        with cudnn_benchmark(self.experiment.step.cudnn_benchmark):
            return self.train_task(self._task(spec, student, teacher), finish, load)

    def prune(self, spec: RunSpec, student: SplitModel, teacher: Teacher | None, config: ModelConfig) -> None:
        """Run what follows ``spec``, with ``student`` pruned; it ends with the weights that it has now, its last."""
        last = {name: tensor.clone() for name, tensor in student.model.state_dict().items()}
        for pruned in pruned_specs(self.experiment, spec):
            self.workers.first(partial(self._claim, pruned))
            self.train(pruned, student, teacher, config)
            student.model.load_state_dict(last)

    def _claim(self, pruned: RunSpec) -> None:
        claim(self.folder.run(pruned.name), pruned)

    def _projector(self, spec: RunSpec, student: SplitModel, teacher: Teacher | None) -> Projectors | None:
        if not self.experiment.student.projector or teacher is None or VARIANTS[spec.variant].ir == "none":
            return None
        torch.manual_seed(spec.seed)
        return make_projectors(teacher.split, student, self.data.example(2, self.device)).to(self.device)

    def _finish(
        self,
        task: ClassifierTask,
        folder: Path,
        outcome: Outcome,
        teacher: Teacher | None,
        config: ModelConfig,
        role: str,
    ) -> RunResult:
        """Write the weights and touch the test split for the first and only time."""
        spec, student = task.spec, task.student
        last = weights_of(student.model)
        files = {}
        tests = {}
        for which, tensors in (("best", outcome.best or last), ("last", last)):  # last stays loaded
            path = folder / f"{which}.safetensors"
            save_weights(path, tensors, WeightInfo.of(self.data, config.model, config.cardinality))
            files[which] = path.relative_to(self.folder.path).as_posix()
            student.model.load_state_dict(tensors)
            tests[which] = task.scores("test") if self.scores_test else None
        vals = [entry["val_accuracy"] for entry in outcome.history]
        accuracies = {which: None if test is None else test.accuracy for which, test in tests.items()}
        result = {
            "name": spec.name,
            "role": role,
            "model": config.label,
            "variant": spec.variant,
            "seed": spec.seed,
            "teacher": teacher.name if teacher is not None and VARIANTS[spec.variant].needs_teacher else None,
            **self._size(student.model, None if teacher is None else teacher.parameters, spec.sparsity),
            "accuracy": _accuracies(vals[-1], max(vals), outcome.best_epoch, accuracies["last"], accuracies["best"]),
            **self._further(tests["last"]),
            **({} if task.engine_taken is None else {"engine": task.engine_taken}),
            **cost(spec, outcome, files),
        }
        return cast(RunResult, result)

    def as_teacher(self, name: str, label: str, model: SplitModel) -> Teacher:
        """A network that has its last weights."""
        frozen = frozen_teacher(model, self.experiment.step)
        return Teacher(name, label, model, count_parameters(model.model), frozen)

    def _size(self, model: nn.Module, teacher_parameters: int | None, sparsity: float | None = None) -> Size:
        parameters = left = count_parameters(model)
        pruned: Pruned = {}
        if sparsity is not None:
            left = count_nonzero(model)
            pruned = {"sparsity": sparsity, "nonzero_parameters": left}
        example = self.data.example(1, self.device)
        return {
            "layers": count_layers(model),
            "parameters": parameters,
            **pruned,
            "mmacs": count_macs(model, example) / 1e6,
            "compression": 1.0 if teacher_parameters is None else teacher_parameters / left,
        }

    def _scores(self, model: SplitModel, which: str) -> Scores:
        targets = resolve(self.targets, -100, self.experiment.skip_padding)
        return evaluate(model.model, self.loader.eval_batches(which, batch_size=256), targets)

    def _further(self, test: Scores | None) -> dict[str, Any]:
        """What a result has beside accuracy, of anything but a classifier."""
        if self.targets == "classification":
            return {}
        name = self.targets if isinstance(self.targets, str) else "own"
        score = None if test is None or name != "causal_lm" else perplexity(test.loss)
        return {"targets": name, **({} if score is None else {"scores": {"perplexity": score}})}


def _accuracies(
    val_last: float, val_best: float, best_epoch: int, test_last: float | None, test_best: float | None
) -> Accuracy:
    return {
        "val_last": val_last,
        "val_best": val_best,
        "best_epoch": best_epoch,
        "test_last": test_last,
        "test_best": test_best,
    }


def run_experiment(
    experiment: Experiment,
    run_dir: Path,
    *,
    resume: bool = False,
    console: Console | None = None,
    score_test: bool = True,
    callbacks: Sequence[Callback] = (),
) -> list[RunResult]:
    """Train (or load) the teacher, then every student; what has ended before is not done again.

    Args:
        experiment: see `lit_fast.settings.classifier.load_experiment`.
        run_dir: where everything is written.
        resume: continue what an earlier call with the same experiment left there.
        console: where progress goes; default: standard output.
        score_test: False leaves the test split alone; the results then have no test accuracy.
        callbacks: told of every run; see `lit_fast.Callback`.

    Returns:
        One result per run, the teacher's first, as in ``run_dir/results.json``.

    Raises:
        ValueError, OSError, Interrupted, NonFiniteLoss: see there.
    """
    data, known = partial(open_experiment_data, experiment), known_weights(experiment)
    with open_session(experiment, data, run_dir, known, resume=resume, console=console) as session:
        session.score_test, session.callbacks = score_test, callbacks
        session.workers.first(session.check)
        session.tell_notes()
        teacher = session.teacher()
        teachers = dict.fromkeys(experiment.seeds, teacher)  # a sequence moves on seed by seed
        for spec, config in specs(experiment):
            student = session.build(config, spec.seed)
            session.train(spec, student, teachers[spec.seed], config)
            session.prune(spec, student, teachers[spec.seed], config)
            if experiment.student.sequence:
                following = session.as_teacher(spec.name, config.label, student)
                teachers[spec.seed] = replace(following, parameters=teacher.parameters)
    return session.results


def train_model(
    experiment: Experiment,
    run_dir: Path,
    *,
    resume: bool = False,
    console: Console | None = None,
    score_test: bool = True,
) -> RunResult:
    """Only the teacher of ``experiment``, from scratch; arguments and errors as in `run_experiment`."""
    if experiment.teacher.checkpoint is not None:
        raise ConfigError("teacher.checkpoint: training from scratch starts from no checkpoint; remove it")
    data, known = partial(open_experiment_data, experiment), experiment.teacher.hashes()
    with open_session(experiment, data, run_dir, known, resume=resume, console=console) as session:
        session.score_test = score_test
        session.trained_teacher()
    return session.results[0]


def open_session(
    experiment: Experiment,
    source: Data | Loader | Callable[[], Data],
    run_dir: Path,
    extra: dict[str, Any],
    *,
    resume: bool,
    console: Console | None,
) -> AbstractContextManager[Session]:
    """The session of an experiment on a dataset; arguments and errors as `opened`."""
    step = experiment.step
    return opened(
        Session,
        experiment,
        source,
        run_dir,
        extra,
        resume=resume,
        console=console,
        channels_last=step.channels_last,
        sync_batchnorm=step.sync_batchnorm,
    )
