"""The captured step on a real GPU: parity with the eager one, resuming, rates, shapes, launches, falling back."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import lit_fast as lf
from lit_fast.data.loaders import open_loader

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

STEPS = 20
BF16 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
PRECISIONS = [
    "fp32",
    pytest.param("bf16", marks=pytest.mark.skipif(not BF16, reason="bf16 needs compute capability 8.0")),
    "fp16",
]
# Eager and captured steps run the same kernels, but cuDNN may sum gradients of weights in another order each time;
# over 20 steps at this learning rate that grows to less than this. Relative to the largest number of a tensor.
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 2e-2}


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


def make(captured, precision="fp32", *, fused=True, engine="auto", student=None, **options):
    torch.manual_seed(0)
    teacher = lf.split(lf.models.resnet32().cuda())
    student = lf.split((student or lf.models.resnet20()).cuda()).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=2**-6, momentum=0.9, weight_decay=1e-4, fused=fused)
    # A first scale that overflows: the first step is skipped, captured or not.
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40, backoff_factor=2.0**-28) if precision == "fp16" else None
    options = {"precision": precision, "scaler": scaler, "engine": engine, "capture": captured, **options}
    options = {"side_by_side": False, "fused_norm": False, **options}
    return lf.LITStep(teacher, student, lf.LITLoss(), optimizer, **options)


def batches(steps=STEPS, sizes=(32,), seed=1):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(steps):
        size = sizes[i % len(sizes)]
        images = torch.randn(size, 3, 32, 32, generator=generator)
        found.append((images.cuda(), torch.randint(0, 10, (size,), generator=generator).cuda()))
    return found


def train(step, data, lr=None):
    """The losses of the steps, on the device."""
    losses = []
    for i, batch in enumerate(data):
        if lr is not None:
            step.optimizer.param_groups[0]["lr"] = lr(i)
        losses.append(step(*batch).total)
    return torch.stack(losses)


def captured_only(step, data, lr=None):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning would be the fall back to eager steps
        losses = train(step, data, lr)
    assert step.captured, step.capture_reason
    return losses


def assert_near(ours, theirs, precision):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        other = theirs[name]
        if value.is_floating_point():
            off = (value - other).abs().max() / other.abs().max().clamp(min=1e-3)
            assert off <= TOLERANCE[precision], f"{name}: {off:.2g}"
        else:
            assert torch.equal(value, other), name


@pytest.mark.parametrize("engine", ["auto", "eager"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_equals_the_eager_step(precision, engine):
    data = batches(sizes=(32, 32, 20))  # with an epoch's last batch
    eager, step = make(False, precision, engine=engine), make(True, precision, engine=engine)
    torch.testing.assert_close(
        captured_only(step, data), train(eager, data), rtol=TOLERANCE[precision], atol=TOLERANCE[precision]
    )
    assert_near(step.student.model.state_dict(), eager.student.model.state_dict(), precision)
    if eager.scaler is not None:
        assert step.scaler.get_scale() == eager.scaler.get_scale() < 2.0**40
    assert not step.nonfinite


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sections", ["all", [3]], ids=str)
def test_side_by_side_equals_one_after_the_other(precision, captured, sections):
    data = batches(sizes=(32, 32, 20))
    serial = make(captured, precision, ir_sections=sections)
    step = make(captured, precision, ir_sections=sections, side_by_side=True)
    run = captured_only if captured else train
    torch.testing.assert_close(run(step, data), run(serial, data), rtol=TOLERANCE[precision], atol=TOLERANCE[precision])
    assert_near(step.student.model.state_dict(), serial.student.model.state_dict(), precision)


def test_a_captured_run_repeats_bit_for_bit():
    runs = []
    for _ in range(2):
        step = make(True)
        captured_only(step, batches())
        runs.append(step.student.model.state_dict())
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


def test_looking_at_the_sections_between_replays_changes_nothing():
    runs = []
    for looks in (False, True):
        step = make(True)
        for batch in batches():
            captured_only(step, [batch])
            if looks:
                found = lf.section_diagnostics(step, *batch)
        runs.append(step.student.model.state_dict())
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())
    reference = lf.section_diagnostics(step, *batch)
    assert found == reference
    assert found.gaps[0] == 0.0


def test_follows_the_learning_rate():
    eager, step = make(False), make(True)

    def lr(i):
        return 2**-6 * 0.5 ** (i // 4)

    torch.testing.assert_close(captured_only(step, batches(), lr), train(eager, batches(), lr), rtol=1e-3, atol=1e-3)
    frozen = copy.deepcopy(step.student.model.linear.weight)
    captured_only(step, batches(2), lambda i: 0.0)
    assert torch.equal(step.student.model.linear.weight, frozen)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_loaded_state_goes_where_the_graph_reads_it(precision):
    step = make(True, precision)
    captured_only(step, batches(8))
    saved = copy.deepcopy((step.student.model.state_dict(), step.optimizer.state_dict()))
    scale = None if step.scaler is None else step.scaler.state_dict()
    expected = captured_only(step, batches(8, seed=2))
    captured_only(step, batches(3, seed=3))  # goes astray
    step.student.model.load_state_dict(saved[0])
    step.optimizer.load_state_dict(saved[1])
    if scale is not None:
        step.scaler.load_state_dict(scale)
    assert torch.equal(captured_only(step, batches(8, seed=2)), expected)


def test_dropout_draws_new_numbers_in_every_replay():
    student = lf.models.resnet20()
    student.layer2.append(nn.Dropout(0.5))
    step = make(True, student=student)
    step.optimizer.param_groups[0]["lr"] = 0.0
    data = batches(1) * 4
    losses = captured_only(step, data).tolist()
    assert len(set(losses)) == 4


def test_parts_are_the_callers_to_keep():
    step = make(True)
    data = batches(3)
    parts = [step(*batch) for batch in data]
    losses = [float(p.total) for p in parts]
    assert len(set(losses)) == 3
    assert all(float(p.total) == loss for p, loss in zip(parts, losses))


def test_the_flag_tells_of_a_loss_that_is_not_finite():
    step = make(True)
    captured_only(step, batches(2))
    assert not step.nonfinite
    images, labels = batches(1)[0]
    captured_only(step, [(images * float("nan"), labels)])
    assert step.nonfinite


def test_a_replay_is_a_handful_of_calls():
    step, (batch, *_) = make(True), batches(1)
    for _ in range(3):
        step(*batch)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        step(*batch)
        torch.cuda.synchronize()
    calls = {event.key: event.count for event in found.key_averages()}
    assert calls.get("cudaGraphLaunch") == 1
    assert sum(count for key, count in calls.items() if key.startswith(("cudaLaunchKernel", "cudaMemcpyAsync"))) <= 8
    assert "cudaStreamSynchronize" not in calls


class Waits(nn.Module):
    def forward(self, x):
        return x * (2.0 if x.detach().sum().item() > 0 else 1.0)


def test_a_part_that_waits_runs_eagerly_and_is_named():
    students = [lf.models.resnet20() for _ in range(2)]
    for student in students:
        student.layer2.append(Waits())
    students[1].load_state_dict(students[0].state_dict())
    eager, step = (make(captured, student=student) for captured, student in zip((False, True), students))
    with pytest.warns(UserWarning, match="is not captured"):
        losses = train(step, batches(4))
    assert not step.captured
    assert "it waits for the GPU at" in step.capture_reason
    assert "test_cuda_capture.py" in step.capture_reason
    torch.testing.assert_close(losses, train(eager, batches(4)), rtol=1e-3, atol=1e-3)


def test_an_unfused_optimizer_runs_eagerly():
    step = make(True, fused=False)
    assert step.capture_reason == "optimizer SGD: build it with fused=True"
    train(step, batches(2))


def test_a_second_phase_captures_after_the_first_is_gone():
    first = make(True)
    captured_only(first, batches(3))
    del first
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    for _ in range(2):
        captured_only(make(True), batches(3))
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= held + (8 << 20)  # 8 MiB: workspaces of the libraries


@pytest.mark.parametrize(
    "options", [{}, {"teacher_ahead": True}, {"teacher_ahead": True, "side_by_side": True}], ids=str
)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_graph_reads_a_resident_dataset(precision, options):
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (212, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (212,), generator=generator)
    held_out = (images[180:], labels[180:])
    augmentation = lf.data.Augmentation(pad=4, flip=True)
    data = lf.data.from_arrays(
        (images[:180], labels[:180]), val=held_out, test=held_out, num_classes=10, augmentation=augmentation
    )
    losses, states = [], []
    for captured in (False, True):
        step = make(captured, precision, **(options if captured else {}))
        loader, rows = open_loader(data, "resident", device="cuda"), []
        for epoch in range(3):
            if captured:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")  # a warning would be the fall back to eager steps
                    for count in loader.begin(epoch, batch_size=32, seed=0):
                        rows.append(step.train_on(loader.training, count).total)
            else:
                rows += [step(*batch).total for batch in loader.train_batches(epoch, batch_size=32, seed=0)]
        losses.append(torch.stack(rows))
        states.append(step.student.model.state_dict())
    assert step.captured, step.capture_reason
    torch.testing.assert_close(losses[1], losses[0], rtol=TOLERANCE[precision], atol=TOLERANCE[precision])
    assert_near(states[1], states[0], precision)
