"""The type of a study's results file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator
from typing_extensions import NotRequired, TypedDict

from lit_fast.runs.schema import Count, Number, Percent, Text

__all__ = ["GanStudyResults", "StudyResults"]


class _Budget(TypedDict):
    name: Text
    about: Text
    set: dict[Text, Any]


class _Environment(TypedDict):
    device: Text
    torch: Text


class _Tested(TypedDict):
    test_last: Percent
    test_best: Percent


class _TeachersAccuracy(TypedDict):
    test_last: Percent


class _Teacher(TypedDict):
    network: Text
    accuracy: _TeachersAccuracy


class _Entry(TypedDict):
    group: Text
    arm: Text
    network: Text
    variant: Text
    seed: NotRequired[int]
    status: Text
    at: NotRequired[Number | None]
    paper_deviation: NotRequired[Number | None]
    sparsity: NotRequired[Number | None]
    parameters: NotRequired[Count]
    nonzero_parameters: NotRequired[Count]


class _Run(_Entry):
    paper: Number | None
    accuracy: NotRequired[_Tested]
    teacher: NotRequired[_Teacher]


_Scores = dict[Text, Number | None]


class _GanTeacher(TypedDict):
    network: Text
    scores: _Scores


class _GanRun(_Entry):
    paper: _Scores | None
    scores: NotRequired[_Scores]
    test_images: NotRequired[Count]
    teacher: NotRequired[_GanTeacher]


def _complete(*keys: str) -> AfterValidator:
    def check(run: dict[str, Any]) -> dict[str, Any]:
        missing = [key for key in keys if run["status"] == "done" and key not in run]
        if missing:
            raise ValueError(f"a run that is done has {', '.join(missing)}")
        return run

    return AfterValidator(check)


class _Study(TypedDict):
    study: Text
    title: Text
    source: Text
    axis: Text | None
    budget: _Budget
    dataset: list[Text]
    environment: _Environment


class StudyResults(_Study):
    """Of classifiers."""

    runs: list[Annotated[_Run, _complete("parameters", "accuracy")]]


class GanStudyResults(_Study):
    """Of generators."""

    paper_teachers: dict[Text, _Scores]
    unlike_paper: list[Text]
    runs: list[Annotated[_GanRun, _complete("scores")]]
