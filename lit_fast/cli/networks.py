"""Commands on trained networks: measure one, look at a pair, hand one on."""

from __future__ import annotations

from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lit_fast.cli.options import Blocks, DataDir, Dataset, Device, Sections, Targets, numbers
from lit_fast.cli.own import CutSettings, Example, batch_of, cut_settings, shapes, split_network
from lit_fast.cli.subject import (
    Domains,
    ImageSize,
    InChannels,
    Length,
    NumClasses,
    Sizes,
    Subject,
    Width,
    must_read,
    network_of,
)
from lit_fast.literals import TargetsKind
from lit_fast.user_functions import function, is_function

if TYPE_CHECKING:
    from lit_fast.models import Network
    from lit_fast.runs.weights import WeightInfo

__all__ = ["evaluate", "export", "inspect"]

Checkpoint = Annotated[
    Path, typer.Option("--checkpoint", metavar="FILE", help="Weights: .safetensors, or what torch.save wrote.")
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="The network, or module:function of yours; not needed for files that lit-fast wrote of built-in ones.",
    ),
]
Cardinality = Annotated[int | None, typer.Option("--cardinality", metavar="N", help="Of a ResNeXt. Default: 32.")]


class SplitName(str, Enum):
    """The three splits."""

    train = "train"
    val = "val"
    test = "test"


class Format(str, Enum):
    """What `lit_fast.runs.export` writes."""

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
    targets: Targets = None,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Images at a time.", min=1)] = 128,
    device: Device = "auto",
) -> dict[str, Any]:
    """Measure a network's accuracy on a split of a dataset."""
    import torch

    from lit_fast import models
    from lit_fast.data import names, open_data
    from lit_fast.loss.targets import resolve
    from lit_fast.runs.environment import resolve_device
    from lit_fast.runs.weights import normalization_of, read_info
    from lit_fast.training import evaluation

    if (mean is None) != (std is None):
        raise ValueError("--mean and --std belong together: give both or neither")
    _must_exist(checkpoint)
    info = read_info(checkpoint)
    network = network_of(model, cardinality, info)
    if network is not None and network.kind == "generator":
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
    if dataset is None and name not in names():
        raise ValueError(
            f"{checkpoint} was trained on {name}, data of your own: give the function that makes them, "
            "--dataset module:function, or a dataset's name"
        )
    network = _told(network, checkpoint, info)
    own, own_data = is_function(network.model), is_function(name)
    must_read(network, name)
    options: dict[str, Any] = {"data_dir": data_dir, "val_size": val_size}
    if not own_data:
        options |= {"val_seed": val_seed, "mean": means, "std": stds}
        options |= {"image_size": info.image_size, "length": info.length} if info else {}
    elif mean is not None:
        raise ValueError(f"--mean, --std: leave them out, {name} decides")
    data = open_data(name, **options)
    if info and info.num_classes and data.num_classes and info.num_classes != data.num_classes:
        raise ValueError(
            f"{checkpoint} is a network for {info.num_classes} classes ({info.dataset}), dataset {name} has "
            f"{data.num_classes}: choose the dataset it was trained on"
        )
    built = Subject(network, data.num_classes, data.shape).build()
    models.load_checkpoint(built, checkpoint)
    where = resolve_device(device)
    built.to(where)
    if not len(data.split(split.value)):
        raise ValueError(f"{name} has no {split.value} split: choose another, --split val")
    batches = data.eval_batches(split.value, batch_size=batch_size, device=where)
    if not own and not own_data and not data.is_text:  # half as fast again on a CPU
        built.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        batches = ((x.contiguous(memory_format=torch.channels_last), y) for x, y in batches)
    of = targets or "classification"
    rows = resolve(function(of) if is_function(of) else cast(TargetsKind, of), -100, False)
    scores = evaluation.evaluate(built, batches, rows)
    right = round(scores.accuracy * scores.images / 100.0)
    typer.echo(f"{network}  {checkpoint}")
    kind = f"texts of {data.shape[0]} tokens" if data.is_text else "images"
    typer.echo(f"  dataset        {name}, {split.value} split, {scores.images:,} {kind}")
    if data.mean:
        typer.echo(f"  normalisation  mean {_spaced(data.mean)}, std {_spaced(data.std)} ({source})")
    typer.echo(f"  {split.value + ' accuracy':<13}  {scores.accuracy:.2f} % ({right:,} of {scores.images:,})")
    typer.echo(f"  {split.value + ' loss':<13}  {scores.loss:.4f}")
    return {
        "network": str(network),
        "checkpoint": checkpoint,
        "dataset": name,
        "split": split.value,
        "mean": data.mean,
        "std": data.std,
        "accuracy": scores.accuracy,
        "right": right,
        "images": scores.images,
        "loss": scores.loss,
    }


def inspect(
    teacher: Annotated[str, typer.Option("--teacher", metavar="MODEL", help="The teacher's network, or yours.")],
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
    example: Example = None,
    blocks: Blocks = None,
    sections: Sections = None,
    targets: Targets = None,
    settings: CutSettings = None,
) -> dict[str, Any]:
    """Look at a teacher and a student before training: shapes, sizes, what is copied, what cannot work.

    With --dataset, the teacher's accuracy is held against chance on the validation split, and the classes and the
    image's shape are the dataset's.
    """
    import torch

    from lit_fast import models
    from lit_fast.data import open_data
    from lit_fast.pair.inspect import inspect as look
    from lit_fast.runs.export import random_input
    from lit_fast.runs.weights import normalization_of, read_info
    from lit_fast.sections.projector import make_projectors
    from lit_fast.training.classifier import copy_fitting

    info = normalization = loader = None
    if teacher_checkpoint is not None:
        _must_exist(teacher_checkpoint)
        info, normalization = read_info(teacher_checkpoint), normalization_of(teacher_checkpoint)
    sizes = Sizes(num_classes, image_size, in_channels, length, domains, width)
    subject = Subject.of(models.Network.parse(teacher), sizes, info)
    if subject.generates and dataset is not None:
        raise ValueError("--dataset: a generator has no accuracy to measure; leave it out")
    chosen = cut_settings((teacher, student), {"blocks": blocks, "sections": sections, "targets": targets}, settings)
    batch = batch_of(example, dataset, rows=2)
    if batch is not None and batch.data is not None:
        loader = batch.data.eval_batches("val", batch_size=256) if chosen.targets == "classification" else None
        subject = replace(subject, shape=batch.data.shape, num_classes=batch.data.num_classes or num_classes)
    elif dataset is not None:
        must_read(subject.network, dataset)
        size, tokens = (None, None) if info is None else (info.image_size, info.length)
        mean, std = normalization or (None, None)
        data = open_data(dataset, data_dir=data_dir, image_size=size, length=tokens, mean=mean, std=std)
        loader = data.eval_batches("val", batch_size=256)
        subject = replace(subject, shape=data.shape, num_classes=data.num_classes)
    elif data_dir is not None:
        raise ValueError("--data-dir says where a dataset lies: give its name too, --dataset NAME")
    torch.manual_seed(0)
    inputs = random_input(2, subject.shape) if batch is None else batch.inputs
    teacher_split = split_network(teacher, "teacher", subject, chosen, inputs).eval().requires_grad_(False)
    student_split = split_network(student, "student", subject, chosen, inputs)
    if teacher_checkpoint is not None:
        models.load_checkpoint(teacher_split.model, teacher_checkpoint)
    if not projector:  # as training does: stem and head start as the teacher's and are frozen in the LIT phase
        student_split.freeze(*copy_fitting(teacher_split, student_split, chosen))
    projectors = make_projectors(teacher_split, student_split, inputs) if projector else None
    report = look(teacher_split, student_split, inputs, projector=projectors, loader=loader)
    shape = " x ".join(map(str, subject.shape))
    what = "domains (a plane each)" if subject.generates else "classes"
    fed = f"{subject.fed} {shape}, {subject.num_classes} {what}" if batch is None else shapes(inputs)
    typer.echo(f"teacher {teacher}, student {student}, {fed}")
    typer.echo(str(report))
    ratios = {"compression": report.compression, "speedup": report.speedup}
    return {"teacher_network": teacher, "student_network": student, "fed": fed, **asdict(report), **ratios}


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
) -> dict[str, Any]:
    """Write a network as safetensors, ONNX or a torch.export program, and check it against PyTorch."""
    from lit_fast import models
    from lit_fast.runs import export as exporting
    from lit_fast.runs.weights import WeightInfo, normalization_of, read_info

    _must_exist(checkpoint)
    info = read_info(checkpoint)
    network = _told(network_of(model, cardinality, info), checkpoint, info)
    subject = Subject.of(network, Sizes(num_classes, image_size, in_channels, length, domains, width), info)
    built = subject.build()
    models.load_checkpoint(built, checkpoint)
    normalization = normalization_of(checkpoint)
    if info is None and normalization is not None:  # a published file
        info = WeightInfo(network.model, num_classes, in_channels, image_size, "", *normalization, network.cardinality)
    outputs = "generated" if subject.generates else "logits"
    done = exporting.export(built, subject.shape, to.value, out, info, outputs)
    typer.echo(f"{network}  {done.path}  {done.size:,} bytes")
    if to is Format.safetensors:
        typer.echo("  read back: every weight is the same, bit by bit")
    else:
        runtime = "onnxruntime" if to is Format.onnx else "the program read back"
        typer.echo(
            f"  {runtime} against PyTorch on random {subject.fed}: largest difference {done.difference:.2e} "
            f"(tolerance {done.tolerance:.2e})"
        )
    return {"network": str(network), "format": to.value, **asdict(done)}


def _must_exist(checkpoint: Path) -> None:
    from lit_fast.runs.manifest import check_beside

    if not checkpoint.is_file():
        raise FileNotFoundError(f"checkpoint {checkpoint}: there is no such file")
    check_beside(checkpoint)


def _told(network: Network | None, checkpoint: Path, info: WeightInfo | None) -> Network:
    if network is None:
        from lit_fast import models

        if info is not None:
            raise ValueError(
                f"{checkpoint} is of {info.model}, a network of your own: give the function that makes it, --model "
                + (info.model if is_function(info.model) else "module:function")
            )
        known = ", ".join(models.names())
        raise ValueError(f"{checkpoint} does not tell its network: give --model, one of {known}")
    return network


def _spaced(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
