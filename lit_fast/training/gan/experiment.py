"""A StarGAN experiment from its config: the teacher, then every student by seed and variant, each a resumable run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import nn

from lit_fast import models
from lit_fast.counting import count_layers, count_macs, count_parameters
from lit_fast.data import open_data
from lit_fast.data.base import Batch
from lit_fast.data.loaders import Loader, choose_loader, open_loader
from lit_fast.errors import ConfigError
from lit_fast.models.stargan import Discriminator, with_domain
from lit_fast.preflight import check_pair
from lit_fast.sections import split
from lit_fast.training.environment import describe_environment, resolve_device
from lit_fast.training.files import write_json
from lit_fast.training.gan.config import GanExperiment
from lit_fast.training.gan.metrics import (
    as_result,
    check_inception,
    compare,
    distances,
    inception_features,
    translations,
)
from lit_fast.training.gan.run import GanRun, Pair
from lit_fast.training.gan.samples import draw_grid, to_pixels
from lit_fast.training.interrupt import SignalWatch
from lit_fast.training.results import Results, RunResult, read_results, write_results
from lit_fast.training.run_folder import DALI, RunFolder
from lit_fast.training.trainer import RunSpec
from lit_fast.training.weights import WeightInfo, save_weights

__all__ = ["run_gan_experiment"]

_EVAL_BATCH = 64


class GanSession:
    """Everything the runs of one experiment share; arguments as `lit_fast.training.experiment.Session`."""

    def __init__(
        self, experiment: GanExperiment, loader: Loader, folder: RunFolder, console: Console, signals: SignalWatch
    ) -> None:
        self.experiment, self.folder = experiment, folder
        self.loader, self.data = loader, loader.data
        self.console, self.signals = console, signals
        self.device = loader.device
        self.results: list[RunResult] = []
        self.scored = _scores(folder.path)
        self.console.print(f"loader: {loader.name} ({loader.reason})", highlight=False)
        self.shown: dict[str, nn.Module] = {}  # the rows of the sample grids: one network of each kind

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
                run = self._run(spec, self.folder.path, student, teacher)
                if variant == "lit":
                    check_pair(teacher.generator, student.generator, example)
                for phase in spec.phases:
                    run.enter(phase)

    # -- runs --------------------------------------------------------------------------------------------------------

    def teacher(self) -> tuple[str, Pair]:
        """The teacher, from its weights or trained here, with its result recorded."""
        config = self.experiment.teacher
        name, pair = f"teacher-{config.model}", self.build(config.model, config.seed)
        if config.checkpoint is None or config.discriminator is None:
            spec = RunSpec(name, "scratch", config.seed, self.experiment.teacher_plan())
            self.train(spec, config.model, pair, None, role="teacher")
        else:
            self.load(pair, config.checkpoint, config.discriminator)
            described = self._described(name, "teacher", config.model, "checkpoint", None, None)
            self._record(cast(RunResult, {**described, **_UNTRAINED}))
        pair.generator.eval().requires_grad_(False)
        pair.discriminator.eval().requires_grad_(False)
        self.shown = {"teacher": pair.generator.model}
        return name, pair

    def train(
        self, spec: RunSpec, model: str, pair: Pair, teacher: tuple[str, Pair] | None, *, role: str = "student"
    ) -> None:
        """Run ``spec`` to its end (or find it ended); ``pair`` then holds its last weights."""
        done, folder = self.folder.finished(spec.name), self.folder.run(spec.name)
        files = {which: folder / f"{which}.safetensors" for which in ("generator", "discriminator")}
        if done is None:
            run = self._run(spec, folder, pair, None if teacher is None else teacher[1])
            ended = run.run()
            for which, network in (("generator", pair.generator.model), ("discriminator", pair.discriminator)):
                save_weights(files[which], network.state_dict(), self._info(model, which))
            result = {
                **self._described(spec.name, role, model, spec.variant, spec.seed, teacher and teacher[0]),
                "epochs": spec.epochs,
                "seconds": ended.seconds,
                "images_per_second": ended.images / ended.seconds,
                "history": ended.history,
                "files": {which: path.relative_to(self.folder.path).as_posix() for which, path in files.items()},
            }
            done = cast(RunResult, result)
            write_json(folder / "result.json", done)
        else:
            self.load(pair, files["generator"], files["discriminator"])
        self._record(done)

    def _run(self, spec: RunSpec, folder: Path, pair: Pair, teacher: Pair | None) -> GanRun:
        return GanRun(
            spec,
            folder,
            self.loader,
            pair,
            teacher if spec.variant == "lit" else None,
            self.experiment,
            shown=self.shown,
            console=self.console,
            signals=self.signals,
        )

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

    def score(self, teacher: Pair, networks: dict[str, nn.Module]) -> None:
        """Compare all generators on the test split, touched here for the first time, and draw them side by side.

        What was scored before is not scored again; inception score and FID may be added.
        """
        weights = self.experiment.metrics.inception
        attributes, grid = self.data.classes, self.folder.path / "samples.png"
        left = [r for r in self.results if "scores" not in r or (weights is not None and r["scores"]["fid"] is None)]
        if not left and grid.exists():
            return
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
        self._write()
        batch = next(self.loader.eval_batches("test", batch_size=self.experiment.samples.images))
        draw_grid(grid, *batch, attributes, self.shown)

    def _test(self) -> Iterator[Batch]:
        return self.loader.eval_batches("test", batch_size=_EVAL_BATCH)

    def _record(self, result: RunResult) -> None:
        known = self.scored.get(result["name"])
        self.results.append(result if known is None else {**result, "scores": known})
        self._write()

    def _write(self) -> None:
        content: Results = {
            "experiment": self.experiment.model_dump(mode="json"),
            "environment": describe_environment(self.device),
            "results": self.results,
        }
        write_results(self.folder.path, content)


def _scores(folder: Path) -> dict[str, dict[str, float | None]]:
    """By run, what an earlier call of the same experiment found."""
    try:
        results = read_results(folder)["results"]
    except FileNotFoundError:
        return {}
    return {result["name"]: result["scores"] for result in results if "scores" in result}


_UNTRAINED: dict[str, Any] = {"epochs": 0, "seconds": 0.0, "images_per_second": None, "history": [], "files": {}}


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
        experiment: see `lit_fast.training.config.load_any_experiment`.
        run_dir: where everything is written.
        resume: continue what an earlier call with the same experiment left there.
        console: where progress goes; default: standard output.
        teacher_only: train no student.

    Returns:
        One result per run, the teacher's first, as in ``run_dir/results.json``.

    Raises:
        ValueError, OSError, Interrupted, NonFiniteLoss: see there.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"recipe {experiment.recipe}: generators are trained by one process; start it without torchrun"
        )
    if experiment.metrics.inception is not None:
        check_inception(experiment.metrics.inception)
    data = open_data(experiment.data.name, **experiment.data.options())
    extra: dict[str, Any] = {**experiment.teacher.hashes()}
    device = resolve_device(experiment.step.device)
    chosen = choose_loader(data, experiment.data.loader, device=device)
    if chosen.name == "dali":
        extra[DALI] = True
    with SignalWatch() as signals:
        folder = RunFolder(run_dir, experiment, data, resume=resume, extra=extra)
        with open_loader(data, chosen, device=device, channels_last=True) as loader:
            session = GanSession(experiment, loader, folder, console or Console(), signals)
            _train(session, experiment, teacher_only)
    return session.results


def _train(session: GanSession, experiment: GanExperiment, teacher_only: bool) -> None:
    """Everything that the session's experiment has left to do."""
    session.check()
    name, teacher = session.teacher()
    networks: dict[str, nn.Module] = {name: teacher.generator.model}
    for spec, model in [] if teacher_only else _specs(experiment):
        student = session.build(model, spec.seed)
        session.train(spec, model, student, (name, teacher))
        networks[spec.name] = student.generator.model
        session.shown.setdefault(spec.variant, student.generator.model)
    session.score(teacher, networks)


def _specs(experiment: GanExperiment) -> Iterator[tuple[RunSpec, str]]:
    for model in experiment.student.models:
        for seed in experiment.seeds:
            for variant in experiment.variants:
                yield RunSpec(f"{model}-{variant}-seed{seed}", variant, seed, experiment.plan(variant)), model
