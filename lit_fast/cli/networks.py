"""Commands on trained networks: measure one, look at a pair, hand one on."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lit_fast.cli.options import DataDir, Dataset, Device, network, numbers

if TYPE_CHECKING:
    from torch import nn

    from lit_fast.training.weights import WeightInfo

__all__ = ["evaluate", "export", "fresh_network", "input_shape", "inspect"]

Checkpoint = Annotated[
    Path, typer.Option("--checkpoint", metavar="FILE", help="Weights: .safetensors, or what torch.save wrote.")
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="The network; not needed for files that lit-fast wrote."),
]
Cardinality = Annotated[int | None, typer.Option("--cardinality", metavar="N", help="Of a ResNeXt. Default: 32.")]

# What a weight file of lit-fast tells of itself goes before these.
NumClasses = Annotated[
    int, typer.Option("--num-classes", metavar="N", min=1, help="Width of the logits, if the weights do not tell.")
]
ImageSize = Annotated[
    int, typer.Option("--image-size", metavar="N", min=4, help="Pixels squared, if the weights do not tell.")
]
InChannels = Annotated[
    int, typer.Option("--in-channels", metavar="N", min=1, help="Of an image, if the weights do not tell.")
]
Length = Annotated[
    int, typer.Option("--length", metavar="N", min=1, help="Tokens of a text, if the weights do not tell.")
]

# Of a StarGAN generator, if the weights do not tell.
Domains = Annotated[int, typer.Option("--domains", metavar="N", min=1, help="Attributes that a generator takes.")]
Width = Annotated[int, typer.Option("--width", metavar="N", min=1, help="First channels of a generator.")]


class SplitName(str, Enum):
    """The three splits."""

    train = "train"
    val = "val"
    test = "test"


class Format(str, Enum):
    """What `lit_fast.training.export` writes."""

    safetensors = "safetensors"
    onnx = "onnx"
    torch_export = "torch-export"


def evaluate(
    checkpoint: Checkpoint,
    model: Model = None,
    cardinality: Cardinality = None,
    dataset: Dataset = None,
    data_dir: DataDir = None,
    split: Annotated[SplitName, typer.Option("--split", help="Which images.")] = SplitName.test,
    val_size: Annotated[
        int | None, typer.Option("--val-size", metavar="N", help="Images in val, taken from the training set.")
    ] = None,
    val_seed: Annotated[int, typer.Option("--val-seed", metavar="N", help="Fixes which images are in val.")] = 0,
    mean: Annotated[
        str | None, typer.Option("--mean", metavar="M1,M2,M3", help="Normalisation, per channel, of values in 0..1.")
    ] = None,
    std: Annotated[str | None, typer.Option("--std", metavar="S1,S2,S3", help="Its standard deviations.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Images at a time.", min=1)] = 128,
    device: Device = "auto",
) -> None:
    """Measure a network's accuracy on a split of a dataset."""
    import torch

    from lit_fast import models
    from lit_fast.data import open_data
    from lit_fast.training import evaluation
    from lit_fast.training.environment import resolve_device
    from lit_fast.training.weights import normalization_of, read_info

    if (mean is None) != (std is None):
        raise ValueError("--mean and --std belong together: give both or neither")
    _must_exist(checkpoint)
    info = read_info(checkpoint)
    if (model or (info.model if info else None)) in models.generator_names():
        raise ValueError(f"{checkpoint} is a generator's, which has no accuracy; `lit-fast distill` scores its images")
    means, stds, source = numbers(mean, "--mean"), numbers(std, "--std"), "as given"
    if means is None:
        known = normalization_of(checkpoint)
        if known is not None:
            (means, stds), source = known, "the checkpoint's own" if info else "of the published CIFAR ResNets"
        else:
            source = "the dataset's own; the file does not tell its network's: --mean and --std set others"
    name = dataset or (info.dataset if info else None)
    if not name:
        raise ValueError(f"{checkpoint} does not tell its dataset: give --dataset (and --data-dir)")
    own = network(model)[0] if model else (info.model if info else None)
    if own is not None:
        _must_read(own, name)
    data = open_data(
        name,
        data_dir=data_dir,
        val_size=val_size,
        val_seed=val_seed,
        image_size=info.image_size if info else None,
        length=info.length if info else None,
        mean=means,
        std=stds,
    )
    if info and info.num_classes != data.num_classes:
        raise ValueError(
            f"{checkpoint} is a network for {info.num_classes} classes ({info.dataset}), dataset {name} has "
            f"{data.num_classes}: choose the dataset it was trained on"
        )
    built, label = _build(checkpoint, model, cardinality, info, data.num_classes, data.shape)
    models.load_checkpoint(built, checkpoint)
    where = resolve_device(device)
    built.to(where).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # half as fast again on a CPU
    layout = torch.contiguous_format if data.is_text else torch.channels_last
    batches = data.eval_batches(split.value, batch_size=batch_size, device=where)
    scores = evaluation.evaluate(built, ((x.contiguous(memory_format=layout), y) for x, y in batches))
    right = round(scores.accuracy * scores.images / 100.0)
    typer.echo(f"{label}  {checkpoint}")
    kind = f"texts of {data.shape[0]} tokens" if data.is_text else "images"
    typer.echo(f"  dataset        {name}, {split.value} split, {scores.images:,} {kind}")
    if not data.is_text:
        typer.echo(f"  normalisation  mean {_spaced(data.mean)}, std {_spaced(data.std)} ({source})")
    typer.echo(f"  {split.value + ' accuracy':<13}  {scores.accuracy:.2f} % ({right:,} of {scores.images:,})")
    typer.echo(f"  {split.value + ' loss':<13}  {scores.loss:.4f}")


def inspect(
    teacher: Annotated[str, typer.Option("--teacher", metavar="MODEL", help="The teacher's network.")],
    student: Annotated[
        str, typer.Option("--student", metavar="MODEL", help="The student's; resnext20-c16: of cardinality 16.")
    ],
    teacher_checkpoint: Annotated[
        Path | None, typer.Option("--teacher-checkpoint", metavar="FILE", help="The teacher's weights.")
    ] = None,
    num_classes: NumClasses = 10,
    image_size: ImageSize = 32,
    in_channels: InChannels = 3,
    length: Length = 1014,
    projector: Annotated[bool, typer.Option("--projector", help="1x1 convolutions where widths differ.")] = False,
    dataset: Dataset = None,
    data_dir: DataDir = None,
    domains: Domains = 5,
    width: Width = 64,
) -> None:
    """Look at a teacher and a student before training: shapes, sizes, what is copied, what cannot work.

    With --dataset, the teacher's accuracy is held against chance on the validation split, and the classes and the
    image's shape are the dataset's.
    """
    import torch

    from lit_fast import models
    from lit_fast.data import open_data
    from lit_fast.preflight import inspect as look
    from lit_fast.projector import make_projectors
    from lit_fast.sections import copy_parts, split
    from lit_fast.training.export import random_input
    from lit_fast.training.weights import normalization_of, read_info

    info = known = loader = None
    if teacher_checkpoint is not None:
        _must_exist(teacher_checkpoint)
        info, known = read_info(teacher_checkpoint), normalization_of(teacher_checkpoint)
    generates = teacher in models.generator_names()
    if generates and dataset is not None:
        raise ValueError("--dataset: a generator has no accuracy to measure; leave it out")
    shape = input_shape(network(teacher)[0], in_channels, image_size, length)
    if info is not None:
        num_classes, shape, width = info.num_classes, info.shape, info.width or width
    elif generates:
        num_classes, shape = domains, (3 + domains, image_size, image_size)
    if dataset is not None:
        _must_read(network(teacher)[0], dataset)
        size, own_length = (None, None) if info is None else (info.image_size, info.length)
        means, stds = known or (None, None)
        data = open_data(dataset, data_dir=data_dir, image_size=size, length=own_length, mean=means, std=stds)
        loader = data.eval_batches("val", batch_size=256)
        shape, num_classes = data.shape, data.num_classes
    elif data_dir is not None:
        raise ValueError("--data-dir says where a dataset lies: give its name too, --dataset NAME")
    torch.manual_seed(0)
    pair = [
        fresh_network(name, cardinality, num_classes, shape, width)
        for name, cardinality in (network(teacher), network(student))
    ]
    if teacher_checkpoint is not None:
        models.load_checkpoint(pair[0], teacher_checkpoint)
    teacher_split, student_split = split(pair[0]), split(pair[1])
    teacher_split.eval().requires_grad_(False)
    example = random_input(2, shape)
    if not projector:  # as training does: stem and head start as the teacher's and are frozen in the LIT phase
        copy_parts(teacher_split, student_split)
        student_split.freeze("stem", "head")
    projectors = make_projectors(teacher_split, student_split, example) if projector else None
    found = look(teacher_split, student_split, example, projector=projectors, loader=loader)
    kind = "images" if len(shape) > 1 else "tokens"
    what = "domains (a plane each)" if generates else "classes"
    typer.echo(f"teacher {teacher}, student {student}, {kind} {' x '.join(map(str, shape))}, {num_classes} {what}")
    typer.echo(str(found))


def export(
    checkpoint: Checkpoint,
    to: Annotated[Format, typer.Option("--to", help="The format.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write it.")],
    model: Model = None,
    cardinality: Cardinality = None,
    num_classes: NumClasses = 10,
    image_size: ImageSize = 32,
    in_channels: InChannels = 3,
    length: Length = 1014,
    domains: Domains = 5,
    width: Width = 64,
) -> None:
    """Write a network as safetensors, ONNX or a torch.export program, and check it against PyTorch."""
    from lit_fast import models
    from lit_fast.training import export as exporting
    from lit_fast.training.weights import WeightInfo, normalization_of, read_info

    _must_exist(checkpoint)
    info = read_info(checkpoint)
    generates = (model or (info.model if info else None)) in models.generator_names()
    if info is not None:
        num_classes, shape, width = info.num_classes, info.shape, info.width or width
    elif generates:
        num_classes, shape = domains, (3 + domains, image_size, image_size)
    else:
        shape = input_shape(network(model or "")[0], in_channels, image_size, length)
    built, label = _build(checkpoint, model, cardinality, info, num_classes, shape, width)
    models.load_checkpoint(built, checkpoint)
    known = normalization_of(checkpoint)
    if info is None and known is not None:  # a published file
        name, cardinality = network(label)
        info = WeightInfo(name, num_classes, in_channels, image_size, "", *known, cardinality)
    done = exporting.export(built, shape, to.value, out, info, "generated" if generates else "logits")
    typer.echo(f"{label}  {done.path}  {done.size:,} bytes")
    if to is Format.safetensors:
        typer.echo("  read back: every weight is the same, bit by bit")
    else:
        kind = "images" if len(shape) > 1 else "tokens"
        runtime = "onnxruntime" if to is Format.onnx else "the program read back"
        typer.echo(
            f"  {runtime} against PyTorch on random {kind}: largest difference {done.difference:.2e} "
            f"(tolerance {done.tolerance:.2e})"
        )


def _must_exist(checkpoint: Path) -> None:
    if not checkpoint.is_file():
        raise FileNotFoundError(f"checkpoint {checkpoint}: there is no such file")


def _build(
    checkpoint: Path,
    model: str | None,
    cardinality: int | None,
    info: WeightInfo | None,
    num_classes: int,
    shape: tuple[int, ...],
    width: int = 64,
) -> tuple[nn.Module, str]:
    """The network of a checkpoint, with fresh weights, and what to call it."""
    from lit_fast import models

    name, named_cardinality = network(model) if model else (info.model if info else None, None)
    cardinality = cardinality or named_cardinality
    if name is None:
        raise ValueError(f"{checkpoint} does not tell its network: give --model, one of {', '.join(models.names())}")
    if cardinality is None and info is not None and info.model == name:
        cardinality = info.cardinality
    built = fresh_network(name, cardinality, num_classes, shape, width)
    return built, name if cardinality is None else f"{name}-c{cardinality}"


def fresh_network(
    name: str, cardinality: int | None, num_classes: int, shape: tuple[int, ...], width: int = 64
) -> nn.Module:
    """A classifier, or a generator of ``num_classes`` domains."""
    from lit_fast import models

    if name in models.generator_names():
        return models.create_generator(name, domains=num_classes, width=width)
    return models.create(
        name, num_classes=num_classes, in_channels=image_channels(name, shape), cardinality=cardinality
    )


def input_shape(name: str, in_channels: int, image_size: int, length: int) -> tuple[int, ...]:
    """What a network of that name is fed: (C, H, W) of an image or (L,) of a text."""
    from lit_fast import models

    return (length,) if models.reads_text(name) else (in_channels, image_size, image_size)


def image_channels(name: str, shape: tuple[int, ...]) -> int | None:
    """Channels of the images; None for a network of texts.

    Raises:
        ValueError: the network takes one, the data are the other.
    """
    _must_be(name, len(shape) == 1, "the data are")
    return None if len(shape) == 1 else shape[0]


def _must_read(name: str, dataset: str) -> None:
    """Before the dataset is opened with what the network's weights tell: that the network reads its kind."""
    from lit_fast import data

    if dataset in data.names():
        _must_be(name, data.has_texts(dataset), f"dataset {dataset} has")


def _must_be(name: str, texts: bool, data: str) -> None:
    from lit_fast import models

    if models.reads_text(name) != texts:
        takes, given = ("images", "texts") if texts else ("texts", "images")
        raise ValueError(f"{name} takes {takes}, {data} {given}: choose another network or dataset")


def _spaced(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
