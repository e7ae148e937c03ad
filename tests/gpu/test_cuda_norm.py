"""BatchNorm, residual and ReLU as Triton kernels on a real GPU: parity with PyTorch, launches, the captured step."""

from __future__ import annotations

import copy
import warnings

import norm_cases
import pytest
import torch
from norm_cases import DTYPES, Case
from torch.profiler import ProfilerActivity, profile

import lit_fast as lf
from lit_fast.models.fused_norm import enabled, norm_act
from lit_fast.triton import support

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(
        torch.cuda.is_available() and not support.available("cuda", 0)[0], reason="Triton does not run on this device"
    ),
]

STEPS = 3  # more would let the roundings of half precision, which fall elsewhere here, grow
BF16 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
PRECISIONS = [
    "fp32",
    pytest.param("bf16", marks=pytest.mark.skipif(not BF16, reason="bf16 needs compute capability 8.0")),
    "fp16",
]
# As in test_cuda_capture.py, but for float32, whose sums are other ones here.
TOLERANCE = {"fp32": 5e-3, "bf16": 5e-2, "fp16": 2e-2}
# (shape, launches one way): ResNet-20's sections at batch 32, and enough rows for a launch in between.
SIZES = [((32, 16, 32, 32), 2), ((32, 32, 16, 16), 2), ((32, 64, 8, 8), 2), ((64, 64, 32, 32), 3), ((4, 1024, 8, 8), 2)]


@pytest.mark.parametrize("case", norm_cases.matrix(), ids=str)
def test_every_result_is_torchs(case):
    norm_cases.check(case, "cuda")


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [shape for shape, _ in SIZES], ids=str)
def test_real_sizes(shape, dtype, residual):
    norm_cases.check(Case("real", shape, dtype, residual), "cuda")


def test_repeats_are_equal_bit_for_bit():
    case = Case("repeat", (64, 64, 32, 32), torch.float16)
    one, other = (norm_cases.run(norm_cases.build(case, "cuda"), fused=True) for _ in range(2))
    assert all(torch.equal(tensor, same) for _, tensor, same in norm_cases.compared(one, other))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_spreads_as_in_torch(bad):
    results = []
    for fused in (True, False):
        problem = norm_cases.build(Case("bad"), "cuda")
        with torch.no_grad():
            problem.x[1, 2, 3, 1] = bad
            problem.residual[0, 5, 1, 1] = bad
        results.append(norm_cases.run(problem, fused=fused))
    assert torch.equal(results[0].y.isnan(), results[1].y.isnan())


@pytest.mark.parametrize(("shape", "launches"), SIZES, ids=str)
def test_launches_are_counted(shape, launches):
    problem = norm_cases.build(Case("count", shape, torch.float16), "cuda")
    norm_cases.run(problem, fused=True)  # compiles
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        norm_cases.run(problem, fused=True)
        torch.cuda.synchronize()
    on_device = [event for event in found.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    names = [event.name for event in on_device]
    assert len([name for name in names if name.endswith("_kernel")]) == len(names) == 2 * launches, names


def test_nothing_waits_for_the_device():
    problem = norm_cases.build(Case("waits", (32, 16, 32, 32), torch.float16, options={"momentum": None}), "cuda")
    norm_cases.run(problem, fused=True)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    norm_cases.run(problem, fused=True)
    torch.cuda.set_sync_debug_mode("default")


def test_a_graph_replays_forward_backward_and_running_statistics():
    problem = norm_cases.build(Case("graph", (32, 16, 32, 32), torch.float16), "cuda")
    before = copy.deepcopy(problem.norm.state_dict())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        norm_cases.run(problem, fused=True)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = norm_cases.run(problem, fused=True)
    for seed in (1, 2):
        generator = torch.Generator("cuda").manual_seed(seed)
        with torch.no_grad():
            problem.x.copy_(torch.randn(problem.x.shape, generator=generator, device="cuda"))
        problem.norm.load_state_dict(before)
        graph.replay()
        replayed = norm_cases.Result(captured.y, captured.grads, dict(problem.norm.named_buffers()))
        replayed = copy.deepcopy(replayed)
        problem.norm.load_state_dict(before)
        direct = norm_cases.run(problem, fused=True)
        for name, tensor, right in norm_cases.compared(replayed, direct):
            assert torch.equal(tensor, right), name


def make(precision, *, captured, fused):
    torch.manual_seed(0)
    teacher = lf.split(lf.models.resnet32().cuda())
    student = lf.split(lf.models.resnet20().cuda()).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=2**-6, momentum=0.9, weight_decay=1e-4, fused=True)
    options = {"precision": precision, "capture": captured, "side_by_side": False, "fused_norm": fused}
    return lf.LITStep(teacher, student, lf.LITLoss(), optimizer, **options)


def train(step, steps):
    """The losses, and the state after that."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(32).remainder(10).cuda()
    losses = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning would be the fall back to eager steps
        for _ in range(steps):
            losses.append(step(torch.randn(32, 3, 32, 32, generator=generator).cuda(), labels).total)
    return torch.stack(losses), step.student.model.state_dict()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_captured_step_trains_as_the_eager_one_without(precision, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    losses, states = zip(*(train(make(precision, captured=fused, fused=fused), STEPS) for fused in (True, False)))
    torch.testing.assert_close(*losses, rtol=TOLERANCE[precision], atol=TOLERANCE[precision])
    for name, value in states[0].items():
        other = states[1][name]
        if value.is_floating_point():
            # A bias starts at 0, and its gradient is a sum that nearly cancels: small ones are held to 0.1.
            off = (value - other).abs().max() / other.abs().max().clamp(min=0.1)
            assert off <= TOLERANCE[precision], f"{name}: {off:.2g}"
        else:
            assert torch.equal(value, other), name


def test_captured_and_eager_steps_with_the_kernels_are_equal(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    steps = [make("fp32", captured=captured, fused=True) for captured in (True, False)]
    (losses, ours), (right_losses, right) = (train(step, 10) for step in steps)
    assert steps[0].captured, steps[0].capture_reason
    torch.testing.assert_close(losses, right_losses, rtol=1e-3, atol=1e-3)
    for name, value in ours.items():
        torch.testing.assert_close(value, right[name], rtol=1e-3, atol=1e-3, msg=name)


def test_the_captured_step_has_the_kernels_in_it():
    step = make("fp16", captured=True, fused=True)
    images, labels = torch.randn(32, 3, 32, 32).cuda(), torch.arange(32).remainder(10).cuda()
    step(images, labels)
    step(images, labels)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        step(images, labels)
        torch.cuda.synchronize()
    counts = {event.key: event.count for event in found.key_averages()}
    # The stem, 9 blocks of two, and those of sections 2 and 3 once more.
    for name in ("moments_kernel", "normalise_kernel", "sums_kernel", "slope_kernel"):
        assert counts.get(name) == 19 + 12, counts


def test_other_networks_are_left_alone():
    norm, x = torch.nn.BatchNorm2d(8).cuda(), torch.randn(2, 8, 4, 4).cuda()
    right = torch.relu(copy.deepcopy(norm)(x))
    with enabled():
        assert torch.equal(norm_act(norm, x), right)  # x is not channels_last
