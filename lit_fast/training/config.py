"""One experiment as one validated object: read from YAML, overridden by ``key=value``, saved as it was resolved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from lit_fast import data, models, recipes
from lit_fast.data.loaders import LoaderName
from lit_fast.errors import ConfigError
from lit_fast.literals import Engine, IRKind, Precision, StatsPolicy
from lit_fast.training.files import hashes
from lit_fast.training.results import percent
from lit_fast.training.schedule import Phase
from lit_fast.training.variants import Variant

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]

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


def _own(info: ValidationInfo) -> bool:
    """Whether the caller brings models and data as objects (`lit_fast.distill`): names are then only labels."""
    return bool((info.context or {}).get("own_objects"))


def _checked_name(name: str, what: str, known: Iterable[str], info: ValidationInfo) -> str:
    if name not in known and not _own(info):
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(known)}")
    return name


class DataConfig(Strict):
    """What to train on; ``None`` takes the dataset's own default."""

    name: str = "digits"
    dir: Path | None = None
    val_size: Annotated[int, Field(ge=1)] | None = None
    val_seed: int = 0
    train_size: Annotated[int, Field(ge=1)] | None = None
    image_size: Annotated[int, Field(ge=4)] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[Positive, ...] | None = None
    augment: bool = True
    length: Annotated[int, Field(ge=1)] | None = None
    cache_dir: Path | None = None
    loader: LoaderName = "auto"
    on_bad_image: Literal["stop", "skip"] = "stop"

    @field_validator("name")
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        return _checked_name(name, "dataset", data.names(), info)

    @model_validator(mode="after")
    def _needs_a_folder(self, info: ValidationInfo) -> DataConfig:
        if self.name != "digits" and self.dir is None and not _own(info):
            raise ValueError(f"dataset {self.name!r} is read from disk: give its folder, data.dir=DIR or --data-dir")
        return self


class ModelConfig(Strict):
    """A built-in network by name; ``cardinality`` is for ResNeXt only."""

    model: str
    cardinality: Annotated[int, Field(ge=1)] | None = None

    @field_validator("model")
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        return _checked_name(name, "model", models.names(), info)

    @model_validator(mode="after")
    def _cardinality_is_for_resnext(self) -> ModelConfig:
        if self.cardinality is not None and not self.model.startswith("resnext"):
            raise ValueError(f"cardinality is an option of ResNeXt; {self.model} has none: remove it")
        return self

    @property
    def label(self) -> str:
        return str(models.Network(self.model, self.cardinality))


class TeacherConfig(ModelConfig):
    """The teacher: from ``checkpoint``, or trained first by the ``scratch`` schedule (``epochs`` shortens it)."""

    checkpoint: Path | None = None
    epochs: Annotated[int, Field(ge=1)] | None = None
    seed: int = 1000  # no student's: a born-again student must not start as its teacher did

    @field_validator("checkpoint")
    @classmethod
    def _there(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError(f"no such file: {path}; without a checkpoint the teacher is trained first")
        return path

    def hashes(self) -> dict[str, str]:
        """Of a given teacher's weights, as they are part of an experiment's identity."""
        return hashes({"teacher.weights": self.checkpoint})


class StudentConfig(Strict):
    """The students, smallest last when ``sequence`` chains them (each is the teacher of the next)."""

    models: Annotated[tuple[ModelConfig, ...], Field(min_length=1)]
    sequence: bool = False
    copied: tuple[str, ...] = Field(default=("stem", "head"), description="parts that start as the teacher's")
    frozen_in_finetune: tuple[str, ...] = Field(default=(), description="copied parts that stay frozen to the end")
    projector: bool = False

    @field_validator("models", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        entries = [value] if isinstance(value, str | Mapping) else value
        if not isinstance(entries, list | tuple):
            raise ValueError("expected a network's name, or a list of them")
        return [{"model": entry} if isinstance(entry, str) else entry for entry in entries]

    @model_validator(mode="after")
    def _frozen_are_copied(self) -> StudentConfig:
        extra = set(self.frozen_in_finetune) - set(self.copied)
        if extra:
            raise ValueError(f"frozen_in_finetune names {sorted(extra)}, which copied={list(self.copied)} does not")
        if len(set(self.models)) != len(self.models):
            raise ValueError("a student is named twice; use seeds to repeat a run")
        return self


class LossConfig(Strict):
    """The loss of method eq. 1-3; see `lit_fast.LITLoss`."""

    alpha: Fraction = 0.95
    beta: Fraction = 0.75
    tau: Positive = 6.0
    ir: IRKind = "l2"
    tau_squared: bool = True
    section_weights: tuple[float, ...] | None = None
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


class OptimizerConfig(Strict):
    """SGD; the learning rate belongs to the phase."""

    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> OptimizerConfig:
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov needs momentum > 0")
        return self


class StepConfig(Strict):
    """How a step is computed; see `lit_fast.LITStep`."""

    precision: Precision = "fp32"
    bn_policy: StatsPolicy = "composed"
    channels_last: bool = True
    engine: Engine = "auto"
    capture: bool = True
    side_by_side: bool = False
    cudnn_benchmark: bool = False
    tf32: bool = True
    sync_batchnorm: bool = False
    device: str = "auto"

    @model_validator(mode="after")
    def _one_pass_writes_the_statistics(self) -> StepConfig:
        if self.side_by_side and self.bn_policy == "both":
            raise ValueError("side_by_side: bn_policy 'both' lets both passes write the same running statistics")
        return self


class LoggingConfig(Strict):
    """What is written and shown: never part of an experiment's identity."""

    every: Annotated[int, Field(ge=1)] = 20
    tensorboard: bool = True


class ClassifierLoggingConfig(LoggingConfig):
    """With what only a student with several sections has."""

    sections_every: Annotated[int, Field(ge=0)] = 500


class CheckpointConfig(Strict):
    """When a checkpoint is written, beside the end of every epoch, an interrupt and the end of a run."""

    every_seconds: Positive = 300.0


class PhasesConfig(Strict):
    """The schedules of the recipe (paper, appendix A)."""

    scratch: Phase
    kd: Phase
    lit: Phase
    finetune: Phase


class PruningConfig(Strict):
    """What each student is pruned to after its training, and how what is left is fine-tuned: as ``phases.finetune``."""

    sparsities: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = ()
    finetune: Phase | None = None

    @field_validator("sparsities")
    @classmethod
    def _no_twins(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(map(percent, values))) != len(values):  # the name of a run has its percentage
            raise ValueError(f"sparsities repeats an entry: {list(values)}")
        return values


class AnyExperiment(Strict):
    """What every experiment has: a recipe, and an identity by which its run folder knows it."""

    recipe: str
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    epochs: Annotated[int, Field(ge=1)] | None = None
    logging: LoggingConfig = LoggingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @field_validator("seeds", "variants", check_fields=False)
    @classmethod
    def _no_twins(cls, values: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        if len(set(values)) != len(values):
            raise ValueError(f"{info.field_name} repeats an entry: {list(values)}")
        return values

    def identity(self) -> dict[str, Any]:
        """The flat ``key: value`` pairs that make this experiment itself (see ``_FREE_KEYS``)."""
        flat = _flatten(self.model_dump(mode="json"))
        return {k: v for k, v in flat.items() if not any(k == f or k.startswith(f + ".") for f in _FREE_KEYS)}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def shortened(self, phases: list[Phase]) -> tuple[Phase, ...]:
        """The phases, shortened in proportion where ``epochs`` is given."""
        return tuple(phases) if self.epochs is None else shorten(phases, self.epochs)


class Experiment(AnyExperiment):
    """One experiment: a teacher, its students by variant and seed, and how they are trained."""

    data: DataConfig
    teacher: TeacherConfig
    student: StudentConfig
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)] = ("lit",)
    batch_size: Annotated[int, Field(ge=2)] = 32
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    phases: PhasesConfig
    pruning: PruningConfig = PruningConfig()
    step: StepConfig = StepConfig()
    logging: ClassifierLoggingConfig = ClassifierLoggingConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if self.student.sequence and self.variants != ("lit",):
            raise ValueError(f"student.sequence chains LIT students: variants must be [lit], got {list(self.variants)}")
        return self

    def plan(self, variant: Variant) -> tuple[Phase, ...]:
        """The phases a student of ``variant`` goes through, shortened in proportion when ``epochs`` is given."""
        names = {"scratch": ("scratch",), "kd": ("kd",)}.get(variant, ("lit", "finetune"))
        return self.shortened([getattr(self.phases, name).named(name) for name in names])

    def pruned_plan(self) -> tuple[Phase, ...]:
        """The fine-tuning of a pruned student: shortened as that of LIT is, whatever way the student was trained."""
        phase = (self.pruning.finetune or self.phases.finetune).named("pruned")
        if self.epochs is None:
            return (phase,)
        whole = self.phases.lit.epochs + self.phases.finetune.epochs
        return (phase.scaled_to(max(1, round(self.epochs * phase.epochs / whole))),)

    def teacher_plan(self) -> tuple[Phase, ...]:
        """The teacher's schedule where no checkpoint is given: the recipe's ``scratch`` phase."""
        phase = self.phases.scratch.named("scratch")
        epochs = self.teacher.epochs or self.epochs
        return (phase,) if epochs is None else shorten([phase], epochs)


def shorten(phases: list[Phase], epochs: int) -> tuple[Phase, ...]:
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


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _merge(out[key], value) if both else value
    return out


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {text!r} is not of the form key=value, for example loss.beta=0.5")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: the value is not YAML: {error}") from error
    for part in reversed(key.split(".")):
        parsed = {part: parsed}
    return parsed


def load_experiment(
    recipe: str | None = None,
    config: Path | None = None,
    overrides: Iterable[str | Mapping[str, Any]] = (),
    *,
    own_objects: bool = False,
) -> Experiment:
    """Resolve recipe, then YAML file, then overrides (later wins) into one validated `Experiment`.

    Args and errors as `load_any_experiment`; a recipe for a generator is refused too.
    """
    found = load_any_experiment(recipe, config, overrides, own_objects=own_objects)
    if not isinstance(found, Experiment):
        raise ConfigError(f"recipe {found.recipe} trains a generator, not a classifier: use `lit-fast distill`")
    return found


def load_any_experiment(
    recipe: str | None = None,
    config: Path | None = None,
    overrides: Iterable[str | Mapping[str, Any]] = (),
    *,
    own_objects: bool = False,
) -> AnyExperiment:
    """An `Experiment`, or where the recipe says ``task: gan``, a `lit_fast.training.gan.config.GanExperiment`.

    Args:
        recipe: a name of `lit_fast.recipes.names()`; default: the file's ``recipe`` key; without a file, ``digits``.
        config: a YAML file with any of the keys of `Experiment`.
        overrides: ``"key.sub=value"`` strings (the value is YAML) or nested mappings.
        own_objects: model and dataset names are labels of objects the caller brings, not names to look up.

    Raises:
        ConfigError: unknown recipe or key, impossible value, or an unreadable file; every problem is named.
    """
    from_file: dict[str, Any] = {}
    if config is not None:
        from_file = read_yaml(config)
        if recipe is None and "recipe" not in from_file:
            raise ConfigError(f"{config}: name the recipe it starts from, recipe: one of {', '.join(recipes.names())}")
    name = recipe or from_file.get("recipe", "digits")
    try:
        tree = recipes.load(name)
    except KeyError as error:
        raise ConfigError(error.args[0]) from error
    tree = _merge(_merge(tree, from_file), {"recipe": name})
    for override in overrides:
        over = _parse_override(override) if isinstance(override, str) else override
        if "recipe" in over:
            raise ConfigError("override of recipe: choose it with recipe= or --recipe, the overrides go over it")
        tree = _merge(tree, over)
    try:
        return _kind(tree.get("task")).model_validate(tree, context={"own_objects": own_objects})
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def _kind(task: object) -> type[AnyExperiment]:
    if task != "gan":  # any other task is an unknown key of Experiment
        return Experiment
    from lit_fast.training.gan.config import GanExperiment

    return GanExperiment


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of keys at the top, got {type(tree).__name__}")
    return tree


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "experiment"
        if problem["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key; see `lit-fast recipes --show NAME` for those there are")
        else:
            got = problem.get("input")
            shown = "" if isinstance(got, dict) or problem["type"] == "missing" else f" (got {got!r})"
            lines.append(f"{key}: {problem['msg'].removeprefix('Value error, ')}{shown}")
    return "impossible config:\n  " + "\n  ".join(lines)
