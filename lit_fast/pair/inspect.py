"""The pre-flight check of a teacher-student pair: one dry run that fails by name, before any training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lit_fast.errors import PairError
from lit_fast.loss.targets import TargetsOf, logits_of
from lit_fast.pair.overwrites import Overwrites
from lit_fast.pair.report import Report, make_report
from lit_fast.sections.dryrun import Walk, batch_shape, describe, first_line, untouched, walk
from lit_fast.sections.inputs import Inputs, call, first_tensor, num_rows, replaced, tensors_of, without_labels
from lit_fast.sections.model import SplitModel
from lit_fast.sections.projector import Projectors, sections_differ
from lit_fast.sections.tracing import set_mode

__all__ = ["Report", "chance_limit", "check_pair", "inspect", "too_few"]

# Images of the loader that the check for untrained weights looks at: enough to tell 12 % from a chance of 10 %.
CHANCE_IMAGES = 1000


def inspect(
    teacher: SplitModel,
    student: SplitModel,
    example: Inputs,
    *,
    projector: Projectors | None = None,
    loader: Iterable[tuple[Inputs, Tensor]] | None = None,
    targets: TargetsOf | None = None,
) -> Report:
    """Run a pair once, as a training step would, and report on it or say all that is wrong with it.

    Nothing is changed: the run is without gradients, and models and random state are then what they were, also where
    it raises.

    Args:
        teacher, student: split models.
        example: a batch of both: a tensor [B, ...], a tuple of arguments or a dict; one image is enough.
        projector: the maps between unequal widths, from `make_projectors`.
        loader: batches of (images [B, ...], labels [B] int64), or dicts with labels, to check that the teacher is
            better than chance; up to 1,000 images are used.
        targets: the step's, where it is a function: it makes logits of the outputs of both. None: these are
            found as the named ones find them.

    Returns:
        The report; ``print`` it for a table by part.

    Raises:
        PairError: with ALL problems found: unequal numbers of sections, shapes or dtypes that differ, a part that fails
            or gives no tensor, a teacher in train mode or requiring gradients, a module that overwrites an IR or the
            input in place, parts that disagree with the model's own forward, a teacher at chance.

    Example:
        >>> import lit_fast as lf
        >>> teacher = lf.split(lf.models.resnet56().eval().requires_grad_(False))
        >>> student = lf.split(lf.models.resnet20())
        >>> f"{lf.inspect(teacher, student, torch.zeros(1, 3, 32, 32)).compression:.2f}"
        '3.16'
    """
    with _dry_run(teacher, student, example, projector, loader, targets) as (teacher_walk, student_walk):
        return make_report(teacher, student, teacher_walk, student_walk, projector)


def check_pair(
    teacher: SplitModel, student: SplitModel, example: Inputs, *, projector: Projectors | None = None
) -> None:
    """What `inspect` checks, without its report, which takes most of the time."""
    with _dry_run(teacher, student, example, projector, None):
        pass


@contextmanager
def _dry_run(
    teacher: SplitModel,
    student: SplitModel,
    example: Inputs,
    projector: Projectors | None,
    loader: Iterable[tuple[Inputs, Tensor]] | None,
    targets: TargetsOf | None = None,
) -> Iterator[tuple[Walk, Walk]]:
    """The walks through a pair in which nothing is wrong; the pair is then what it was."""
    for role, model in (("teacher", teacher), ("student", student)):
        if not isinstance(model, SplitModel):
            raise PairError(
                [f"{role}: expected a split model, got {type(model).__name__}; use split({role}, at=[...])"]
            )
    first = first_tensor(example)
    if first is None or not num_rows(example):
        got = type(example).__name__ if first is None else f"shape {tuple(first.shape)}"
        raise PairError([f"example: expected a batch of inputs, [B, ...] with B > 0, got {got}"])
    problems = _teacher_state(teacher)
    hopeless = _devices(teacher, student, first.device)
    if teacher.num_sections != student.num_sections:
        hopeless.append(sections_differ(teacher, student))
    if hopeless:  # nothing that can be run and compared
        raise PairError(problems + hopeless)

    with torch.inference_mode(False), torch.no_grad(), untouched(teacher, student, *([projector] if projector else [])):
        x, labels = (
            replaced(part, lambda value: _twice_if_one(value, num_rows(example)))
            for part in without_labels(example, None)
        )

        def logits(output: Any) -> Tensor:
            return logits_of(output) if targets is None else targets(output, x, labels)[0]

        teacher.eval()
        student.train()
        overwrites = Overwrites({"teacher": teacher, "student": student})
        for tensor in tensors_of(x):
            overwrites.watch(tensor, "the images, which teacher and student share")
        with overwrites:
            teacher_walk, student_walk = (
                walk(model, role, x, overwrites.after(role), logits)
                for role, model in (("teacher", teacher), ("student", student))
            )
            problems += teacher_walk.problems + student_walk.problems
            problems += _pair(teacher_walk, student_walk, student, projector, overwrites)
        problems += overwrites.problems
        if not overwrites.problems:
            for role, model, w in (("teacher", teacher, teacher_walk), ("student", student, student_walk)):
                problems += _own_forward(model, role, x, w, logits)
            for role, model, w in (("teacher", teacher, teacher_walk), ("student", student, student_walk)):
                problems += _replayed(model, role, x, w)
        if loader is not None and not teacher_walk.problems:
            problems += _chance(teacher, loader, first.device, targets)
        try:
            if problems:
                raise PairError(problems)
            yield teacher_walk, student_walk
        finally:
            teacher.release()
            student.release()


def _twice_if_one(value: Any, rows: int) -> Any:
    """A copy of its own; of one image, two: BatchNorm in train mode refuses a single value per channel."""
    if not isinstance(value, Tensor):
        return value
    copy = value.detach().clone()
    return torch.cat((copy, copy)) if rows == 1 and copy.dim() and len(copy) == 1 else copy


def _teacher_state(teacher: SplitModel) -> list[str]:
    problems = []
    training = [name or "the model" for name, module in teacher.model.named_modules() if module.training]
    if training:
        problems.append(
            f"teacher: {len(training)} modules are in train mode ({_some(training)}), its IRs would change from batch "
            "to batch; call teacher.eval()"
        )
    requiring = [name for name, parameter in teacher.model.named_parameters() if parameter.requires_grad]
    if requiring:
        problems.append(
            f"teacher: {len(requiring)} parameters require gradients ({_some(requiring)}), expected none; call "
            "teacher.requires_grad_(False)"
        )
    return problems


def _devices(teacher: SplitModel, student: SplitModel, device: torch.device) -> list[str]:
    problems = []
    for role, model in (("teacher", teacher), ("student", student)):
        elsewhere = {str(p.device) for p in (*model.parameters(), *model.buffers()) if p.device != device}
        if elsewhere:
            problems.append(
                f"{role}: it is on {', '.join(sorted(elsewhere))}, the example on {device}; move them to one device"
            )
    return problems


def _pair(
    teacher: Walk, student: Walk, model: SplitModel, projector: Projectors | None, overwrites: Overwrites
) -> list[str]:
    """The teacher-fed pass, and the comparison of IRs and logits."""
    problems = []
    k = model.num_sections
    teacher_irs, student_irs = teacher.outputs[1 : k + 1], student.outputs[1 : k + 1]
    for i in range(min(len(teacher_irs), len(student_irs))):
        target, out = teacher_irs[i], student_irs[i]
        mismatched = _mismatch(f"section {i + 1}", target, out, projector, i)
        if mismatched:
            problems.append(mismatched)
        elif i > 0:
            problems += _fed(model, i, teacher_irs[i - 1], student_irs[i - 1], target, projector, overwrites)
    if len(teacher.outputs) == len(student.outputs) == k + 2:
        target, out = teacher.outputs[-1], student.outputs[-1]
        if target.shape != out.shape:
            problems.append(
                f"logits: student gives {batch_shape(out)}, teacher {batch_shape(target)}; build both for the same "
                "classes (num_classes=...)"
            )
    return problems


def _mismatch(where: str, target: Tensor, out: Tensor, projector: Projectors | None, i: int) -> str | None:
    what = f"{where}: student gives {describe(out)}, teacher {describe(target)}"
    if projector is not None:
        try:
            out = projector.compare(i, out)
        except Exception as error:  # a projector made for another pair
            return f"{what}; the projector does not take it ({first_line(error)}): make_projectors for this pair"
    if out.shape == target.shape:
        if out.dtype != target.dtype:
            return f"{what}; convert one to the other's dtype, or run both under autocast"
        return None
    if projector is not None:
        return f"{what}; the projector makes it {batch_shape(out)}: make_projectors for this pair"
    if out.dim() != target.dim():
        return f"{what}; the ranks differ: cut both models at corresponding places"
    if out.shape[0] != target.shape[0]:
        return f"{what}: {out.shape[0]} rows for {target.shape[0]}; a cut must keep the batch as dimension 0"
    width = 1 if out.dim() == 4 else out.dim() - 1
    others = [dim for dim in range(1, out.dim()) if dim != width and out.shape[dim] != target.shape[dim]]
    if others:
        return f"{what}; the sizes differ: cut both models after the same strides and poolings"
    return (
        f"{what}; choose students of the teacher's width or pass projector=make_projectors(teacher, student, example) "
        "(in runs student.projector=true)"
    )


def _fed(
    model: SplitModel,
    i: int,
    teacher_ir: Tensor,
    student_ir: Tensor,
    target: Tensor,
    projector: Projectors | None,
    overwrites: Overwrites,
) -> list[str]:
    where = f"section {i + 1} fed with the teacher's IR {i}"
    try:
        fed = teacher_ir if projector is None else projector.feed(i - 1, teacher_ir)
        out = model.sections[i](fed)
        overwrites.check(f"the student's section{i + 1}")
        compared = out if projector is None else projector.compare(i, out)
    except Exception as error:  # whatever the user's modules raise
        return [
            f"{where}: it takes {describe(student_ir)}, the teacher gives {describe(teacher_ir)}, and it fails "
            f"({first_line(error)}); give both models the same IR there"
        ]
    if compared.shape != target.shape:
        return [f"{where}: it gives {batch_shape(compared)}, the teacher {batch_shape(target)}; cut at equal sizes"]
    return []


def _own_forward(model: SplitModel, role: str, x: Inputs, w: Walk, logits: Callable[[Any], Tensor]) -> list[str]:
    """The parts in sequence must do what the model's forward does, also with dropout: same random state for both."""
    if w.problems:
        return []
    with untouched(model):
        own = logits(call(model, x))
    with untouched(model):
        through_parts = logits(model.run(x)[1])
    if torch.allclose(own, through_parts, rtol=1e-3, atol=1e-5, equal_nan=True):
        return []
    return [
        f"{role}: its parts in sequence do not give what its own forward gives; a value was fixed when the model was "
        "split (a Python number or flag that changed since), or forward does something a graph cannot hold: move it "
        "into a submodule without a cut inside, and split again"
    ]


def _replayed(model: SplitModel, role: str, x: Inputs, w: Walk) -> list[str]:
    """The sections of a recorded model, called again with what they were given, give what they gave."""
    if w.problems or model.how != "recorded":
        return []
    with untouched(model), set_mode(model, False):
        irs, _ = model.run(x)
        given = [model.entered, *irs[:-1]]
        for i, (hidden, ir) in enumerate(zip(given, irs), 1):
            again = model.sections[i - 1](hidden)
            if not torch.allclose(again, ir, rtol=1e-3, atol=1e-5, equal_nan=True):
                return [
                    f"{role}: section {i}, called again with what it was given, gives something else: its modules keep "
                    "state from call to call (a cache of keys and values, a counter); switch that off for training"
                ]
    return []


def _chance(
    teacher: SplitModel,
    loader: Iterable[tuple[Inputs, Tensor]],
    device: torch.device,
    targets: TargetsOf | None,
) -> list[str]:
    """Is the teacher's accuracy above 1 / classes by three standard errors of a guesser's accuracy?"""
    correct = images = classes = 0
    for given in loader:
        batch, labels = without_labels(given, None) if isinstance(given, Mapping) else given
        if labels is None:
            return ["loader: its batches have no labels; pass (inputs, labels), or dicts with labels among them"]
        output = call(teacher, replaced(batch, lambda value: _on(value, device)))
        logits = logits_of(output) if targets is None else targets(output, batch, labels)[0]
        if logits.dim() != 2 or logits.shape[0] != labels.shape[0]:
            return [
                f"loader: logits are {batch_shape(logits)} for labels {tuple(labels.shape)}; expected (B, classes), "
                "(B,)"
            ]
        classes = logits.shape[1]
        correct += int((logits.argmax(1).cpu() == labels.cpu()).sum())
        images += len(labels)
        if images >= CHANCE_IMAGES:
            break
    if images == 0:
        return ["loader: it gave no images; pass a list of batches or a fresh loader"]
    limit = chance_limit(classes, images)
    if too_few(classes, images):
        return [f"loader: {images} images are too few to tell {classes} classes from chance; pass some hundred"]
    accuracy = correct / images
    if accuracy > limit:
        return []
    chance = 1 / classes
    return [
        f"teacher: accuracy {accuracy:.2%} on {images} images, expected above {limit:.2%} (chance, 1/{classes} = "
        f"{chance:.2%}, and 3 standard errors of {(limit - chance) / 3:.2%}); its weights look untrained: load a "
        "checkpoint"
    ]


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def chance_limit(classes: int, images: int) -> float:
    """The share of ``images`` that a guesser names right at most, but for one time in a thousand: 3 standard errors.

    Of few images no more than half of the way from chance to all right: a good teacher may have some of them wrong.
    """
    return min(_by_luck(classes, images), (1 + 1 / classes) / 2)


def too_few(classes: int, images: int) -> bool:
    """Whether a guesser may name all of ``images`` right, so that nothing can be told."""
    return _by_luck(classes, images) >= 1


def _by_luck(classes: int, images: int) -> float:
    chance = 1 / classes
    return chance + 3 * math.sqrt(chance * (1 - chance) / images)


def _some(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
