"""The types of ``results.json`` and ``result.json``; further keys are kept as they are."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from typing_extensions import NotRequired, Required, TypedDict

__all__ = ["Accuracy", "ClassifierResults", "GeneratorResults", "Pruned", "Results", "RunResult", "Settings", "Size"]

Text = Annotated[str, Field(max_length=1000)]
Count = Annotated[int, Field(ge=0, le=10**15)]
Number = Annotated[float, Field(ge=-1e18, le=1e18)]  # NaN is none
Positive = Annotated[float, Field(gt=0, le=1e18)]
Percent = Annotated[float, Field(ge=0, le=100)]
Measured = Annotated[float | None, AfterValidator(lambda value: _moderate(value))]


def _moderate(value: float | None) -> float | None:
    """A loss may be infinite or NaN, which no figure shows; a finite one is a number that an axis can hold."""
    if value is not None and math.isfinite(value) and abs(value) > 1e30:
        raise ValueError("a number up to 1e30 is expected")
    return value


def _of_one_length(sections: Sections) -> Sections:
    if len({len(sections[key]) for key in ("teacher_fed", "composed", "cosines")}) > 1:
        raise ValueError("a number for each section is expected in teacher_fed, composed and cosines")
    return sections


class Accuracy(TypedDict):
    """In percent: after the last epoch, and of the weights that were best on validation. None: not measured."""

    val_last: Percent
    val_best: Percent
    best_epoch: Count
    test_last: Percent | None
    test_best: Percent | None


class Sections(TypedDict):
    """What the sections looked like at the end of an epoch, a number for each of them."""

    teacher_fed: list[Number]
    composed: list[Number]
    cosines: list[Number | None]
    cosine: Number | None


class Epoch(TypedDict):
    """What a history keeps of an epoch; further keys are loss parts and scores."""

    epoch: Count
    phase: Text
    seconds: Number
    sections: NotRequired[Annotated[Sections, AfterValidator(_of_one_length)]]


class ClassifierEpoch(Epoch):
    """Of a classifier."""

    loss: Measured
    ir: list[Measured]
    val_accuracy: Measured


class GeneratorEpoch(Epoch):
    """Of a generator: what is drawn."""

    lit: NotRequired[Measured]
    val_ir: NotRequired[Measured]
    generator_reconstruction: NotRequired[Measured]
    val_generator_reconstruction: NotRequired[Measured]
    generator_attributes: NotRequired[Measured]
    val_generator_attributes: NotRequired[Measured]


class Pruned(TypedDict, total=False):
    """Of a pruned network alone, whose compression is by the parameters that are not zero."""

    sparsity: Annotated[float, Field(ge=0, le=1)] | None
    nonzero_parameters: Count


class Size(Pruned):
    """Of a network: MACs in millions, for one input; compression, the teacher's parameters over its own."""

    layers: Count
    parameters: Annotated[int, Field(ge=1, le=10**15)]
    mmacs: Annotated[float, Field(ge=0, le=1e18)]
    compression: Positive


class RunResult(Size):
    """How one run ended: ``result.json`` in its folder, and an entry of ``results.json``.

    ``role`` is "teacher" or "student", ``model`` the network's label, ``teacher`` the name of the run that taught it,
    ``history`` an entry for each epoch, ``files`` the weights by what they are, as paths within the run folder.
    """

    name: Text
    role: Literal["teacher", "student"]
    model: Text
    variant: Text
    seed: int | None
    teacher: NotRequired[Text | None]
    epochs: NotRequired[Count]
    seconds: NotRequired[Number | None]
    images_per_second: NotRequired[Number | None]
    history: NotRequired[list[Any]]
    files: NotRequired[dict[Text, Text]]
    accuracy: NotRequired[Accuracy]  # of a classifier
    engine: NotRequired[Text]  # that computed the steps of a student, where the process that ended the run took some
    macs_ratio: NotRequired[Positive]  # of a generator: the teacher's over its own
    # Of anything but a classifier: what the accuracy is of.
    targets: NotRequired[Literal["classification", "dense", "tokens", "causal_lm", "own"]]
    scores: NotRequired[dict[Text, Number | None]]  # of a generator, once all have been trained; of a language model


class _ClassifierResult(RunResult):
    accuracy: Required[Accuracy]  # type: ignore[misc]
    history: NotRequired[list[ClassifierEpoch]]


class _GeneratorResult(RunResult):
    macs_ratio: Required[Positive]  # type: ignore[misc]
    seconds: Required[Number]  # type: ignore[misc]
    history: Required[list[GeneratorEpoch]]  # type: ignore[misc]
    files: Required[dict[Text, Text]]  # type: ignore[misc]


class Dataset(TypedDict):
    """The settings of the dataset; ``name`` as in ``data.name``."""

    name: NotRequired[Text]


class Settings(TypedDict):
    """An experiment as it was resolved."""

    recipe: NotRequired[Text]
    data: NotRequired[Dataset]


class Results(TypedDict):
    """``results.json``: the experiment as it was resolved, where it ran, and its runs, the teacher's first."""

    experiment: NotRequired[Settings]
    environment: NotRequired[dict[str, Any]]
    left_out: NotRequired[list[Text]]  # images that cannot be decoded
    results: list[RunResult]


class ClassifierResults(Results):
    results: list[_ClassifierResult]  # type: ignore[misc]


class GeneratorResults(Results):
    experiment: Required[Settings]  # type: ignore[misc]
    environment: Required[dict[str, Any]]  # type: ignore[misc]
    results: list[_GeneratorResult]  # type: ignore[misc]
