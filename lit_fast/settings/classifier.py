"""One experiment as one validated object: read from YAML, overridden by ``key=value``, saved as it was resolved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast, get_args

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from lit_fast import data, models, recipes
from lit_fast.errors import ConfigError, choose_from
from lit_fast.files import must_be_regular
from lit_fast.literals import BlockChoice, IRKind, StatsPolicy, Switch, TargetsKind
from lit_fast.named_yaml import parse_yaml
from lit_fast.runs.results import percent
from lit_fast.settings.base import (
    AnyExperiment,
    BaseDataConfig,
    BasePhasesConfig,
    BaseStepConfig,
    BaseStudentConfig,
    BaseTeacherConfig,
    Fraction,
    LoggingConfig,
    Positive,
    Strict,
)
from lit_fast.settings.cuts import CutConfig, merged
from lit_fast.settings.explained import explained
from lit_fast.settings.gan import GanExperiment
from lit_fast.settings.optimizer import OptimizerConfig
from lit_fast.settings.schedule import Phase
from lit_fast.settings.variants import Variant
from lit_fast.user_functions import function, is_function, label


def _own(info: ValidationInfo) -> bool:
    """Whether the caller brings models and data as objects (`lit_fast.distill`): names are then only labels."""
    return bool((info.context or {}).get("own_objects"))


def _checked_name(name: str, what: str, known: Iterable[str], info: ValidationInfo) -> str:
    if name in known or _own(info):
        return name
    if not is_function(name):
        raise ValueError(f"unknown {what} {name!r}{choose_from(name, known, ', or module:function of your own')}")
    function(name)
    return name


class DataConfig(BaseDataConfig):
    """What a classifier is trained on."""

    name: str = "digits"
    image_size: Annotated[int, Field(ge=4)] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[Positive, ...] | None = None
    length: Annotated[int, Field(ge=1)] | None = None
    cache_dir: Path | None = None

    @field_validator("name")
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        return _checked_name(name, "dataset", data.names(), info)

    @model_validator(mode="after")
    def _needs_a_folder(self, info: ValidationInfo) -> DataConfig:
        if is_function(self.name) and not _own(info):
            fields = type(self).model_fields
            for key in fields.keys() - {"name", "augment", "loader"}:
                if getattr(self, key) != fields[key].default:
                    raise ValueError(f"{key}: it is for datasets by name; leave it out, {self.name} decides")
        elif self.name != "digits" and self.dir is None and not _own(info):
            raise ValueError(f"dataset {self.name!r} is read from disk: give its folder, data.dir=DIR or --data-dir")
        return self


class ModelConfig(Strict):
    """A built-in network by name; ``cardinality`` is for ResNeXt only."""

    model: str
    cardinality: Annotated[int, Field(ge=1, le=1024)] | None = None

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
        return label(self.model) if self.is_own else str(models.Network(self.model, self.cardinality))

    @property
    def is_own(self) -> bool:
        """Whether a function of the user's makes it."""
        return is_function(self.model)


class TeacherConfig(ModelConfig, BaseTeacherConfig, CutConfig):
    """The teacher of a classifier; a network of one's own without a checkpoint comes trained."""

    @field_validator("checkpoint")
    @classmethod
    def _there(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError(f"no such file: {path}; without a checkpoint the teacher is trained first")
        return path


class StudentConfig(BaseStudentConfig, CutConfig):
    """The students, smallest last when ``sequence`` chains them (each is the teacher of the next)."""

    models: Annotated[tuple[ModelConfig, ...], Field(min_length=1)]
    sequence: bool = False
    copied: tuple[str, ...] = Field(default=("stem", "head"), description="parts that start as the teacher's")
    frozen_in_finetune: tuple[str, ...] = Field(default=(), description="copied parts that stay frozen to the end")
    projector: bool = False
    copy_blocks: BlockChoice | tuple[Annotated[int, Field(ge=0)], ...] | None = None
    copied_to: Literal["ir", "all"] = Field(default="ir", description="whose: variants with an IR loss, or all")

    FOR_OWN: ClassVar = (*CutConfig.FOR_OWN, "copy_blocks")

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


class StepConfig(BaseStepConfig):
    """How a classifier's step is computed."""

    bn_policy: StatsPolicy = "composed"
    channels_last: bool = True
    capture: bool = True
    side_by_side: Switch = "auto"
    fused_norm: Switch = "auto"
    teacher_ahead: bool = False
    cudnn_benchmark: bool = False
    sync_batchnorm: bool = False

    @model_validator(mode="after")
    def _one_pass_writes_the_statistics(self) -> StepConfig:
        if self.side_by_side is True and self.bn_policy == "both":
            raise ValueError("side_by_side: bn_policy 'both' lets both passes write the same running statistics")
        return self


class ClassifierLoggingConfig(LoggingConfig):
    """With what only a student with several sections has."""

    sections_every: Annotated[int, Field(ge=0)] = 500


class PhasesConfig(BasePhasesConfig):
    """Those of a classifier."""

    kd: Phase


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


class Experiment(AnyExperiment, CutConfig):
    """One experiment with classifiers, or with networks of one's own that the loss of classifiers fits."""

    FOR_OWN: ClassVar = (*CutConfig.FOR_OWN, "targets", "skip_padding")
    TASK: ClassVar = "classifier"
    OF_STUDENTS: ClassVar = (*AnyExperiment.OF_STUDENTS, "loss", "pruning", "phases.kd")

    data: DataConfig
    teacher: TeacherConfig
    student: StudentConfig
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)] = ("lit",)
    batch_size: Annotated[int, Field(ge=2)] = 32
    targets: str = "classification"
    skip_padding: bool = False
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    phases: PhasesConfig
    pruning: PruningConfig = PruningConfig()
    step: StepConfig = StepConfig()
    logging: ClassifierLoggingConfig = ClassifierLoggingConfig()

    @field_validator("targets")
    @classmethod
    def _known_targets(cls, name: str, info: ValidationInfo) -> str:
        return _checked_name(name, "targets", get_args(TargetsKind), info)

    @model_validator(mode="after")
    def _own_networks_are_cut(self, info: ValidationInfo) -> Experiment:
        """The cuts of built-in networks are their own."""
        networks = [self.teacher, *self.student.models]
        for prefix, config, cut in (
            ("", self, networks),
            ("teacher.", self.teacher, networks[:1]),
            ("student.", self.student, networks[1:]),
        ):
            if config.given and not any(network.is_own for network in cut) and not _own(info):
                raise ValueError(
                    f"{prefix}{next(iter(config.given))}: {cut[0].label} is cut at its own sections; leave it out, or "
                    "give networks of your own, module:function"
                )
        for network in networks:
            self.cuts_of(network)
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if self.student.sequence and self.variants != ("lit",):
            raise ValueError(f"student.sequence chains LIT students: variants must be [lit], got {list(self.variants)}")
        return self

    def cuts_of(self, network: ModelConfig) -> dict[str, Any]:
        """The keywords of `lit_fast.split` for a network of one's own."""
        return merged(self.cut_config(network), self)

    def cut_config(self, network: ModelConfig) -> CutConfig:
        """Those for this network alone."""
        return self.teacher if network is self.teacher else self.student

    @property
    def has_own_networks(self) -> bool:
        """Whether a function of the user's makes one of them."""
        return any(network.is_own for network in (self.teacher, *self.student.models))

    @property
    def loss_targets(self) -> TargetsKind | Callable[..., Any]:
        """What `lit_fast.LITStep` takes as ``targets``."""
        return function(self.targets) if is_function(self.targets) else cast(TargetsKind, self.targets)

    @property
    def sparsities(self) -> tuple[float, ...]:
        return self.pruning.sparsities

    @property
    def chains(self) -> bool:
        return self.student.sequence

    def pruned_plan(self) -> tuple[Phase, ...]:
        """The fine-tuning of a pruned student: shortened as that of LIT is, whatever way the student was trained."""
        phase = (self.pruning.finetune or self.phases.finetune).named("pruned")
        if self.epochs is None:
            return (phase,)
        whole = self.phases.lit.epochs + self.phases.finetune.epochs
        return (phase.scaled_to(max(1, round(self.epochs * phase.epochs / whole))),)


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
        parsed = parse_yaml(value)
    except ValueError as error:
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
) -> Experiment | GanExperiment:
    """An `Experiment`, or where the recipe says ``task: gan``, a `lit_fast.settings.gan.GanExperiment`.

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
    given = _merge(from_file, {"recipe": name})
    for override in overrides:
        over = _parse_override(override) if isinstance(override, str) else override
        if "recipe" in over:
            raise ConfigError("override of recipe: choose it with recipe= or --recipe, the overrides go over it")
        given = _merge(given, over)
    dataset = given.get("data")
    if isinstance(dataset, Mapping) and is_function(str(dataset.get("name"))):
        tree = {**tree, "data": {}}  # the recipe's settings are for its own dataset
    tree = _merge(tree, given)
    try:
        kind = (
            GanExperiment if tree.get("task") == "gan" else Experiment
        )  # another task is an unknown key of the latter
        return kind.model_validate(tree, context={"own_objects": own_objects})
    except ValidationError as error:
        raise ConfigError(explained(error, kind)) from None


def kind_of(tree: Mapping[str, Any]) -> type[Experiment] | type[GanExperiment]:
    """What a recipe's keys are validated as."""
    return GanExperiment if tree.get("task") == "gan" else Experiment  # which knows no key "task"


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        must_be_regular(path)
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from error
    except ValueError as error:  # of YAML, or of UTF-8
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of keys at the top, got {type(tree).__name__}")
    return tree
