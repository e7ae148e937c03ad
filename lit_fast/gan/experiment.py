"""A StarGAN experiment from its config: the teacher, then every student by seed and variant, each a resumable run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import nn

from lit_fast import models
from lit_fast.data import open_data
from lit_fast.data.base import Batch
from lit_fast.gan.metrics import (
    as_result,
    check_inception,
    compare,
    distances,
    inception_features,
    translations,
)
from lit_fast.gan.samples import draw_grid, to_pixels
from lit_fast.gan.task import GanTask, Pair
from lit_fast.models.stargan import Discriminator, with_domain
from lit_fast.pair.counting import count_layers, count_macs, count_parameters
from lit_fast.pair.inspect import check_pair
from lit_fast.runs.results import read_results
from lit_fast.runs.schema import RunResult
from lit_fast.runs.weights import WeightInfo, save_weights
from lit_fast.sections.cutting import split
from lit_fast.settings.gan import GanExperiment
from lit_fast.training.run import Outcome
from lit_fast.training.session import UNTRAINED, BaseSession, cost, frozen_teacher, opened, specs
from lit_fast.training.task import RunSpec

__all__ = ["run_gan_experiment"]

_EVAL_BATCH = 64


class GanSession(BaseSession[GanExperiment]):
    """The runs of an experiment with generators; arguments as `BaseSession`.

    Attributes:
        shown: the rows of the sample grids: one network of each kind.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.scored = _scores(self.folder.path) if self.workers.leads else {}
        self.shown: dict[str, nn.Module] = {}

    # -- networks ----------------------------------------------------------------------------------------------------

    def build(self, model: str, seed: int) -> Pair:
        """Both networks with the weights that ``seed`` gives, on the device."""
        torch.manual_seed(seed)
        width, domains = self.experiment.width, self.data.num_classes
        generator = split(models.create_generator(model, domains=domains, width=width))
        discriminator = Discriminator(self.data.shape[1], domains, width)
        for network in (generator, discriminator):
            # Before any step: the layout decides how convolutions round, and a resumed run must round alike.
            network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Pair(generator, discriminator)

    def load(self, pair: Pair, generator: Path, discriminator: Path) -> None:
        models.load_checkpoint(pair.generator.model, generator)
        models.load_checkpoint(pair.discriminator, discriminator)

    def check(self) -> None:
        """Build every pair and every phase's step once, so that what cannot work is refused before training.

        Raises:
            PairError, SplitError, ValueError: see there.
        """
        example = with_domain(
            torch.zeros(2, *self.data.shape, device=self.device),
            torch.zeros(2, self.data.num_classes, device=self.device),
        )
        for model in self.experiment.student.models:
            for variant in self.experiment.variants:
                teacher, student = self.build(self.experiment.teacher.model, 0), self.build(model, 0)
                spec = RunSpec(f"{model}-{variant}", variant, 0, self.experiment.plan(variant))
                task = self._task(spec, student, teacher)
                if variant == "lit":
                    check_pair(teacher.generator, student.generator, example)
                self.run(task, self.folder.path).check()

    # -- runs --------------------------------------------------------------------------------------------------------

    def teacher(self) -> tuple[str, Pair]:
        """The teacher, from its weights or trained here, with its result recorded."""
        config = self.experiment.teacher
        name, pair = f"teacher-{config.model}", self.build(config.model, config.seed)
        if config.checkpoint is None or config.discriminator is None:
            spec = RunSpec(name, "scratch", config.seed, self.experiment.teacher_plan())
            self.train(spec, config.model, pair, None, role="teacher")
        else:
            self.workers.first(partial(self.load, pair, config.checkpoint, config.discriminator))
            for network in pair.networks().values():
                self.workers.equalise(network)
            described = partial(self._described, name, "teacher", config.model, "checkpoint", None, None)
            self.record(cast(RunResult, {**self.workers.first(described), **UNTRAINED}))
        pair.generator.eval().requires_grad_(False)
        pair.discriminator.eval().requires_grad_(False)
        self.shown = {"teacher": pair.generator.model}
        return name, replace(pair, frozen=frozen_teacher(pair.generator, self.experiment.step, logits=False))

    def train(
        self, spec: RunSpec, model: str, pair: Pair, teacher: tuple[str, Pair] | None, *, role: str = "student"
    ) -> None:
        """Run ``spec`` to its end (or find it ended); ``pair`` then holds its last weights."""

        def finish(task: GanTask, folder: Path, outcome: Outcome) -> RunResult:
            files = {}
            for which, network in pair.networks().items():
                path = folder / f"{which}.safetensors"
                save_weights(path, network.state_dict(), self._info(model, which))
                files[which] = path.relative_to(self.folder.path).as_posix()
            result = {
                **self._described(spec.name, role, model, spec.variant, spec.seed, teacher and teacher[0]),
                **cost(spec, outcome, files),
            }
            return cast(RunResult, result)

        def load(done: RunResult) -> None:
            self.load(pair, *(self.folder.path / done["files"][which] for which in ("generator", "discriminator")))

        self.train_task(self._task(spec, pair, None if teacher is None else teacher[1]), finish, load)

    def _task(self, spec: RunSpec, pair: Pair, teacher: Pair | None) -> GanTask:
        teacher = teacher if spec.variant == "lit" else None
        return GanTask(spec, self.experiment, self.loader, pair, teacher, shown=self.shown, workers=self.workers)

    def _info(self, model: str, which: str) -> WeightInfo:
        data, generates = self.data, which == "generator"
        return WeightInfo(
            model=model if generates else "stargan-discriminator",
            num_classes=data.num_classes,
            in_channels=data.shape[0] + (data.num_classes if generates else 0),
            image_size=data.shape[1],
            dataset=data.name,
            mean=data.mean,
            std=data.std,
            width=self.experiment.width,
        )

    def _described(
        self, name: str, role: str, model: str, variant: str, seed: int | None, teacher: str | None
    ) -> dict[str, Any]:
        """What a run is, and what its generator costs beside the teacher's."""
        networks = [
            models.create_generator(which, domains=self.data.num_classes, width=self.experiment.width)
            for which in (model, self.experiment.teacher.model)
        ]
        example = torch.zeros(1, self.data.shape[0] + self.data.num_classes, *self.data.shape[1:])
        macs, teacher_macs = (count_macs(network, example) for network in networks)
        parameters = count_parameters(networks[0])
        return {
            "name": name,
            "role": role,
            "model": model,
            "variant": variant,
            "seed": seed,
            "teacher": teacher if variant == "lit" else None,
            "layers": count_layers(networks[0]),
            "parameters": parameters,
            "mmacs": macs / 1e6,
            "compression": count_parameters(networks[1]) / parameters,
            "macs_ratio": teacher_macs / macs,
        }

    # -- the end -----------------------------------------------------------------------------------------------------

    def score(self, teacher: Pair, networks: dict[str, nn.Module]) -> list[RunResult]:
        """Compare all generators on the test split, touched here for the first time, and draw them side by side.

        What was scored before is not scored again; inception score and FID may be added.

        Returns:
            All results, with their scores.
        """
        weights = self.experiment.metrics.inception
        attributes, grid = self.data.classes, self.folder.path / "samples.png"
        known = {result["name"]: result["scores"] for result in self.results if "scores" in result}
        without = [name for name, scores in known.items() if weights is not None and scores.get("fid") is None]
        left = [result for result in self.results if result["name"] in without or result["name"] not in known]
        if not left and grid.exists():
            return self.results
        features = None if weights is None else [f.to(self.device) for f in inception_features(weights)]
        if features is None:
            self.console.print(
                "no inception score and FID: metrics.inception names no weights (docs/stargan.md)", highlight=False
            )
        for result in left:
            network = networks[result["name"]]
            other = None if result["role"] == "teacher" else teacher.generator.model
            found = result.get("scores") or compare(
                network, self._test(), attributes, judge=teacher.discriminator, teacher=other
            )
            scores = None
            if features is not None:
                real = (to_pixels(images) for images, _ in self._test())
                scores = distances(real, translations(network, self._test(), attributes), *features)
            result["scores"] = {**found, **as_result(scores)}
        self.write()
        batch = next(self.loader.eval_batches("test", batch_size=self.experiment.samples.images))
        draw_grid(grid, *batch, attributes, self.shown)
        return self.results

    def _test(self) -> Iterator[Batch]:
        return self.loader.eval_batches("test", batch_size=_EVAL_BATCH)

    def record(self, result: RunResult) -> None:
        """As `BaseSession.record`, with the scores of an earlier call."""
        known = self.scored.get(result["name"])
        super().record(result if known is None else {**result, "scores": known})


def _scores(folder: Path) -> dict[str, dict[str, float | None]]:
    """By run, what an earlier call of the same experiment found."""
    try:
        results = read_results(folder, generators=True)["results"]
    except FileNotFoundError:
        return {}
    return {result["name"]: result["scores"] for result in results if "scores" in result}


def run_gan_experiment(
    experiment: GanExperiment,
    run_dir: Path,
    *,
    resume: bool = False,
    console: Console | None = None,
    teacher_only: bool = False,
) -> list[RunResult]:
    """Train (or load) the teacher, then every student; what has ended before is not done again.

    Args:
        experiment: see `lit_fast.settings.classifier.load_any_experiment`.
        run_dir: where everything is written.
        resume: continue what an earlier call with the same experiment left there.
        console: where progress goes; default: standard output.
        teacher_only: train no student.

    Returns:
        One result per run, the teacher's first, as in ``run_dir/results.json``.

    Raises:
        ValueError, OSError, Interrupted, NonFiniteLoss: see there.
    """
    if experiment.metrics.inception is not None:
        check_inception(experiment.metrics.inception)
    data = partial(open_data, experiment.data.name, **experiment.data.options())
    known = experiment.teacher.hashes()
    with opened(GanSession, experiment, data, run_dir, known, resume=resume, console=console) as session:
        return _train(session, experiment, teacher_only)


def _train(session: GanSession, experiment: GanExperiment, teacher_only: bool) -> list[RunResult]:
    """Everything that the session's experiment has left to do."""
    session.workers.first(session.check)
    name, teacher = session.teacher()
    networks: dict[str, nn.Module] = {name: teacher.generator.model}
    for spec, model in [] if teacher_only else specs(experiment):
        student = session.build(model, spec.seed)
        session.train(spec, model, student, (name, teacher))
        networks[spec.name] = student.generator.model
        session.shown.setdefault(spec.variant, student.generator.model)
    return session.workers.first(lambda: session.score(teacher, networks))
