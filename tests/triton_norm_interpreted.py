"""The Triton kernels of BatchNorm, run on the CPU by Triton's interpreter; see tests/triton_interpreted.py."""

from __future__ import annotations

import copy

import norm_cases
import norm_networks
import pytest
import torch
from everyday import but_first, exhaustive, in_turn
from hypothesis import given, settings
from hypothesis import strategies as st
from norm_cases import DTYPES, Case
from torch import nn

import lit_fast as lf
from lit_fast.models import fused_norm
from lit_fast.models.fused_norm import enabled, norm_act
from lit_fast.triton import batch_norm
from lit_fast.triton.maths import INTERPRETED

assert INTERPRETED, "run tests/test_triton.py"

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of inf and NaN in the interpreter

F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """32 rows of 8 channels, 12 programs with partial results: several tiles for each, many programs."""
    monkeypatch.setattr(batch_norm, "TILE", 256)
    monkeypatch.setattr(batch_norm, "PROGRAMS", 12)


@pytest.mark.parametrize("case", in_turn(norm_cases.matrix(), norm_cases.without_dtype), ids=str)
def test_every_result_is_torchs(case: Case) -> None:
    norm_cases.check(case)


@exhaustive
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 16, 6, 5), (5, 3, 11, 8), (2, 70, 6, 3), (3, 64, 6, 3)], ids=str)
@pytest.mark.usefixtures("small_tiles")
def test_many_programs(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    norm_cases.check(Case("many", shape, dtype))
    averaged = {"momentum": None}
    norm_cases.check(Case("many, large mean, cumulative", shape, dtype, residual=False, mean=1000.0, options=averaged))


@pytest.mark.usefixtures("small_tiles")
def test_many_programs_in_float32() -> None:
    norm_cases.check(Case("many", (2, 70, 6, 3)))


@pytest.mark.usefixtures("small_tiles")
def test_the_launches_in_between_are_among_those_tested() -> None:
    shapes = ((90, 16), (440, 3), (36, 70), (54, 64))
    plans = [batch_norm.plan_for(torch.empty(rows, channels)) for rows, channels in shapes]
    assert [plan.few for plan in plans] == [True, True, False, False]
    assert [plan.blocks for plan in plans] == [1, 1, 2, 1]
    assert [plan.steps for plan in plans] == [1, 2, 2, 2]


@exhaustive
@settings(max_examples=20)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9)),
    dtype=st.sampled_from(DTYPES),
    residual=st.booleans(),
    relu=st.booleans(),
)
def test_any_shape(shape: tuple[int, int, int, int], dtype: torch.dtype, residual: bool, relu: bool) -> None:
    if shape[0] * shape[2] * shape[3] > 1:
        norm_cases.check(Case("any", shape, dtype, residual, relu))


@pytest.mark.parametrize("mean", [1e3, -1e4])
def test_a_large_mean_cancels_nothing(mean: float) -> None:
    problem = norm_cases.build(Case("offset", (8, 16, 16, 16), mean=mean, options={"momentum": 1.0}))
    norm_cases.run(problem, fused=True)
    right = problem.x.detach().double().var((0, 2, 3))
    torch.testing.assert_close(problem.norm.running_var.double(), right, rtol=1e-8 * abs(mean), atol=0)


@pytest.mark.parametrize("bad", [float("nan"), *but_first([float("inf"), float("-inf")])])
@pytest.mark.parametrize("relu", but_first([True, False]))
def test_what_is_not_finite_spreads_as_in_torch(bad: float, relu: bool) -> None:
    results = []
    for fused in (True, False):
        problem = norm_cases.build(Case("bad", relu=relu))
        with torch.no_grad():
            problem.x[1, 2, 3, 1] = bad
            problem.residual[0, 5, 1, 1] = bad
            problem.dy[2, 7, 0, 0] = bad
        results.append(norm_cases.run(problem, fused=fused))
    ours, right = results
    for name, tensor, other in norm_cases.compared(ours, right):
        assert torch.equal(tensor.isfinite(), other.isfinite()), name
    assert torch.equal(ours.y.isnan(), right.y.isnan())


def test_repeats_are_equal_bit_for_bit() -> None:
    one, other = (norm_cases.run(norm_cases.build(Case("repeat", dtype=BF16)), fused=True) for _ in range(2))
    assert all(torch.equal(tensor, same) for _, tensor, same in norm_cases.compared(one, other))


@exhaustive
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_gradcheck(residual: bool, relu: bool) -> None:
    problem = norm_cases.build(Case("double", (2, 2, 1, 2), torch.float64, residual, relu, options={"momentum": 0.0}))
    leaves = problem.leaves()

    def call(*_: torch.Tensor) -> torch.Tensor:
        with enabled():
            return norm_act(problem.norm, problem.x, problem.residual, relu=relu)

    assert torch.autograd.gradcheck(call, leaves)


def test_double_backward_is_refused() -> None:
    problem = norm_cases.build(Case("double"))
    with enabled():
        y = norm_act(problem.norm, problem.x)
    (grad,) = torch.autograd.grad(y.square().sum(), problem.x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_without_gradients_the_running_statistics_are_updated_too() -> None:
    problem = norm_cases.build(Case("plain"))
    right = copy.deepcopy(problem.norm)
    with torch.no_grad():
        right(problem.x)
        with enabled():
            y = norm_act(problem.norm, problem.x)
    assert not y.requires_grad
    for name, tensor in problem.norm.named_buffers():
        torch.testing.assert_close(tensor, right.get_buffer(name))


def test_a_pass_that_pauses_the_statistics_leaves_them() -> None:
    problem = norm_cases.build(Case("plain"))
    before = copy.deepcopy(problem.norm.state_dict())
    problem.norm.track_running_stats = False
    norm_cases.run(problem, fused=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in problem.norm.state_dict().items())


def test_gradients_of_other_layouts_and_of_frozen_weights() -> None:
    problem = norm_cases.build(Case("plain"))
    problem.norm.requires_grad_(False)
    grads = []
    for fused in (True, False):
        with enabled(fused):
            y = norm_act(problem.norm, problem.x, problem.residual.contiguous())
        grads.append(torch.autograd.grad(y, (problem.x, problem.residual), problem.dy.contiguous()))
    assert all(torch.allclose(mine, other, atol=1e-5) for mine, other in zip(*grads))


def test_under_autocast_it_is_the_dtype_of_x() -> None:
    problem = norm_cases.build(Case("half", dtype=BF16, residual=False))
    with torch.autocast("cpu", BF16), enabled():
        y = norm_act(problem.norm, problem.x)
    assert y.dtype == BF16
    assert problem.norm.weight.dtype == F32


# --- where PyTorch's own operations run


def plain(channels: int = 16) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels)


def hooked() -> nn.Module:
    norm = plain()
    norm.register_forward_hook(lambda *_: None)
    return norm


class Other(nn.BatchNorm2d):
    pass


@pytest.mark.parametrize("norm", [plain().eval(), hooked(), Other(16), nn.InstanceNorm2d(16), plain(8)], ids=repr)
def test_other_modules_are_not_taken(norm: nn.Module) -> None:
    x = torch.randn(2, 16, 4, 4).to(memory_format=torch.channels_last)
    assert fused_norm._applies(plain(), x, None)
    assert not fused_norm._applies(norm, x, None)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 16, 4, 4),
        torch.randn(1, 16, 1, 1),
        torch.randn(0, 16, 4, 4),
        torch.randn(2, 16, 4, 4).to(memory_format=torch.channels_last)[..., ::2],
        torch.randn(2, 16, 4, 4, dtype=torch.complex64).to(memory_format=torch.channels_last),
    ],
    ids=["contiguous", "one row", "empty", "strided", "complex"],
)
def test_other_tensors_are_not_taken(x: torch.Tensor) -> None:
    assert not fused_norm._applies(plain(), x, None)


def test_one_row_is_refused_as_in_torch() -> None:
    with enabled(), pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        norm_act(plain(), torch.randn(1, 16, 1, 1))


def test_hooks_fire_and_torch_compile_sees_pytorchs_operations() -> None:
    norm, seen = plain(), []
    x = torch.randn(2, 16, 4, 4).to(memory_format=torch.channels_last)
    with enabled():
        compiled = torch.compile(lambda x: norm_act(norm, x), fullgraph=True, backend="aot_eager")
        compiled(x)
        norm.register_forward_hook(lambda *_: seen.append(1))
        norm_act(norm, x)
    assert seen == [1]


# --- networks and steps


@exhaustive
@pytest.mark.parametrize(
    "make", [lambda: lf.models.ResNet(8), lambda: lf.models.ResNeXt(8, cardinality=2)], ids=["resnet", "resnext"]
)
def test_a_network_in_float64_is_the_same(make) -> None:
    torch.manual_seed(0)
    one = make().double().to(memory_format=torch.channels_last).train()
    other = copy.deepcopy(one)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64).to(memory_format=torch.channels_last)
    with enabled():
        ours = one(x)
    right = other(x)
    torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-9)
    for out in (ours, right):
        out.square().sum().backward()
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(parameter.grad, other.get_parameter(name).grad, rtol=1e-7, atol=1e-9, msg=name)
    for name, buffer in one.named_buffers():
        torch.testing.assert_close(buffer, other.get_buffer(name), rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("bn_policy", but_first(["composed", "both", "teacher_fed"]))
@pytest.mark.parametrize("dtype", but_first([torch.float64, F32]))
def test_a_step_trains_the_same(dtype: torch.dtype, bn_policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    states, losses, taken = [], [], []
    apply = fused_norm._fused
    monkeypatch.setattr(fused_norm, "_fused", lambda *inputs: taken.append(1) or apply(*inputs))
    for fused in (True, False):
        torch.manual_seed(0)
        teacher, student = (lf.split(lf.models.ResNet(depth).to(dtype)) for depth in (14, 8))
        for network in (teacher, student):
            network.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(student.train().parameters(), lr=2**-6, momentum=0.9)
        step = lf.LITStep(
            teacher, student, lf.LITLoss(backend="eager"), optimizer, engine="eager", bn_policy=bn_policy,
            fused_norm=fused,
        )  # fmt: skip
        images = torch.randn(4, 3, 8, 8, dtype=dtype).to(memory_format=torch.channels_last)
        losses.append(torch.stack([step(images, torch.arange(4)).total for _ in range(2)]))
        states.append(student.model.state_dict())
    assert len(taken) == 2 * (7 + 4)  # of two steps: the stem, 3 blocks, and those of sections 2 and 3 again
    assert not fused_norm._on
    rounding = 1e-8 if dtype == torch.float64 else 2e-2
    torch.testing.assert_close(losses[0], losses[1], rtol=rounding, atol=0)
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=rounding, atol=rounding, msg=name)


def test_a_step_of_a_network_that_does_not_call_norm_act(monkeypatch: pytest.MonkeyPatch) -> None:
    states, losses, taken = [], [], []
    apply = fused_norm._fused
    monkeypatch.setattr(fused_norm, "_fused", lambda *inputs: taken.append(1) or apply(*inputs))
    for fused in (True, False):
        teacher, student = (norm_networks.split(seed) for seed in (0, 1))
        for network in (teacher, student):
            network.double().to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(student.parameters(), lr=2**-6, momentum=0.9)
        step = lf.LITStep(
            teacher, student, lf.LITLoss(backend="eager"), optimizer, engine="eager", fused_norm=fused
        )  # fmt: skip
        torch.manual_seed(2)
        images = torch.randn(4, 3, 8, 8, dtype=torch.float64).to(memory_format=torch.channels_last)
        losses.append(torch.stack([step(images, torch.arange(4)).total for _ in range(2)]))
        states.append(student.model.state_dict())
    composed, fed = norm_networks.FUSED, norm_networks.FUSED - 3  # without stem and section 1
    assert len(taken) == 2 * (composed + fed)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-8, atol=0)
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-8, atol=1e-8, msg=name)
