"""``lit_fast::rescale_`` and how backward uses it: gradients that somebody holds are never changed."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_fast.loss.backends import Inputs, LossOptions, fused, native

pytestmark = pytest.mark.skipif(not native.available()[0], reason=f"no compiled extension: {native.available()[1]}")

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
IR_ONLY = LossOptions(beta=0.0)


def rescale_(*arguments):
    return torch.ops.lit_fast.rescale_(*arguments)


def loss_of(student: torch.Tensor) -> torch.Tensor:
    teacher = torch.zeros_like(student)
    return native.lit_loss(Inputs([student], [teacher]), IR_ONLY).total


def in_python():
    """The loss by the same ops and the node that Triton's have."""
    ops = torch.ops.lit_fast
    return functools.partial(fused.lit_loss, fused.Ops(ops.lit_loss.default, ops.rescale_.default))


class OpsSeen(TorchDispatchMode):
    """The names of the ops that are called, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_multiplies_in_place_and_rounds_once(dtype):
    grads = [torch.randn(5, 7).to(dtype), torch.randn(3, 4).to(dtype).t(), torch.empty(0, dtype=dtype)]
    expected = [(grad.double() * 65536.0).to(dtype) for grad in grads]
    rescale_(grads, torch.tensor(65536.0))
    for grad, right in zip(grads, expected):
        torch.testing.assert_close(grad, right, rtol=0, atol=0)


def test_a_factor_of_one_touches_nothing():
    grad = torch.tensor([1.0, float("nan"), -0.0])
    rescale_([grad], torch.ones(()))
    assert grad.view(torch.int32).tolist() == torch.tensor([1.0, float("nan"), -0.0]).view(torch.int32).tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale_dtype", DTYPES, ids=str)
def test_the_factor_is_divided_by_the_scale_in_float64(dtype, scale_dtype):
    factor, scale = torch.tensor(0.7), torch.tensor(3.0, dtype=scale_dtype)
    grad = torch.randn(50).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = (grad.to(wide) * (factor.item() / 3.0)).to(dtype)
    rescale_([grad], factor, scale)
    assert torch.equal(grad, expected)


def test_a_factor_equal_to_the_scale_touches_nothing():
    bits = torch.full((10,), 0x7FC1, dtype=torch.int16)  # a bfloat16 NaN that a product would change
    grad = bits.clone().view(torch.bfloat16)
    rescale_([grad], torch.tensor(0.3), torch.tensor(0.3))
    assert torch.equal(grad.view(torch.int16), bits)


def test_a_factor_of_several_numbers_is_an_error():
    with pytest.raises(ValueError, match="factor: expected one number"):
        rescale_([torch.ones(2)], torch.ones(2))
    with pytest.raises(ValueError, match="scale: expected one number"):
        rescale_([torch.ones(2)], torch.ones(()), torch.ones(2))


@pytest.mark.parametrize("scale", [None, torch.tensor(4.0)])
def test_opcheck(scale):
    grads = [torch.randn(3), torch.randn(2, 2)]
    torch.library.opcheck(torch.ops.lit_fast.rescale_.default, (grads, torch.tensor(2.0), scale))


@pytest.mark.parametrize("node", ["compiled", "python"])
def test_backward_is_one_op_whatever_the_scale(node):
    lit_loss = native.lit_loss if node == "compiled" else in_python()
    student = torch.randn(4, 6, dtype=torch.float16, requires_grad=True)
    scale = torch.tensor(1024.0)
    loss = lit_loss(Inputs([student], [torch.zeros_like(student)], grad_scale=scale), IR_ONLY).total
    with OpsSeen() as seen:
        torch.autograd.grad(loss, student, torch.tensor(1024.0))
    assert [name for name in seen.names if name.startswith("lit_fast")] == ["lit_fast::rescale_"]
    assert not {"aten::div", "aten::mul", "aten::zeros"}.intersection(seen.names)


@pytest.mark.parametrize("grad_output", [1.0, 3.0])
def test_gradients_of_a_kept_graph_stay_as_they_were_handed_out(grad_output):
    student = torch.randn(4, 6, requires_grad=True)
    loss = loss_of(student)
    (first,) = torch.autograd.grad(loss, student, torch.tensor(grad_output), retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, student, torch.tensor(5.0))
    torch.testing.assert_close(first, kept, rtol=0, atol=0)
    torch.testing.assert_close(second, 10 * student.detach() / student.numel())


def test_backward_of_a_scaled_loss_changes_gradients_in_place():
    student = torch.randn(1 << 16, requires_grad=True)
    address = torch.autograd.grad(loss_of(student), student)[0].data_ptr()
    loss = loss_of(student)
    (grad,) = torch.autograd.grad(loss, student, torch.tensor(4.0))
    torch.testing.assert_close(grad, 8 * student.detach() / student.numel())
    assert grad.data_ptr() == address  # of the gradient that the forward pass wrote
