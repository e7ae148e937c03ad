"""What the runs of one experiment share, whatever they train: folder, loader, workers, results."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from rich.console import Console

from lit_fast.data import Data
from lit_fast.data.loaders import Loader, choose_loader, open_loader
from lit_fast.errors import ConfigError, DataError, StoreError
from lit_fast.files import OF_THE_DISK
from lit_fast.runs.environment import describe_environment, resolve_device, rounding_environment
from lit_fast.runs.folder import DALI, RunFolder
from lit_fast.runs.lock import RunLock
from lit_fast.runs.results import write_results
from lit_fast.runs.schema import RunResult, Settings
from lit_fast.sections.model import SplitModel
from lit_fast.settings.base import AnyExperiment, BaseStepConfig
from lit_fast.step.lit_model import PRECISIONS
from lit_fast.step.parallel import ALONE, Workers, check_batches, join
from lit_fast.tables import printable
from lit_fast.teacher.frozen import FrozenTeacher
from lit_fast.training.callbacks import Callback, Listeners
from lit_fast.training.callbacks.logs import JsonLog
from lit_fast.training.callbacks.trackers import trackers
from lit_fast.training.interrupt import SignalWatch
from lit_fast.training.progress import EpochLines, ProgressBar
from lit_fast.training.run import Outcome, Run
from lit_fast.training.task import RunSpec, Task

__all__ = ["UNTRAINED", "BaseSession", "cost", "frozen_teacher", "opened", "specs"]

E = TypeVar("E", bound=AnyExperiment)
T = TypeVar("T", bound=Task)
S = TypeVar("S", bound="BaseSession[Any]")


class BaseSession(Generic[E]):
    """The runs of one experiment, one after another.

    Args:
        experiment: the resolved config.
        loader: of the dataset, on the device; closed at the end.
        folder: where it is written.
        console: where progress goes.
        signals: who may ask to stop.
        workers: the processes that do this together.

    Attributes:
        callbacks: the caller's own, told of every run.
    """

    callbacks: Sequence[Callback] = ()

    def __init__(
        self,
        experiment: E,
        loader: Loader,
        folder: RunFolder,
        console: Console,
        signals: SignalWatch,
        workers: Workers = ALONE,
    ) -> None:
        self.experiment, self.folder = experiment, folder
        self.loader, self.data = loader, loader.data
        self.signals, self.workers = signals, workers
        self.console = console if workers.leads else Console(file=io.StringIO(), quiet=True)
        self.device = loader.device
        self.results: list[RunResult] = []
        self.console.print(f"loader: {loader.name} ({loader.reason})", highlight=False, markup=False)
        if not len(self.data.test):
            self.console.print("no test split: what is reported is of the validation split", highlight=False)
        left_out = self.data.left_out
        if left_out:
            self.console.print(
                printable(f"images left out: {len(left_out)}, such as {left_out[0]}"), highlight=False, markup=False
            )

    @classmethod
    def check_data(cls, data: Data) -> None:
        """Raises ConfigError for data that cannot be trained on."""

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, *_: object) -> None:
        self.loader.close()

    def note(self, text: str) -> None:
        """Tell what the user should know, and go on."""
        self.console.print(f"note: {printable(text)}", highlight=False, markup=False)

    def run(self, task: Task, folder: Path, listeners: Listeners | None = None) -> Run:
        return Run(
            task,
            folder,
            self.folder.of(task.spec.name),
            console=self.console,
            signals=self.signals,
            listeners=listeners or Listeners(),
        )

    def listeners(self, task: Task) -> Listeners:
        """Who is told of a run: files, trackers, the console, and the caller's callbacks; in rank 0 alone."""
        if not self.workers.leads:
            return Listeners()
        logging = self.experiment.logging
        bar = [ProgressBar(self.console, task.describe)] if self.console.is_terminal else []
        lines = EpochLines(self.console, task.spec.epochs, task.describe_epoch)
        tracked = trackers(logging.trackers, tensorboard=logging.tensorboard)
        return Listeners([JsonLog(), *tracked, *bar, lines, *self.callbacks])

    def train_task(
        self,
        task: T,
        finish: Callable[[T, Path, Outcome], RunResult],
        load: Callable[[RunResult], None],
    ) -> RunResult:
        """Run a task to its end, or find it ended; its networks then have their last weights, in every process.

        Args:
            finish: writes the weights of a run and returns its result; called in rank 0.
            load: reads the weights of a result that was found; called in rank 0.
        """
        name = task.spec.name
        done, folder = self.workers.first(lambda: (self.folder.finished(name), self.folder.run(name)))
        if done is None:
            with self.listeners(task) as listeners:
                outcome = self.run(task, folder, listeners).run()
                done = listeners.result = self.workers.first(
                    lambda: self._finished(name, folder, lambda: finish(task, folder, outcome))
                )
        else:
            self.workers.first(lambda: load(done))
        for network in task.networks.values():
            self.workers.equalise(network)
        self.record(done)
        return done

    def _finished(self, name: str, folder: Path, finish: Callable[[], RunResult]) -> RunResult:
        """The result of a run that has been trained, once all of it is written."""
        try:
            result = finish()
            self.folder.finish(name, result)
        except OSError as error:
            if error.errno not in OF_THE_DISK:
                raise
            raise StoreError(
                f"cannot write {error.filename or folder}: {error.strerror}; the last checkpoint of {name} is intact. "
                "Make room or mend the folder, then --resume"
            ) from error
        return result

    def record(self, result: RunResult) -> None:
        """Add the result of a run to those of the experiment."""
        self.results.append(result)
        self.write()

    def write(self) -> None:
        """Write ``results.json``."""
        if not self.workers.leads:
            return
        write_results(
            self.folder.path,
            {
                "experiment": cast(Settings, self.experiment.model_dump(mode="json")),
                "environment": describe_environment(self.device, self.workers.size),
                "left_out": [printable(file) for file in self.data.left_out],
                "results": self.results,
            },
        )


def frozen_teacher(model: SplitModel, step: BaseStepConfig, *, logits: bool = True) -> FrozenTeacher | None:
    """What runs a network that has its last weights in the steps of all its students; ``None`` where its modules do."""
    if step.engine == "eager" or model.how != "traced":
        return None
    return FrozenTeacher(model, PRECISIONS[step.precision], logits=logits, strict=step.engine == "runner")


def cost(spec: RunSpec, outcome: Outcome, files: dict[str, str]) -> dict[str, Any]:
    """The end of a result: how long the run took, its history, its files."""
    return {
        "epochs": spec.epochs,
        "seconds": outcome.seconds,
        "images_per_second": outcome.images / outcome.seconds,
        "history": outcome.history,
        "files": files,
    }


UNTRAINED: dict[str, Any] = {"epochs": 0, "seconds": 0.0, "images_per_second": None, "history": [], "files": {}}


@contextmanager
def opened(
    kind: type[S],
    experiment: Any,
    source: Data | Loader | Callable[[], Data],
    run_dir: Path,
    extra: dict[str, Any],
    *,
    resume: bool,
    console: Console | None,
    channels_last: bool = True,
    sync_batchnorm: bool = False,
) -> Iterator[S]:
    """The session of an experiment on a dataset, with its run folder and its loader, among the processes of torchrun.

    Args:
        kind: the session's class.
        experiment: the resolved config.
        source: the dataset, for the loader that the experiment names, or a loader of the caller's own.
        run_dir, extra, resume: see `RunFolder`.
        console: default: standard output.
        channels_last: of the loader's batches.
        sync_batchnorm: see `check_batches`.

    Raises:
        ValueError: what cannot work, before anything is written or read at length.
    """
    with SignalWatch() as signals, join(experiment.step.device) as workers, RunLock() as lock:
        trackers(experiment.logging.trackers, tensorboard=False)  # told now, not after the teacher was trained
        source = source() if callable(source) else source
        data = source.data if isinstance(source, Loader) else source
        check_batches(workers, experiment.batch_size, len(data.train), sync_batchnorm=sync_batchnorm)
        kind.check_data(data)
        device = resolve_device(workers.device if workers.size > 1 else experiment.step.device)

        def claim(**further: Any) -> RunFolder:
            identity = {**extra, **further}
            about = rounding_environment(device, workers.size)
            return workers.first(
                lambda: RunFolder(
                    run_dir, experiment, data, resume=resume, extra=identity, lock=lock, environment=about
                )
            )

        if isinstance(source, Loader):
            loader = source
            if (loader.device.type, loader.device.index or 0) != (device.type, device.index or 0):
                raise ConfigError(
                    f"the loader's batches lie on {loader.device}, the run is on {device}; set step.device"
                )
            folder = claim(loader=type(loader).__name__)
        else:
            wanted = experiment.data.loader
            chosen = workers.first(lambda: choose_loader(data, wanted, device=device, processes=workers.size))
            folder = claim(**{DALI: True} if chosen.name == "dali" else {})
            with _remembered(folder, data):
                loader = open_loader(data, chosen, device=device, channels_last=channels_last)
        with (
            _remembered(folder, data),
            kind(experiment, loader, folder, console or Console(), signals, workers) as session,
        ):
            for change in folder.changes:
                told = f"begun with {change}: what follows may differ in its last bits from a run without a stop"
                session.note(told)
            yield session


@contextmanager
def _remembered(folder: RunFolder, data: Data) -> Iterator[None]:
    """A bad image file that ends this is noted in the run folder."""
    try:
        yield
    except DataError as error:
        folder.remember(error, data)
        raise


def specs(experiment: AnyExperiment) -> Iterator[tuple[RunSpec, Any]]:
    """The runs of the students, each with the config of its network."""
    for model, label in zip(experiment.student.models, experiment.networks):
        for seed in experiment.seeds:
            for variant in experiment.variants:
                yield RunSpec(f"{label}-{variant}-seed{seed}", variant, seed, experiment.plan(variant)), model
