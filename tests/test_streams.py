"""Passes side by side, and the teacher one batch ahead: the same numbers, and no tensor is touched on a stream that has
not waited for it.

The streams are `recorded_streams`, under the very code that runs on a GPU.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from recorded_graphs import RecordedGraphs
from recorded_streams import Race, RecordedStreams
from torch import Tensor

import lit_fast as lf
import lit_fast.streams
from lit_fast.data.loaders import open_loader
from lit_fast.data.loaders.resident import ResidentLoader
from lit_fast.step import capture
from lit_fast.streams import SideStreams
from lit_fast.teacher.ahead import TeacherAhead

GPU = torch.device("cuda", 0)


def made(engine: str = "eager", **options: Any) -> tuple[lf.LITStep, Tensor, Tensor]:
    torch.manual_seed(0)
    teacher, student = lf.split(lf.models.resnet32()), lf.split(lf.models.resnet20()).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    step = lf.LITStep(teacher, student, lf.LITLoss(), optimizer, engine=engine, **options)
    return step, torch.randn(4, 3, 8, 8), torch.arange(4)


def beside(step: lf.LITStep, fed: int = 2) -> lf.LITStep:
    """The same with streams, for the teacher and so many teacher-fed sections; `recorded_streams` must be in place."""
    step.passes.streams = SideStreams(GPU, 1 + fed)
    return step


def watched(
    streams: RecordedStreams,
    monkeypatch: pytest.MonkeyPatch,
    engine: str = "eager",
    *,
    shared_weights: bool = True,
    **options: Any,
) -> None:
    """A whole step on these streams, after one that has built what is built at the first batch."""
    step, images, labels = made(engine, **options)
    step.passes.weights.on = shared_weights
    step(images, labels)
    with monkeypatch.context() as patch:
        streams.replace_torchs(patch)
        beside(step, len(options.get("ir_sections", [2, 3])))
        with streams:
            step(images.clone(), labels)  # made on the caller's stream


@pytest.mark.parametrize("engine", ["eager", "auto"])
@pytest.mark.parametrize("options", [{}, {"ir_sections": [3]}, {"bn_policy": "teacher_fed"}], ids=str)
def test_no_stream_touches_what_it_has_not_waited_for(
    engine: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = RecordedStreams()
    watched(streams, monkeypatch, engine, **options)
    fed = len(options.get("ir_sections", [2, 3]))
    assert len(streams.used) == 2 + fed
    # Of the forward pass: the teacher's stream for the caller's, each section's for that, the caller's for all; of
    # backward: the caller's for the sections'. A stream that was given nothing could not be waited for in a capture.
    assert streams.waits == 1 + fed + (1 + fed) + fed


def test_every_wait_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1 + 2 + 3 + 2):
        with pytest.raises(Race):  # where gradients of both passes are added at once, this is after the last two
            watched(RecordedStreams(skip=number), monkeypatch, shared_weights=False)


@pytest.mark.parametrize("options", [{}, {"student_input": "composed"}, {"bn_policy": "teacher_fed"}], ids=str)
def test_side_by_side_trains_the_same(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (plain, images, labels), (other, _, _) = made(**options), made(**options)
    RecordedStreams().replace_torchs(monkeypatch)
    beside(other)
    for number in range(3):
        ours, right = other(images + number, labels), plain(images + number, labels)
        assert torch.equal(ours.total, right.total)
        assert torch.equal(ours.ir, right.ir)
        for (name, parameter), same in zip(plain.student.named_parameters(), other.student.parameters()):
            assert torch.equal(parameter.grad, same.grad), name
    for name, value in plain.student.model.state_dict().items():
        assert torch.equal(other.student.model.state_dict()[name], value), name


def test_a_teacher_that_was_prefetched_feeds_the_sections_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    (plain, images, labels), (other, _, _) = made("runner"), made("runner")
    right = plain(images, labels)
    RecordedStreams().replace_torchs(monkeypatch)
    other.prefetch(images)
    ours = beside(other)(images, labels)
    assert torch.equal(ours.total, right.total)
    assert torch.equal(ours.ir, right.ir)


def test_what_began_is_waited_for_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    step, images, labels = made()
    streams = RecordedStreams()
    streams.replace_torchs(monkeypatch)
    monkeypatch.setattr(beside(step).passes, "composed", lambda images: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        step.loss(images, labels)
    assert streams.waits == 1 + 2 + 3


def test_what_is_prefetched_waits_and_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen, images = lf.FrozenTeacher(lf.split(lf.models.resnet20())), torch.randn(4, 3, 8, 8)
    frozen.run(images)

    def waits(skip: int | None = None) -> int:
        streams = RecordedStreams(skip)
        with monkeypatch.context() as patch:
            streams.replace_torchs(patch)
            patch.setattr(torch.Tensor, "record_stream", lambda *_: None)
            frozen._stream = None
            with streams:
                batch = images.clone()
                irs, _ = frozen._on_own_stream(batch, frozen._prepare(batch))()
                irs[0].sum()
        return streams.waits

    assert waits() == 2
    for number in range(2):
        with pytest.raises(Race):
            waits(number)


def test_two_passes_that_write_the_same_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="side_by_side: both passes of a section write its running statistics"):
        made(side_by_side=True, bn_policy="both")


def test_on_a_cpu_the_passes_follow_each_other() -> None:
    step, images, labels = made(side_by_side=True)
    assert step.passes.streams is None
    assert step(images, labels).total.isfinite()


def test_torchs_warning_of_other_streams_is_off_in_backward_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that two passes use on two streams is no mistake here; under `python -W error` it would be one."""
    told: list[bool] = []
    monkeypatch.setattr(lit_fast.streams, "_set_warning", told.append)
    monkeypatch.setattr(lit_fast.streams, "_warns", lambda: True)
    streams = lit_fast.streams.SideStreams.__new__(lit_fast.streams.SideStreams)
    joined: list[int] = []
    monkeypatch.setattr(streams, "join", lambda first: joined.append(len(told)))
    with pytest.raises(ZeroDivisionError):
        _in_backward(streams)
    assert told == [False, True]
    assert joined == [2]


def _in_backward(streams: lit_fast.streams.SideStreams) -> None:
    with streams.backward():
        _ = 1 / 0


# -- the teacher one batch ahead -------------------------------------------------------------------------------------


def resident(rows: int = 22) -> ResidentLoader:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (rows + 4, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (rows + 4,), generator=generator)
    rest = (images[rows:], labels[rows:])
    augmentation = lf.data.Augmentation(pad=2, flip=True)
    data = lf.data.from_arrays(
        (images[:rows], labels[:rows]), val=rest, test=rest, num_classes=10, augmentation=augmentation
    )
    return open_loader(data, "resident")


def on_graphs(monkeypatch: pytest.MonkeyPatch, beta: float = 0.75, **options: Any) -> lf.LITStep:
    monkeypatch.setattr(capture, "graphs_for", lambda _device: RecordedGraphs())
    torch.manual_seed(0)
    teacher, student = lf.split(lf.models.resnet32()), lf.split(lf.models.resnet20()).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=2**-6, momentum=0.9, fused=True)
    return lf.LITStep(teacher, student, lf.LITLoss(beta=beta), optimizer, engine="runner", capture=True, **options)


def epochs(step: lf.LITStep, loader: ResidentLoader) -> list[Tensor]:
    """The losses of two epochs of 6 + 6 + 6 + 4 rows, the second begun in its middle."""
    losses = []
    for epoch, start in ((0, 0), (1, 1)):
        for rows in loader.begin(epoch, batch_size=6, seed=3, start_step=start):
            losses.append(step.train_on(loader.training, rows).total)
    assert step.captured, step.capture_reason
    return losses


def count_forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of the teacher: the rows of each that Python began."""
    began: list[int] = []
    forward = lf.FrozenTeacher._forward
    monkeypatch.setattr(
        lf.FrozenTeacher,
        "_forward",
        lambda frozen, images, *others: began.append(len(images)) or forward(frozen, images, *others),
    )
    return began


@pytest.mark.parametrize("beta", [0.75, 0.0])  # 0: without the teacher's logits
def test_the_teacher_ahead_trains_the_same(beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, ahead = on_graphs(monkeypatch, beta), on_graphs(monkeypatch, beta, teacher_ahead=True)
    right = epochs(plain, resident())
    began = count_forwards(monkeypatch)
    assert torch.equal(torch.stack(epochs(ahead, resident())), torch.stack(right))
    # Each shape: to have outputs before its capture, in three warm-ups and the capture, and for its first batch of each
    # epoch, in which nothing was ahead of it.
    assert sorted(began) == 7 * [4] + 7 * [6]
    for (name, value), same in zip(plain.student.model.state_dict().items(), ahead.student.model.state_dict().values()):
        assert torch.equal(value, same), name


def test_what_was_made_ahead_is_used_for_its_own_batch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps between on a batch of the caller's, another dataset, or at another place of the epoch."""
    steps = [on_graphs(monkeypatch, teacher_ahead=on) for on in (False, True)]
    losses: list[list[Tensor]] = [[], []]
    for step, found in zip(steps, losses):
        first, second = resident(), resident(18)
        images, labels = torch.ones(6, 3, 8, 8), torch.arange(6)
        for loader in (first, second, first):
            loader.begin(0, batch_size=6, seed=0)
            found += [step.train_on(loader.training, 6).total for _ in range(2)]
            loader.training.position.zero_()
            found += [step.train_on(loader.training, 6).total]
        first.begin(0, batch_size=6, seed=0)
        found += [step.train_on(first.training, 6).total]
        first.training.position.add_(6)
        found += [step.train_on(first.training, 4).total]
        found += [step(images, labels).total]
    assert torch.equal(*map(torch.stack, losses))


def test_the_teacher_ahead_waits_and_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    step, _, _ = made("runner")
    step.passes.weights.on = False
    loader = resident()
    loader.begin(0, batch_size=6, seed=3)
    images, labels = loader.training.empty(6)
    step(torch.zeros_like(images), torch.arange(6))  # what is built at the first batch is there
    frozen = step.model.make_frozen()
    assert frozen is not None

    def waits(skip: int | None = None) -> int:
        """Of two steps whose teacher is one batch ahead."""
        streams = RecordedStreams(skip)
        with monkeypatch.context() as patch:
            streams.replace_torchs(patch)
            beside(step)
            ahead = TeacherAhead(frozen, loader.training, loader.training.empty(6), SideStreams(GPU, 1))
            loader.training.position.zero_()
            ahead.prepare()
            with streams:
                for _ in range(2):
                    loader.training.write(images, labels)
                    loader.training.position.add_(6)
                    with ahead.beside(images):
                        step(images, labels)
        return streams.waits

    each = 1 + (1 + 2 + 3 + 2) + 1  # the others are those of the step
    assert waits() == 2 * each
    unneeded = []
    for number in range(each, 2 * each):
        with contextlib.suppress(Race):
            waits(number)
            unneeded.append(number - each)
    assert unneeded == [1 + 3]  # the end of the step's own teacher, which has nothing to do here
