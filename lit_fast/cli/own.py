"""Networks of one's own in ``inspect`` and ``bench``: how they are cut, and the batch that both are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from lit_fast.cli.options import override

if TYPE_CHECKING:
    from torch import Tensor

    from lit_fast.cli.subject import Subject
    from lit_fast.data import Data
    from lit_fast.sections.model import SplitModel
    from lit_fast.settings.classifier import Experiment

__all__ = ["Batch", "CutSettings", "Example", "batch_of", "cut_settings", "shapes", "split_network"]

Example = Annotated[
    str | None,
    typer.Option("--example", metavar="MODULE:FUNCTION", help="A function of yours that returns a batch of inputs."),
]
CutSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="How your networks are cut, e.g. student.cuts=[1, 2], and targets. Repeatable.",
    ),
]


class Batch(NamedTuple):
    """What both networks are given; labels None where there are none. ``data``: the dataset that it is of."""

    inputs: Any
    labels: Tensor | None
    data: Data | None = None


def cut_settings(names: Sequence[str], flags: Mapping[str, Any], settings: Sequence[str] | None) -> Experiment:
    """Settings with how a pair is cut and what its logits are of; the others are a recipe's and mean nothing here.

    Raises:
        ValueError: cuts of networks that have their own.
    """
    from lit_fast.settings.classifier import load_experiment

    pair = {"teacher.model": names[0], "student.models": [names[1]]}
    chosen = load_experiment(None, None, [override({**pair, **flags}), *(settings or ())], own_objects=True)
    given = {**chosen.given, **chosen.teacher.given, **chosen.student.given}
    if given and not any(":" in name for name in names):
        raise ValueError(f"{', '.join(given)}: built-in networks are cut at their own sections; leave it out")
    return chosen


def batch_of(example: str | None, dataset: str | None, rows: int) -> Batch | None:
    """What a function of the user's gives; None: there is none.

    Args:
        example, dataset: the functions' names.
        rows: of a batch of the dataset.

    Raises:
        ValueError: no such function; a batch without rows.
    """
    from lit_fast.data import open_data
    from lit_fast.sections.inputs import num_rows, without_labels
    from lit_fast.user_functions import made

    if example is not None:
        inputs, labels = without_labels(made(example), None)
        if not num_rows(inputs):
            raise ValueError(
                f"--example {example}: expected a batch, a tensor, or a tuple or dict of tensors [B, ...], got "
                f"{type(inputs).__name__}"
            )
        return Batch(inputs, labels)
    if dataset is not None and ":" in dataset:
        data = open_data(dataset)
        return Batch(*next(data.train_batches(0, batch_size=rows, seed=0)), data)
    return None


def split_network(
    name: str, role: Literal["teacher", "student"], subject: Subject, settings: Experiment, inputs: Any
) -> SplitModel:
    """A built-in network of the subject's sizes, or what a function of the user's returns; split.

    Raises:
        ValueError: no such function, or none that returns a network; SplitError: it cannot be cut so.
    """
    from lit_fast.models import Network
    from lit_fast.models.own import cut, own_network
    from lit_fast.sections.cutting import split
    from lit_fast.sections.model import SplitModel

    if ":" not in name:
        return split(replace(subject, network=Network.parse(name)).build())
    try:
        network = own_network(name)
    except ValueError as error:
        raise ValueError(f"--{role} {error}") from error
    config = settings.teacher if role == "teacher" else settings.student.models[0]
    cuts, alone = settings.cuts_of(config), settings.cut_config(config).given
    if not isinstance(network, SplitModel) and not cuts and not getattr(network, "sections", None):
        raise ValueError(
            f"--{role} {name}: expected a split network, got {type(network).__name__}: return lf.split(net, at=[...]), "
            "or name its stack of blocks, --blocks NAME"
        )
    return cut(network, f"--{role} {name}", cuts, inputs, alone=alone)


def shapes(inputs: Any) -> str:
    """``input_ids 4 x 16, attention_mask 4 x 16``"""
    from lit_fast.sections.inputs import tensors_of

    def size(value: Any) -> str:
        return ", ".join(" x ".join(map(str, tensor.shape)) for tensor in tensors_of(value))

    if isinstance(inputs, Mapping):
        return ", ".join(f"{name} {size(value)}" for name, value in inputs.items())
    return size(inputs)
