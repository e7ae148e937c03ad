"""Trackers: TensorBoard, Weights & Biases, MLflow; each by the name that ``logging.trackers`` knows it by."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lit_fast.errors import ConfigError
from lit_fast.files import atomic_write, must_be_regular
from lit_fast.runs.schema import RunResult
from lit_fast.training.callbacks import Callback, RunInfo
from lit_fast.training.callbacks.logs import ScalarCallback, TensorBoard, scalars

__all__ = ["MLflow", "WandB", "trackers"]

_PROJECT = "lit_fast"  # where the tracker's own variables of the environment name no other
_LONGEST_PARAMETER = 500  # characters that every MLflow takes
_MOST_PARAMETERS = 100  # of one call


class WandB(ScalarCallback):
    """A run of Weights & Biases, with the settings as its config and the result in its summary.

    A run that goes on does so in the same one: its id is kept in ``wandb_run_id.txt`` of the run's folder. Where it
    goes is said by wandb's own settings: ``WANDB_PROJECT``, ``WANDB_ENTITY``, ``WANDB_MODE=offline`` ...
    """

    def on_train_begin(self, run: RunInfo) -> None:
        import wandb

        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=run.name,
            group=run.folder.resolve().parents[1].name,
            id=_kept(run.folder / "wandb_run_id.txt", lambda: uuid.uuid4().hex[:8]),
            resume="allow",
            dir=str(run.folder),
            config=dict(run.settings),
        )
        # Its own step only rises; a run that goes on from a checkpoint tells some steps a second time.
        self._run.define_metric("*", step_metric="global_step")

    def add(self, numbers: dict[str, float], step: int) -> None:
        self._run.log({"global_step": step, **numbers})

    def on_train_end(self, result: RunResult | None) -> None:
        if result is not None:
            self._run.summary.update(_numbers(result))
        self._run.finish(exit_code=0 if result is not None else 1)


class MLflow(ScalarCallback):
    """A run of MLflow, with the settings as its parameters and the result among its metrics.

    A run that goes on does so in the same one: its id is kept in ``mlflow_run_id.txt`` of the run's folder. Where it
    goes is said by MLflow's own settings: ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``. Numbers are sent beside
    the training.
    """

    def on_train_begin(self, run: RunInfo) -> None:
        import mlflow

        self._client: Any = mlflow.MlflowClient()
        self._sent: list[Any] = []
        self._last = run.step
        file = run.folder / "mlflow_run_id.txt"
        new = not file.exists()
        self._id = _kept(file, lambda: self._created(run))
        if new:
            self._parameters(run.settings)
        else:
            self._client.update_run(self._id, status="RUNNING")

    def _created(self, run: RunInfo) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if known is None else known.experiment_id
        return str(self._client.create_run(experiment, run_name=run.name).info.run_id)

    def _parameters(self, settings: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        flat = [Param(key, str(value)[:_LONGEST_PARAMETER]) for key, value in _flat(settings)]
        for first in range(0, len(flat), _MOST_PARAMETERS):
            self._client.log_batch(self._id, params=flat[first : first + _MOST_PARAMETERS])

    def add(self, numbers: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now, self._last = int(time.time() * 1000), step
        metrics = [Metric(name, float(value), now, step) for name, value in numbers.items()]
        self._sent.append(self._client.log_batch(self._id, metrics=metrics, synchronous=False))

    def on_train_end(self, result: RunResult | None) -> None:
        if result is not None:
            self.add(_numbers(result), self._last)
        for sent in self._sent:
            sent.wait()
        self._client.set_terminated(self._id, "FINISHED" if result is not None else "KILLED")


_TRACKERS: dict[str, tuple[type[Callback], str, str]] = {  # their class, module and package
    "tensorboard": (TensorBoard, "tensorboard", "tensorboard"),
    "wandb": (WandB, "wandb", "wandb"),
    "mlflow": (MLflow, "mlflow", "mlflow-skinny"),
}


def trackers(names: Sequence[str], *, tensorboard: bool) -> list[Callback]:
    """New ones.

    Args:
        names: of those that must be there.
        tensorboard: TensorBoard, too, where it is installed.

    Raises:
        ConfigError: one that is named is not installed.
    """
    for name in names:
        _, module, package = _TRACKERS[name]
        if find_spec(module) is None:
            raise ConfigError(f"logging.trackers: {name} is not installed here: pip install {package}")
    wanted = dict.fromkeys(names)
    if tensorboard and find_spec("tensorboard") is not None:
        wanted["tensorboard"] = None
    return [_TRACKERS[name][0]() for name in wanted]


def _kept(file: Path, make: Callable[[], str]) -> str:
    """The id in the file; where there is none, a new one that is written there."""
    if not os.path.lexists(file):
        made = make() + "\n"
        atomic_write(file, lambda path: path.write_text(made, encoding="utf-8"))
    must_be_regular(file)
    return file.read_text(encoding="utf-8").strip()


def _numbers(result: RunResult) -> dict[str, float]:
    """The accuracies and costs of a result."""
    return dict(scalars("result", {key: value for key, value in result.items() if key not in ("history", "seed")}))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
