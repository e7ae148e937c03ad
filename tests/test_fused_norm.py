"""BatchNorm, residual and ReLU in one call: PyTorch's own operations as long as the kernels are off or do not apply.

The kernels' results are tested in tests/triton_norm_interpreted.py, which tests/test_triton.py runs.
"""

from __future__ import annotations

import copy
import os
import sys

import norm_cases
import pytest
import torch
import torch.nn.functional as F
from norm_cases import Case
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import lit_fast as lf
from lit_fast.models import fused_norm
from lit_fast.models.fused_norm import enabled, norm_act


def test_it_is_off() -> None:
    assert not fused_norm._on
    with enabled():
        assert fused_norm._on
        with enabled(False):
            assert not fused_norm._on
        assert fused_norm._on
    assert not fused_norm._on


def test_the_switch_goes_back_where_something_raises() -> None:
    with pytest.raises(KeyError), enabled():
        raise KeyError
    assert not fused_norm._on


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("on", [False, True])
def test_off_or_on_a_cpu_it_is_torch_bit_for_bit(residual: bool, relu: bool, on: bool) -> None:
    problem = norm_cases.build(Case("plain", residual=residual, relu=relu))
    norm = copy.deepcopy(problem.norm)
    x, other = problem.x.detach().clone().requires_grad_(), problem.residual
    with enabled(on):
        y = norm_act(problem.norm, problem.x, problem.residual, relu=relu)
    right = norm(x) if other is None else norm(x) + other
    right = F.relu(right) if relu else right
    assert torch.equal(y, right)
    assert all(torch.equal(tensor, norm.get_buffer(name)) for name, tensor in problem.norm.named_buffers())
    (grad,), (right_grad,) = (torch.autograd.grad(out, leaf, problem.dy) for out, leaf in ((y, problem.x), (right, x)))
    assert torch.equal(grad, right_grad)


def test_neither_input_is_written_to() -> None:
    problem = norm_cases.build(Case("plain"))
    assert problem.residual is not None
    versions = problem.x._version, problem.residual._version
    norm_act(problem.norm, problem.x, problem.residual)
    assert (problem.x._version, problem.residual._version) == versions


def test_a_trace_sees_the_operations_of_a_block() -> None:
    block = lf.models.resnet20().layer1[0].eval()
    graph = make_fx(block, pre_dispatch=True)(torch.randn(1, 16, 4, 4)).graph
    names = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    wanted = ["conv2d", "batch_norm", "relu_", "conv2d", "batch_norm", "add_", "relu_"]
    assert [name.split(".")[1] for name in names] == wanted


def test_without_the_switch_triton_is_not_imported() -> None:
    problem = norm_cases.build(Case("plain"))
    norm_cases.run(problem, fused=False)
    assert "lit_fast.triton.batch_norm" not in sys.modules or "triton" in sys.modules


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="Triton interprets in this process")
def test_a_step_says_that_the_kernels_are_not_there() -> None:
    teacher, student = lf.split(lf.models.resnet20()), lf.split(lf.models.resnet20()).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match=r"fused_norm is not available: .*; use fused_norm=False"):
        lf.LITStep(teacher, student, lf.LITLoss(), optimizer, fused_norm=True)


def test_hooks_fire() -> None:
    norm, seen = nn.BatchNorm2d(4), []

    def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output.shape)

    norm.register_forward_hook(hook)
    with enabled():
        norm_act(norm, torch.randn(2, 4, 3, 3))
    assert seen == [(2, 4, 3, 3)]
