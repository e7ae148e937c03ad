"""The captured step against the eager one, bit for bit, on graphs recorded on the CPU; and what makes it step aside."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from recorded_graphs import RecordedGraphs
from tiny_networks import CLASSES, Net, split
from torch import Tensor, nn

import lit_fast as lf
from lit_fast.data.loaders import open_loader
from lit_fast.extension import EXTENSION
from lit_fast.loss.backends import eager
from lit_fast.step import capture

STEPS = 8
CHANNELS_LAST = torch.channels_last


def make(captured: bool, *, width: int = 8, dropout: float = 0.0, optimizer: Any = None, **options: Any) -> lf.LITStep:
    """A step that begins as every other one made with the same arguments."""
    torch.manual_seed(0)
    teacher, student = split(Net()), split(Net(width, dropout)).train()
    if options.get("precision") == "fp16" and "scaler" not in options:
        options["scaler"] = torch.amp.GradScaler("cpu", init_scale=2.0**36, backoff_factor=2.0**-20, growth_interval=3)
    parameters = list(student.parameters())
    if width != 8:
        options["projector"] = lf.make_projectors(teacher, student, torch.zeros(2, 3, 8, 8))
        parameters += options["projector"].parameters()
    optimizer = optimizer(parameters) if optimizer else sgd(parameters)
    criterion = options.pop("criterion", None) or lf.LITLoss(alpha=0.9, beta=0.6, tau=3.0)
    if criterion.options.beta == 1.0 and criterion.options.alpha == 1.0:
        teacher = None
    return lf.LITStep(teacher, student, criterion, optimizer, capture=captured, **options)


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    # Rates that float32 holds exactly: a captured step reads them from a float32 tensor.
    return torch.optim.SGD(parameters, lr=0.125, momentum=0.9, weight_decay=0.01, nesterov=True, fused=True)


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.0078125, fused=True, capturable=True)


def batches(steps: int = STEPS, sizes: tuple[int, ...] = (6, 6, 4)) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for i in range(steps):
        size = sizes[i % len(sizes)]
        yield (
            torch.randn(size, 3, 8, 8, generator=generator),
            torch.randint(0, CLASSES, (size,), generator=generator),
        )


def state(step: lf.LITStep) -> dict[str, Any]:
    """All that a step changes."""
    found: dict[str, Any] = {f"student.{k}": v for k, v in step.student.model.state_dict().items()}
    if step.projector is not None:
        found |= {f"projector.{k}": v for k, v in step.projector.state_dict().items()}
    for i, entry in step.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{i}.{k}": v for k, v in entry.items()}
    if step.scaler is not None:
        found |= {f"scaler.{k}": torch.tensor(v) for k, v in step.scaler.state_dict().items()}
    return {**found, "nonfinite": step.nonfinite, "rng": torch.get_rng_state()}


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], rtol=0, atol=0, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


def run(step: lf.LITStep, data: Any, lr: Callable[[int], float] | None = None) -> list[Tensor]:
    """The loss parts of every step, in one row each."""
    rows = []
    for i, (images, labels) in enumerate(data):
        if lr is not None:
            for group in step.optimizer.param_groups:
                group["lr"] = lr(i)
        parts = step(images, labels)
        rows.append(torch.cat((torch.stack((parts.total, parts.ce, parts.kl)), parts.ir)))
    return rows


def both(lr: Callable[[int], float] | None = None, **options: Any) -> tuple[lf.LITStep, lf.LITStep]:
    """An eager and a captured step after the same batches, with equal losses and states."""
    results = []
    for captured in (False, True):
        step = make(captured, **options)
        torch.manual_seed(2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a warning would be the fall back to eager steps
            rows = run(step, batches(), lr)
        results.append((step, rows, copy.deepcopy(state(step))))
    (eager, eager_rows, eager_state), (step, rows, captured_state) = results
    assert step.captured, step.capture_reason
    assert not eager.captured
    for ours, theirs in zip(rows, eager_rows, strict=True):
        assert torch.equal(ours, theirs)
    assert_same(captured_state, eager_state)
    return eager, step


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> RecordedGraphs:
    recorded = RecordedGraphs()
    monkeypatch.setattr(capture, "graphs_for", lambda device: recorded)
    if not EXTENSION.loaded:  # the eager loss reads labels on the CPU, where it costs nothing, and not on a GPU
        monkeypatch.setattr(eager, "check_label_values", lambda *_: None)
    return recorded


# --- the same as the eager step


@pytest.mark.parametrize("engine", ["eager", "auto"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_equals_the_eager_step(graphs: RecordedGraphs, precision: str, engine: str) -> None:
    eager, _ = both(precision=precision, engine=engine)
    assert graphs.captures == 2  # of 6 and of 4 images
    assert graphs.replays == STEPS
    if eager.scaler is not None:
        assert eager.scaler.get_scale() != 2.0**36  # the first steps overflowed


def test_follows_the_learning_rate(graphs: RecordedGraphs) -> None:
    both(lr=lambda i: 0.25 * 0.5**i)
    assert graphs.captures == 2


def test_follows_a_scheduler(graphs: RecordedGraphs) -> None:
    rates = []
    for captured in (False, True):
        step = make(captured)
        scheduler = torch.optim.lr_scheduler.StepLR(step.optimizer, 2, gamma=0.5)
        for images, labels in batches():
            step(images, labels)
            scheduler.step()
        rates.append((step.optimizer.param_groups[0]["lr"], state(step)))
    assert rates[0][0] == rates[1][0] == 0.125 * 0.5**4
    assert_same(rates[1][1], rates[0][1])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_equals_the_eager_step_with_adamw(graphs: RecordedGraphs, precision: str) -> None:
    both(optimizer=adamw, precision=precision)


def test_draws_the_random_numbers_of_the_eager_step(graphs: RecordedGraphs) -> None:
    both(dropout=0.3)


def test_equals_the_eager_step_with_projectors(graphs: RecordedGraphs) -> None:
    both(width=4)


@pytest.mark.parametrize(("alpha", "beta"), [(0.9, 1.0), (1.0, 1.0), (0.5, 0.0)], ids=["finetune", "scratch", "ir"])
def test_equals_the_eager_step_of_other_losses(graphs: RecordedGraphs, alpha: float, beta: float) -> None:
    both(criterion=lf.LITLoss(alpha=alpha, beta=beta))


@pytest.mark.parametrize("policy", ["both", "teacher_fed"])
def test_equals_the_eager_step_with_every_policy(graphs: RecordedGraphs, policy: str) -> None:
    both(bn_policy=policy)


def test_needs_no_labels_where_the_loss_needs_none(graphs: RecordedGraphs) -> None:
    step, eager = (make(c, criterion=lf.LITLoss(beta=0.0)) for c in (True, False))
    for images, _ in batches():
        assert torch.equal(step(images).total, eager(images).total)
    assert graphs.captures == 2


def test_parts_are_the_callers_to_keep(graphs: RecordedGraphs) -> None:
    step = make(True)
    (first, *_), *others = [(step(*batch).total, step.criterion.parts) for batch in batches(3, sizes=(6,))]
    kept = float(first)
    assert all(float(total) == float(parts.total) != kept for total, parts in others)
    assert float(first) == kept


def test_the_step_is_freed_with_its_graphs(graphs: RecordedGraphs) -> None:
    step = make(True)
    step(*next(batches()))
    gone = weakref.ref(step)
    del step
    assert gone() is None


# --- resuming


def test_a_loaded_state_goes_where_the_graph_reads_it(graphs: RecordedGraphs) -> None:
    eager, step = both(precision="fp16")
    saved = copy.deepcopy((eager.student.model.state_dict(), eager.optimizer.state_dict(), eager.scaler.state_dict()))
    run(step, batches(3))  # goes astray
    step.student.model.load_state_dict(saved[0])
    step.optimizer.load_state_dict(saved[1])
    step.scaler.load_state_dict(saved[2])
    captures = graphs.captures
    more = list(batches(2 * STEPS))[STEPS:]
    for ours, theirs in zip(run(step, more), run(eager, more), strict=True):
        assert torch.equal(ours, theirs)
    assert_same(state(step), state(eager))
    assert graphs.captures == captures


def test_a_new_optimizer_state_is_zero_again(graphs: RecordedGraphs) -> None:
    _, step = both()
    begin = step.optimizer.state_dict()
    step.optimizer.load_state_dict({"state": {}, "param_groups": begin["param_groups"]})
    eager = make(False)
    eager.student.model.load_state_dict(step.student.model.state_dict())
    run(step, batches(2))
    run(eager, batches(2))
    assert torch.equal(step.student.model.linear.weight, eager.student.model.linear.weight)


def test_a_checkpoint_made_before_the_first_batch_is_continued(graphs: RecordedGraphs) -> None:
    eager, _ = both()
    step = make(True)
    step.student.model.load_state_dict(eager.student.model.state_dict())
    step.optimizer.load_state_dict(copy.deepcopy(eager.optimizer.state_dict()))
    more = list(batches(4))
    run(step, more), run(eager, more)
    assert torch.equal(step.student.model.linear.weight, eager.student.model.linear.weight)


# --- a graph that no longer fits


def replace_storage(step: lf.LITStep) -> None:
    weight = step.student.model.layer2[0].weight
    weight.data = weight.data * 0.5


def replace_layout(step: lf.LITStep) -> None:
    weight = step.student.model.layer2[0].weight
    weight.data = weight.data.to(memory_format=CHANNELS_LAST)


def freeze(step: lf.LITStep) -> None:
    step.student.model.layer1.requires_grad_(False)
    step.student.model.layer1.eval()


def decay_more(step: lf.LITStep) -> None:
    step.optimizer.param_groups[0]["weight_decay"] = 0.5


def replace_buffer(step: lf.LITStep) -> None:
    step.student.model.layer2[1].running_mean = torch.ones(8)


def stop_statistics(step: lf.LITStep) -> None:
    step.student.model.layer3.eval()


def grow_sooner(step: lf.LITStep) -> None:
    step.scaler.set_growth_interval(1)


@pytest.mark.parametrize(
    "change", [replace_storage, replace_layout, freeze, decay_more, replace_buffer, stop_statistics, grow_sooner]
)
def test_what_the_graph_cannot_see_is_captured_anew(graphs: RecordedGraphs, change: Any) -> None:
    eager, step = both(precision="fp16")
    for one in (eager, step):
        change(one)
        run(one, batches(4))
    assert_same(state(step), state(eager))
    assert graphs.captures == 4


def test_settings_that_change_all_the_time_are_not_captured(graphs: RecordedGraphs) -> None:
    steps = [make(captured) for captured in (False, True)]
    for i, batch in enumerate(batches(12, sizes=(6,))):
        for step in steps:
            step.optimizer.param_groups[0]["momentum"] = 0.5 + i / 32
        steps[0](*batch)
        if i == capture.MAX_CAPTURES:
            with pytest.warns(UserWarning, match="is not captured: the optimizer's settings"):
                steps[1](*batch)
        else:
            steps[1](*batch)
        assert steps[1].captured == (i < capture.MAX_CAPTURES)
    assert_same(state(steps[1]), state(steps[0]))


def test_more_shapes_than_are_captured_run_eagerly(graphs: RecordedGraphs) -> None:
    data = list(batches(9, sizes=(6, 4, 3)))
    eager, step = make(False), make(True)
    run(eager, data)
    run(step, data)
    assert_same(state(step), state(eager))
    assert graphs.captures == capture.MAX_SHAPES
    assert graphs.replays == 6
    assert "(3, 3, 8, 8) float32, run eagerly" in step.capture_reason


# --- stepping aside


def unfused(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def fused_adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, fused=True)


def rmsprop(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(parameters, lr=0.01)


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (unfused, "optimizer SGD: build it with fused=True"),
        (fused_adam, "optimizer Adam: build it with capturable=True"),
        (rmsprop, "optimizer RMSprop: SGD, Adam and AdamW can be captured"),
    ],
)
def test_other_optimizers_run_eagerly(graphs: RecordedGraphs, optimizer: Any, reason: str) -> None:
    step = make(True, optimizer=optimizer)
    assert not step.captured
    assert step.capture_reason == reason
    step(*next(batches()))
    assert graphs.captures == 0


def test_without_cuda_it_runs_eagerly() -> None:
    step = make(True)
    assert not step.captured
    assert step.capture_reason == "the student is on cpu, and only CUDA devices capture"
    eager = make(False)
    assert eager.capture_reason == "not requested"
    run(step, batches(2)), run(eager, batches(2))
    assert_same(state(step), state(eager))


class Waits(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (2.0 if float(x.detach().sum()) > 0 else 1.0)


class BreaksOff(torch.optim.SGD):
    """Breaks off in its n-th step, with the gradients already checked."""

    def __init__(self, parameters: Any, at: int) -> None:
        super().__init__(parameters, lr=0.125, momentum=0.9, fused=True)
        self.at = at

    def step(self, closure: Any = None) -> Any:
        self.at -= 1
        if self.at == 0:
            raise RuntimeError("CUDA error: out of luck\nsecond line")
        return super().step(closure)


def test_a_part_that_waits_for_the_device_runs_eagerly(graphs: RecordedGraphs) -> None:
    steps = []
    for captured in (False, True):
        step = make(captured, precision="fp16")
        step.student.model.layer2.append(Waits())
        steps.append(step)
    run(steps[0], batches())
    with pytest.warns(UserWarning, match="is not captured: RuntimeError: _local_scalar_dense: operation not permitted"):
        run(steps[1], batches())
    assert not steps[1].captured
    assert steps[1].capture_reason.startswith("RuntimeError: _local_scalar_dense")
    assert_same(state(steps[1]), state(steps[0]))


@pytest.mark.parametrize("at", [1, 2, 4])  # warming up, and capturing
def test_a_capture_that_breaks_off_leaves_nothing_behind(
    graphs: RecordedGraphs, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(capture, "_check_optimizer", lambda optimizer: None)
    steps = [
        make(
            captured,
            precision="fp16",
            scaler=torch.amp.GradScaler("cpu", init_scale=256.0),
            optimizer=lambda p, c=captured: BreaksOff(p, at if c else -1),
        )
        for captured in (False, True)
    ]
    run(steps[0], batches())
    with pytest.warns(UserWarning, match="is not captured: RuntimeError: CUDA error: out of luck; it runs eagerly"):
        run(steps[1], batches())
    assert_same(state(steps[1]), state(steps[0]))


@pytest.mark.filterwarnings("ignore:lit_fast. the step is not captured")
def test_a_wrong_batch_raises_what_it_raises_eagerly(graphs: RecordedGraphs) -> None:
    step = make(True)
    with pytest.raises(TypeError, match="labels: expected class indices"):
        step(torch.randn(4, 3, 8, 8), torch.rand(4))


def test_a_teacher_back_in_train_mode_is_refused(graphs: RecordedGraphs) -> None:
    step = make(True)
    step(*next(batches()))
    step.teacher.train()
    with pytest.raises(RuntimeError, match="teacher: expected eval mode"):
        step(*next(batches()))


# --- the flag


def test_the_flag_tells_of_a_loss_that_is_not_finite(graphs: RecordedGraphs) -> None:
    for captured in (False, True):
        step = make(captured)
        run(step, batches(2))
        assert not step.nonfinite
        (images, labels), *_ = batches(1)
        step(images * float("nan"), labels)
        run(step, batches(1))
        assert step.nonfinite


# --- the stand-in keeps what makes CUDA graphs hard to use


def test_recorded_graphs_keep_numbers_and_addresses() -> None:
    x, rate = torch.ones(2), [2.0]
    held = [torch.full((2,), 3.0)]
    replay = RecordedGraphs().capture(lambda: x * rate[0] + held[0])
    rate[0], held[0] = 100.0, torch.zeros(2)
    x.fill_(5.0)
    assert replay().tolist() == [13.0, 13.0]
    with pytest.raises(RuntimeError, match="operation not permitted"):
        RecordedGraphs().capture(lambda: x * float(x.sum()))


# --- batches that the graph makes itself


def resident(size: int = 22) -> Any:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (size + 12, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(size + 12) % CLASSES
    data = lf.data.from_arrays(
        (images[:size], labels[:size]),
        val=(images[size:], labels[size:]),
        test=(images[size:], labels[size:]),
        num_classes=CLASSES,
        augmentation=lf.data.Augmentation(pad=2, flip=True),
    )
    return open_loader(data, "resident")


def test_a_resident_dataset_is_read_by_the_graph(graphs: RecordedGraphs) -> None:
    """Two epochs of 6 + 6 + 6 + 4 rows, the second begun in its middle: as eager steps on the loader's batches."""
    results = []
    for captured in (False, True):
        step, loader, rows = make(captured), resident(), []
        for epoch, start in ((0, 0), (1, 1)):
            options = {"batch_size": 6, "seed": 3, "start_step": start}
            if captured:
                parts = [step.train_on(loader.training, count) for count in loader.begin(epoch, **options)]
            else:
                parts = [step(*batch) for batch in loader.train_batches(epoch, **options)]
            rows += [torch.cat((torch.stack((p.total, p.ce, p.kl)), p.ir)) for p in parts]
        results.append((rows, state(step)))
        assert int(loader.training.position) == (22 if captured else 18)
    assert step.captured, step.capture_reason
    assert step.capture_reason == "2 captured, the last for 4 rows of the resident dataset"
    assert graphs.captures == 2
    assert graphs.replays == 7
    (eager_rows, eager_state), (rows, captured_state) = results
    for ours, theirs in zip(rows, eager_rows, strict=True):
        assert torch.equal(ours, theirs)
    assert_same(captured_state, eager_state)


def test_a_resident_dataset_is_read_where_nothing_is_captured() -> None:
    step, other = make(False), make(False)
    loader, again = resident(), resident()
    for count in loader.begin(0, batch_size=6, seed=3):
        step.train_on(loader.training, count)
    for batch in again.train_batches(0, batch_size=6, seed=3):
        other(*batch)
    assert_same(state(step), state(other))


def test_two_datasets_have_graphs_of_their_own(graphs: RecordedGraphs) -> None:
    step = make(True)
    first, second = resident(), resident(18)
    for loader in (first, second, first):
        for count in loader.begin(0, batch_size=18, seed=0)[:1]:
            step.train_on(loader.training, count)
    assert graphs.captures == 2
