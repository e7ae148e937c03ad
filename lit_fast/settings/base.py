"""What the configs of all experiments share: keys, the schedules of variants, an identity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from lit_fast.runs.manifest import hashes
from lit_fast.settings.schedule import Phase

LoaderName = Literal["auto", "resident", "dali", "torch"]  # lit_fast.data.loaders.NAMES
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]  # what torch.manual_seed takes

# What may differ between the runs of one experiment: it changes what is shown and where files lie, never a result.
# Files are part of it by content (`RunFolder`), not by where they lie. Loaders give the same batches, all but DALI's,
# whose rounding is part of it (`run_folder.DALI`).
_FREE_KEYS = frozenset(
    {
        "logging",
        "checkpoint",
        "data.dir",
        "data.cache_dir",
        "data.loader",
        "teacher.checkpoint",
        "teacher.discriminator",
        "samples",
        "metrics",
        "pruning",  # further runs, which keep their own settings (`lit_fast.training.pruning`)
    }
)


class Strict(BaseModel):
    """Refuses unknown keys, changes and infinities."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BaseDataConfig(Strict):
    """What to train on; ``None`` takes the dataset's own default."""

    name: str
    dir: Path | None = None
    val_size: Annotated[int, Field(ge=1)] | None = None
    val_seed: int = 0
    train_size: Annotated[int, Field(ge=1)] | None = None
    image_size: int | None = None
    augment: bool = True
    loader: LoaderName = "auto"
    on_bad_image: Literal["stop", "skip"] = "stop"

    def options(self) -> dict[str, Any]:
        """The arguments of `lit_fast.data.open_data` but the name."""
        return {"data_dir": self.dir, **self.model_dump(exclude={"name", "dir", "augment", "loader"})}


class BaseTeacherConfig(Strict):
    """The teacher: from ``checkpoint``, or trained first by the ``scratch`` schedule (``epochs`` shortens it)."""

    model: str
    checkpoint: Path | None = None
    epochs: Annotated[int, Field(ge=1)] | None = None
    seed: Seed = 1000  # no student's: a born-again student must not start as its teacher did

    @property
    def label(self) -> str:
        return self.model

    def hashes(self) -> dict[str, str]:
        """Of a given teacher's weights, as they are part of an experiment's identity."""
        return hashes({"teacher.weights": self.checkpoint})


class BaseStudentConfig(Strict):
    """The students' networks."""

    models: Annotated[tuple[Any, ...], Field(min_length=1)]


class BaseStepConfig(Strict):
    """How a step is computed; see `lit_fast.LITStep`."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    engine: Literal["auto", "runner", "eager"] = "auto"
    tf32: bool = True
    device: str = "auto"


class LoggingConfig(Strict):
    """What is written and shown: never part of an experiment's identity."""

    every: Annotated[int, Field(ge=1)] = 20
    tensorboard: bool = True
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()


class CheckpointConfig(Strict):
    """When a checkpoint is written, beside the end of every epoch, an interrupt and the end of a run."""

    every_seconds: Positive = 300.0


class BasePhasesConfig(Strict):
    """The schedules of the recipe (paper, appendix A)."""

    scratch: Phase
    lit: Phase
    finetune: Phase


_PHASES = {"scratch": ("scratch",), "kd": ("kd",)}  # of the variants that have not those of LIT


class AnyExperiment(Strict):
    """What every experiment has: a recipe, and an identity by which its run folder knows it.

    A teacher, its students by variant and seed, and how they are trained.
    """

    TASK: ClassVar[str]  # as studies call it
    TEACHER_FILES: ClassVar[tuple[str, ...]] = ("checkpoint",)  # the keys of a given teacher's weights
    # Settings that a teacher's training does not read.
    OF_STUDENTS: ClassVar[tuple[str, ...]] = ("student", "variants", "seeds", "phases.lit", "phases.finetune")

    recipe: str
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    epochs: Annotated[int, Field(ge=1)] | None = None
    logging: LoggingConfig = LoggingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    data: BaseDataConfig
    teacher: BaseTeacherConfig
    student: BaseStudentConfig
    variants: tuple[str, ...]
    batch_size: int
    loss: Strict
    optimizer: Strict
    phases: BasePhasesConfig
    step: BaseStepConfig

    @field_validator("seeds", "variants")
    @classmethod
    def _no_twins(cls, values: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        if len(set(values)) != len(values):
            raise ValueError(f"{info.field_name} repeats an entry: {list(values)}")
        return values

    @property
    def networks(self) -> tuple[str, ...]:
        """The students' labels."""
        return tuple(model if isinstance(model, str) else model.label for model in self.student.models)

    @property
    def sparsities(self) -> tuple[float, ...]:
        """What each student is pruned to after its training."""
        return ()

    @property
    def chains(self) -> bool:
        """Whether each student is the teacher of the next."""
        return False

    def identity(self) -> dict[str, Any]:
        """The flat ``key: value`` pairs that make this experiment itself (see ``_FREE_KEYS``)."""
        flat = _flatten(self.model_dump(mode="json"))
        return {k: v for k, v in flat.items() if not any(k == f or k.startswith(f + ".") for f in _FREE_KEYS)}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def plan(self, variant: str) -> tuple[Phase, ...]:
        """The phases a student of ``variant`` goes through, shortened in proportion where ``epochs`` is given."""
        names = _PHASES.get(variant, ("lit", "finetune"))
        phases = [getattr(self.phases, name).named(name) for name in names]
        return tuple(phases) if self.epochs is None else _shorten(phases, self.epochs)

    def teacher_plan(self) -> tuple[Phase, ...]:
        """The teacher's schedule where no checkpoint is given: the recipe's ``scratch`` phase."""
        phase = self.phases.scratch.named("scratch")
        epochs = self.teacher.epochs or self.epochs
        return (phase,) if epochs is None else _shorten([phase], epochs)


def _shorten(phases: list[Phase], epochs: int) -> tuple[Phase, ...]:
    """Scale the phases to ``epochs`` in all, keeping their proportions; the first phase keeps at least one epoch."""
    total = sum(phase.epochs for phase in phases)
    left, out = epochs, []
    for i, phase in enumerate(phases):
        last = i == len(phases) - 1
        share = left if last else min(left, max(1, round(epochs * phase.epochs / total)))
        if share:
            out.append(phase.scaled_to(share))
        left -= share
    return tuple(out)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
