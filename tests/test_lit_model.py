"""The module that frameworks train, and what the step adds to it: accumulation, clipping, schedules, refusals."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from everyday import exhaustive
from processes import torchrun
from recorded_graphs import RecordedGraphs
from safetensors.torch import save_file, save_model
from test_capture import adamw, assert_same, sgd, state
from test_capture import batches as image_batches
from test_recorded import text_pair
from text_networks import text
from tiny_networks import CLASSES, Net, split
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lit_fast as lf
from lit_fast.extension import EXTENSION
from lit_fast.step import capture
from lit_fast.step.parallel import ALONE

WORKER = Path(__file__).with_name("wrapped_worker.py")


def pair(width: int = 8) -> tuple[lf.SplitModel, lf.SplitModel]:
    torch.manual_seed(0)
    return split(Net()), split(Net(width)).train()


def criterion() -> lf.LITLoss:
    return lf.LITLoss(alpha=0.5, beta=0.5, tau=2.0)


def batch(rows: int = 6, seed: int = 1) -> tuple[Tensor, Tensor]:
    return next(image_batches(1, (rows,)))


def step_of(optimizer: Any = sgd, dtype: torch.dtype = torch.float32, **options: Any) -> lf.LITStep:
    teacher, student = (model.to(dtype) for model in pair())
    return lf.LITStep(teacher, student, criterion(), optimizer(list(student.parameters())), **options)


# -- the module -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["eager", "auto"])
def test_it_gives_the_loss_of_the_step_its_parts_and_the_students_logits(engine: str) -> None:
    images, labels = batch()
    model = lf.LITModel(*pair(), criterion(), engine=engine)
    loss, parts, logits = model(images, labels)
    right = step_of(engine=engine)
    assert torch.equal(loss, right.loss(images, labels))
    assert all(map(torch.equal, parts, right.criterion.parts))
    torch.testing.assert_close(logits, pair()[1].model(images))


def test_it_holds_the_students_and_the_projectors_parameters_alone() -> None:
    teacher, student = pair(6)
    projector = lf.make_projectors(teacher, student, torch.zeros(2, 3, 8, 8))
    weighted = lf.LITLoss(class_weight=torch.ones(CLASSES))
    model = lf.LITModel(teacher, student, weighted, projector=projector)
    ours = {id(p) for p in (*student.parameters(), *projector.parameters())}
    assert {id(p) for p in model.parameters()} == ours
    assert set(model.state_dict()) == {
        *(f"student.model.{key}" for key in student.model.state_dict()),
        *(f"projector.{key}" for key in projector.state_dict()),
    }
    assert not any(p.requires_grad for p in teacher.parameters())


def test_modes_are_the_students() -> None:
    teacher, student = pair()
    student.freeze("stem")
    model = lf.LITModel(teacher, student, criterion())
    assert model.training
    model.eval()
    assert not student.training
    model.train()
    assert student.training
    assert not teacher.training
    assert not student.model.conv1.training


@pytest.mark.parametrize("engine", ["eager", "auto"])
def test_the_teacher_and_class_weights_move_along(engine: str) -> None:
    images, labels = batch()
    weighted = lf.LITLoss(class_weight=torch.arange(1.0, CLASSES + 1))
    model = lf.LITModel(*pair(), weighted, engine=engine)
    model(images, labels)  # with programs for the weights as they were
    model.double()
    assert {t.dtype for t in (*model.teacher.parameters(), weighted.class_weight)} == {torch.float64}
    loss = model(images.double(), labels).loss
    right = lf.LITModel(*(m.double() for m in pair()), weighted, engine="eager")(images.double(), labels).loss
    torch.testing.assert_close(loss, right, rtol=1e-6, atol=1e-9)  # BatchNorm's statistics differ by one step
    assert loss.dtype == torch.float64


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_train_alone(duplicate: Any) -> None:
    images, labels = batch()
    model = lf.LITModel(*pair(), criterion())
    model(images, labels)
    twin = duplicate(model)
    with torch.no_grad():
        twin.student.model.linear.weight.mul_(2.0)
    assert twin(images, labels).loss != model(images, labels).loss
    assert twin.teacher is not model.teacher
    before = model(images, labels).loss
    with torch.no_grad():
        twin.teacher.model.linear.weight.mul_(2.0)
    assert torch.equal(model(images, labels).loss, before)


def test_a_batch_may_come_as_keywords() -> None:
    inputs, labels = text()
    results = []
    for call in (
        lambda model: model(inputs, labels),
        lambda model: model({**inputs, "labels": labels}),
        lambda model: model(**inputs, labels=labels),
    ):
        results.append(call(lf.LITModel(*text_pair(), criterion())).loss)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    with pytest.raises(TypeError, match=r"a batch or keyword arguments, got both \(attention_mask\)"):
        lf.LITModel(*text_pair(), criterion())(inputs, attention_mask=inputs["attention_mask"])


def test_autocast_of_the_caller_is_the_students_precision() -> None:
    images, labels = batch()
    own = lf.LITModel(*pair(), criterion(), engine="eager", precision="bf16")(images, labels).loss
    with torch.autocast("cpu", torch.bfloat16):
        callers = lf.LITModel(*pair(), criterion(), engine="eager")(images, labels).loss
    assert torch.equal(own, callers)
    assert not torch.equal(own, lf.LITModel(*pair(), criterion(), engine="eager")(images, labels).loss)


@pytest.mark.parametrize("kind", ["traced", "recorded"])
def test_compiled_it_gives_the_same(kind: str) -> None:
    inputs, labels = text() if kind == "recorded" else batch()
    losses = []
    for wrap in (lambda model: model, lambda model: torch.compile(model, backend="eager")):
        pair_of = text_pair() if kind == "recorded" else pair()
        model = lf.LITModel(*pair_of, criterion(), engine="eager")
        loss = wrap(model)(inputs, labels).loss
        loss.backward()
        losses.append((loss.detach(), [p.grad for p in model.parameters()]))
    torch.testing.assert_close(*losses)


@exhaustive
def test_a_compiled_step_gives_the_same() -> None:
    plain, compiled = step_of(engine="eager"), step_of(engine="eager")
    call = torch.compile(compiled, backend="eager")
    for images, labels in image_batches(2, (6,)):
        torch.testing.assert_close(call(images, labels), plain(images, labels))


def test_averaged_weights_follow_the_student() -> None:
    step = step_of()
    averaged = torch.optim.swa_utils.AveragedModel(step.student.model, use_buffers=True)
    step(*batch())
    averaged.update_parameters(step.student.model)
    assert_same(averaged.module.state_dict(), step.student.model.state_dict())


# -- accumulation, clipping, schedules --------------------------------------------------------------------------------


def without_norms(step: lf.LITStep) -> lf.LITStep:
    """Whose losses do not depend on what else is in a batch."""
    for module in (*step.student.model.modules(), *step.teacher.model.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return step


def test_accumulated_calls_make_one_update_of_their_mean() -> None:
    whole = without_norms(step_of(dtype=torch.float64))
    parts = without_norms(step_of(dtype=torch.float64, accumulate=3))
    for images, labels in image_batches(4, (6,)):
        whole(images.double(), labels)
        seen = []
        for rows in zip(images.double().split(2), labels.split(2)):
            before = parts.student.model.linear.weight.clone()
            parts(*rows)
            seen.append((parts.updated, torch.equal(parts.student.model.linear.weight, before)))
        assert seen == [(False, True), (False, True), (True, False)]
    torch.testing.assert_close(
        dict(parts.student.model.state_dict()), dict(whole.student.model.state_dict()), rtol=1e-9, atol=1e-12
    )


def test_what_is_left_is_an_update_when_asked_for() -> None:
    step, alone = step_of(accumulate=4), step_of(accumulate=1)
    step(*batch())
    step.update()
    assert not torch.equal(step.student.model.linear.weight, pair()[1].model.linear.weight)
    before = step.student.model.linear.weight.clone()
    step.update()  # nothing is left
    assert torch.equal(step.student.model.linear.weight, before)
    alone(*batch())
    alone.update()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("captured", [False, True])
def test_gradients_are_clipped_over_all_parameters(
    precision: str, captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "graphs_for", lambda _: RecordedGraphs())
    options: dict[str, Any] = {"precision": precision, "engine": "eager", "capture": captured}
    if precision == "fp16":
        options["scaler"] = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def plain_sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1.0, fused=True)

    step, free = (step_of(plain_sgd, clip_grad_norm=norm, **copy.copy(options)) for norm in (2**-7, None))
    if precision == "fp16":
        free.scaler, step.scaler = (torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in range(2))
    moves = []
    for each in (step, free):
        before = [p.detach().clone() for p in each.student.parameters()]
        each(*batch())
        moves.append([p.detach() - b for p, b in zip(each.student.parameters(), before)])
        assert each.captured == captured, each.capture_reason
    norms = [torch.stack([m.norm() for m in move]).norm() for move in moves]
    assert norms[1] > 2**-6
    torch.testing.assert_close(norms[0], torch.tensor(2.0**-7), rtol=1e-3, atol=0)
    for clipped, whole in zip(*moves):
        torch.testing.assert_close(clipped / norms[0], whole / norms[1], rtol=1e-2, atol=1e-4)


def test_a_schedule_is_stepped_once_an_update() -> None:
    rates = []
    teacher, student = pair()
    optimizer = sgd(list(student.parameters()))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.5**n)
    step = lf.LITStep(teacher, student, criterion(), optimizer, accumulate=2, scheduler=schedule)
    for images, labels in image_batches(5, (4,)):
        step(images, labels)
        rates.append(optimizer.param_groups[0]["lr"])
    step.update()
    assert [*rates, optimizer.param_groups[0]["lr"]] == [0.125, 0.0625, 0.0625, 0.03125, 0.03125, 0.015625]


def test_a_schedule_reaches_captured_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "graphs_for", lambda _: RecordedGraphs())
    results = []
    for captured in (False, True):
        teacher, student = pair()
        optimizer = adamw(list(student.parameters()))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.5**n)
        step = lf.LITStep(teacher, student, criterion(), optimizer, scheduler=schedule, capture=captured)
        for images, labels in image_batches(4, (6,)):
            step(images, labels)
        assert step.captured == captured, step.capture_reason
        results.append(state(step))
    assert_same(*results)


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": lambda p: torch.optim.LBFGS(p)}, "optimizer: LBFGS computes the loss several times.*LITModel"),
        ({"accumulate": 0}, "accumulate: expected a number of calls for each update, 1 or more, got 0"),
        ({"clip_grad_norm": 0.0}, r"clip_grad_norm: expected a norm > 0, or None, got 0\.0"),
        ({"accumulate": 2, "capture": True}, "capture: a captured step is one whole update"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_built(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        step_of(**options)


def test_a_student_that_is_not_split_is_refused() -> None:
    teacher, student = pair()
    with pytest.raises(TypeError, match=r"student: expected a split model, got Net; use split\(student"):
        lf.LITStep(teacher, student.model, criterion(), sgd(list(student.parameters())))


def test_parts_thawed_afterwards_are_refused() -> None:
    teacher, student = pair()
    student.freeze("stem", "section1")
    model = lf.LITModel(teacher, student, criterion())
    step = lf.LITStep(teacher, student, criterion(), sgd(list(student.parameters())))
    model(*batch())
    student.freeze("head")  # fewer are trained
    model(*batch())
    student.unfreeze("section1")
    for call in (model, step):
        with pytest.raises(RuntimeError, match=r"student: section1 was frozen when this was built and is trained now"):
            call(*batch())


@pytest.mark.skipif(not EXTENSION.loaded, reason="the runner needs the compiled extension")
def test_a_normalizer_is_refused_where_the_step_is_captured() -> None:
    step = step_of(capture=True)
    with pytest.raises(ValueError, match="normalizer: a captured step has the counts of its first batch"):
        step(*batch(), normalizer=object())


# -- several processes ------------------------------------------------------------------------------------------------


@exhaustive
@pytest.mark.parametrize("kind", ["ddp", "fsdp", "fsdp_teacher"])
def test_wrapped_for_two_processes_gradients_are_those_of_all_rows(kind: str) -> None:
    done = torchrun(2, str(WORKER), kind)
    assert done.returncode == 0, done.stderr[-3000:]


@exhaustive
def test_lightning_with_two_devices_trains_as_a_plain_loop_with_twice_the_batch() -> None:
    pytest.importorskip("lightning")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(WORKER.with_name("lightning_worker.py"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_step_alone_among_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"workers: there are 2 processes.*wrap a LITModel"):
        step_of()
    assert step_of(workers=ALONE).workers.size == 1


def test_soft_labels_reach_the_loss() -> None:
    images, labels = batch()
    soft = torch.nn.functional.one_hot(labels, CLASSES).float()
    hard_step, soft_step = step_of(engine="eager"), step_of(engine="eager")
    torch.testing.assert_close(soft_step(images, soft), hard_step(images, labels))
    mixed = 0.7 * soft + 0.3 * soft.flip(0)
    loss, parts, logits = lf.LITModel(*pair(), criterion(), engine="eager")(images, mixed)
    torch.testing.assert_close(parts.ce, torch.nn.functional.cross_entropy(logits, mixed))
    assert loss.requires_grad


# -- checkpoints ------------------------------------------------------------------------------------------------------


class Saving(nn.Module):
    """A block whose forward checkpoints what is in it."""

    def __init__(self, norm: Any, reentrant: bool | None) -> None:
        super().__init__()
        self.conv, self.norm, self.reentrant = nn.Conv2d(3, 3, 3, padding=1), norm(3), reentrant

    def body(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.reentrant is None:
            return self.body(x)
        return checkpoint(self.body, x, use_reentrant=self.reentrant)


def saving_step(norm: Any, reentrant: bool | None) -> lf.LITStep:
    torch.manual_seed(0)

    def net(reentrant: bool | None) -> lf.SplitModel:
        blocks = nn.Sequential(*(Saving(norm, reentrant) for _ in range(2)))
        model = nn.Sequential(nn.Conv2d(3, 3, 1), blocks, nn.Flatten(), nn.Linear(3 * 64, CLASSES))
        return lf.split(model, blocks="1")

    teacher, student = net(None), net(reentrant)
    return lf.LITStep(teacher, student.train(), criterion(), sgd(list(student.parameters())), engine="eager")


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize("norm", [lambda width: nn.GroupNorm(1, width), nn.BatchNorm2d], ids=["group", "batch"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_give_the_same_or_are_refused(norm: Any, reentrant: bool) -> None:
    plain, saving = saving_step(norm, None), saving_step(norm, reentrant)
    plain(*batch())
    if reentrant:
        with pytest.raises(RuntimeError, match=r"section 2 of the student.*has no gradient.*use_reentrant=False"):
            saving(*batch())
    elif norm is nn.BatchNorm2d:
        with pytest.raises(RuntimeError, match="the student's checkpoints contain BatchNorm, which"):
            saving(*batch())
    else:
        saving(*batch())
        assert_same(saving.student.model.state_dict(), plain.student.model.state_dict())


def test_counts_beforehand_are_those_of_the_loss_also_past_a_projector() -> None:
    teacher, student = pair(6)
    projector = lf.make_projectors(teacher, student, torch.zeros(2, 3, 8, 8))
    model = lf.LITModel(teacher, student, criterion(), projector=projector)
    seen: list[lf.LossCounts] = []
    model(*batch(), normalizer=lambda own: seen.append(own) or own)
    assert torch.equal(model.counts(*batch()).tensor(), seen[0].tensor())


# -- dtypes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", "eager"])
@pytest.mark.parametrize(
    ("teachers", "students"),
    [(torch.float16, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)],
)
def test_dtypes_that_do_not_go_together_are_told_by_whose_they_are(
    engine: str, teachers: torch.dtype, students: torch.dtype
) -> None:
    teacher, student = pair()
    model = lf.LITModel(teacher.to(teachers), student.to(students), criterion(), engine=engine)
    names = [str(dtype).removeprefix("torch.") for dtype in (teachers, students)]
    words = f"got the inputs float32, the teacher {names[0]}, the student {names[1]} .* autocast"
    with pytest.raises(TypeError, match=words):
        model(*batch())
    together = lf.LITModel(teacher.float(), student, criterion(), engine=engine, precision="bf16")
    assert together(*batch()).loss.isfinite()


def test_an_error_that_is_not_about_dtypes_stays_what_it_is() -> None:
    teacher, student = pair()
    with pytest.raises(RuntimeError, match="expected input"):
        lf.LITModel(teacher.half(), student, criterion(), precision="bf16")(torch.randn(2, 9, 8, 8), torch.arange(2))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_teacher_of_several_steps_is_copied_with_a_step_that_has_run(duplicate: Any) -> None:
    teacher, student = pair()
    frozen = lf.FrozenTeacher(teacher, strict=False)
    step = lf.LITStep(teacher, student, criterion(), sgd(student.parameters()), frozen=frozen)
    step(*batch())
    frozen.prefetch(batch()[0])
    twin = duplicate(step)
    assert torch.equal(twin(*batch()).total, step(*batch()).total)
    outputs = frozen.run(batch()[0])
    irs, logits = duplicate(frozen).run(batch()[0])
    for ours, right in zip([*irs, logits], [*outputs[0], outputs[1]]):
        assert torch.equal(ours, right)


def test_counting_a_batch_changes_nothing() -> None:
    class Counts(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x + torch.rand(1)

    def net() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 3, 1), Counts(), nn.Flatten(), nn.Linear(3 * 64, CLASSES))

    teacher, student = (lf.split(net(), at=["0", "1"]) for _ in range(2))
    model, state = lf.LITModel(teacher, student, criterion()), torch.get_rng_state()
    model.counts(*batch())
    assert torch.equal(torch.get_rng_state(), state)
    assert not vars(student.model[1]).get("calls")


# -- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [False, True])
def test_a_student_can_be_saved_by_safetensors_at_any_time(broken: bool, tmp_path: Path) -> None:
    step = step_of()

    def saved() -> None:
        save_file(step.student.model.state_dict(), tmp_path / "file")
        save_model(step.student.model, str(tmp_path / "model"))

    assert step.passes.channels_last == EXTENSION.loaded
    saved()
    step(*batch())
    saved()
    if broken:
        with pytest.raises((RuntimeError, IndexError)):
            step(batch()[0], batch()[1] + CLASSES)
        saved()
    assert all(p.is_contiguous() and p.grad is not None and p.grad.is_contiguous() for p in step.student.parameters())
