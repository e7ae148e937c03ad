"""A StarGAN experiment as one validated object: the keys of a recipe that says ``task: gan``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from lit_fast import models
from lit_fast.errors import choose_from
from lit_fast.literals import IRKind
from lit_fast.runs.manifest import hashes
from lit_fast.settings.base import (
    AnyExperiment,
    BaseDataConfig,
    BasePhasesConfig,
    BaseStepConfig,
    BaseStudentConfig,
    BaseTeacherConfig,
    Strict,
)

GanVariant = Literal["scratch", "lit"]


def _known(name: str) -> str:
    if name not in models.names("generator"):
        raise ValueError(f"unknown generator {name!r}{choose_from(name, models.names('generator'))}")
    return name


class FacesConfig(BaseDataConfig):
    """CelebA. Images are normalised to -1..1, the generator's range."""

    name: Literal["celeba"] = "celeba"
    dir: Path
    image_size: Annotated[int, Field(ge=16)] | None = None
    crop: Annotated[int, Field(ge=16)] | None = None
    attributes: tuple[str, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _needs_a_folder(cls, tree: Any) -> Any:
        if isinstance(tree, Mapping) and tree.get("dir") is None:
            raise ValueError("faces are read from disk: give CelebA's folder, data.dir=DIR or --data-dir")
        return tree


class GanTeacherConfig(BaseTeacherConfig):
    """The teacher; one that is given has the weights of both its networks."""

    model: str = "stargan6"
    discriminator: Path | None = None

    _name = field_validator("model")(_known)

    @model_validator(mode="after")
    def _files(self) -> GanTeacherConfig:
        for path in (self.checkpoint, self.discriminator):
            if path is not None and not path.is_file():
                raise ValueError(f"no such file: {path}; without weights the teacher is trained first")
        if (self.checkpoint is None) != (self.discriminator is None):
            raise ValueError(
                "checkpoint and discriminator belong together: the fine-tune phase goes on with the teacher's "
                "discriminator; give both files or neither"
            )
        return self

    def hashes(self) -> dict[str, str]:
        return {**super().hashes(), **hashes({"teacher.judge": self.discriminator})}


class GanStudentConfig(BaseStudentConfig):
    """The students' generators."""

    models: Annotated[tuple[str, ...], Field(min_length=1)] = ("stargan2",)

    @field_validator("models", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        entries = [value] if isinstance(value, str | Mapping) else value
        if not isinstance(entries, list | tuple):
            raise ValueError("expected a generator's name, or a list of them")
        return [entry.get("model") if isinstance(entry, Mapping) else entry for entry in entries]

    @field_validator("models")
    @classmethod
    def _known_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("a student is named twice; use seeds to repeat a run")
        return tuple(map(_known, names))


class GanLossConfig(Strict):
    """Weights of StarGAN's losses (Choi et al. 2018, eq. 5, 6 and 8), and the IR loss of the LIT phase."""

    attributes: Annotated[float, Field(ge=0.0)] = 1.0
    reconstruction: Annotated[float, Field(ge=0.0)] = 10.0
    gradient_penalty: Annotated[float, Field(ge=0.0)] = 10.0
    ir: IRKind = "l2"


class AdamConfig(Strict):
    """Adam; the learning rate belongs to the phase."""

    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (0.5, 0.999)


class SamplesConfig(Strict):
    """The grids of translated images."""

    images: Annotated[int, Field(ge=1)] = 6


class MetricsConfig(Strict):
    """Inception score and FID; ``inception`` is a file of weights, see docs/stargan.md."""

    inception: Path | None = None


class GanExperiment(AnyExperiment):
    """One StarGAN experiment."""

    TASK: ClassVar = "gan"
    TEACHER_FILES: ClassVar = ("checkpoint", "discriminator")
    OF_STUDENTS: ClassVar = (*AnyExperiment.OF_STUDENTS, "loss.ir", "discriminator_in_finetune")

    task: Literal["gan"]
    data: FacesConfig
    width: Annotated[int, Field(ge=1)] = Field(default=64, description="of generators and discriminators")
    teacher: GanTeacherConfig = GanTeacherConfig()
    student: GanStudentConfig = GanStudentConfig()
    variants: Annotated[tuple[GanVariant, ...], Field(min_length=1)] = ("scratch", "lit")
    batch_size: Annotated[int, Field(ge=1)] = 16
    n_critic: Annotated[int, Field(ge=1)] = 5
    discriminator_in_finetune: Literal["trained", "fixed"] = "trained"
    loss: GanLossConfig = GanLossConfig()
    optimizer: AdamConfig = AdamConfig()
    phases: BasePhasesConfig
    step: BaseStepConfig = BaseStepConfig()
    samples: SamplesConfig = SamplesConfig()
    metrics: MetricsConfig = MetricsConfig()
