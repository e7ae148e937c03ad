"""The compiled loss as a node of the autograd graph (csrc/autograd.cpp), against those of the other backends."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import lit_fast
from lit_fast.loss import functional
from lit_fast.loss.backends import Inputs, LossOptions, LossParts, eager, fused, native
from lit_fast.loss.backends.checks import check_inputs
from lit_fast.loss.backends.ops import arguments

if not native.available()[0]:
    pytest.skip(f"no compiled extension: {native.available()[1]}", allow_module_level=True)

Loss = Callable[..., LossParts]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
NODE = "lit_fast::LitLossBackward"


def in_python() -> Loss:
    """The same ops with the node that Triton's have, which is written in Python."""
    ops = torch.ops.lit_fast
    return functools.partial(fused.lit_loss, fused.Ops(ops.lit_loss.default, ops.rescale_.default))


class Problem:
    """The tensors of one loss; the first and the third IR, and the logits, need a gradient."""

    def __init__(self, dtype: torch.dtype = torch.float32, grad_scale: float | None = None) -> None:
        generator = torch.Generator().manual_seed(0)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        shapes = ((4, 3, 2, 2), (4, 5), (4, 2, 3))
        self.irs = [randn(*shape).requires_grad_(i != 1) for i, shape in enumerate(shapes)]
        self.teacher_irs = [randn(*shape) for shape in shapes]
        self.logits, self.teacher_logits = randn(4, 6).requires_grad_(), randn(4, 6)
        self.labels = torch.tensor([0, 5, 2, 3])
        self.grad_scale = None if grad_scale is None else torch.tensor(grad_scale)

    def inputs(self) -> Inputs:
        return Inputs(
            self.irs, self.teacher_irs, self.logits, self.teacher_logits, self.labels, grad_scale=self.grad_scale
        )

    def leaves(self) -> list[Tensor]:
        return [self.irs[0], self.irs[2], self.logits]

    def total(self, loss: Loss = native.lit_loss) -> Tensor:
        return loss(self.inputs(), LossOptions()).total


def ir_loss(student: Tensor, loss: Loss = native.lit_loss, grad_scale: Tensor | None = None) -> Tensor:
    inputs = Inputs([student], [torch.zeros_like(student)], grad_scale=grad_scale)
    return loss(inputs, LossOptions(beta=0.0)).total


# --- which node


def test_the_compiled_node_is_taken() -> None:
    assert NODE in Problem().total().grad_fn.name()
    assert NODE not in Problem().total(in_python()).grad_fn.name()


def test_no_node_where_nothing_needs_a_gradient() -> None:
    problem = Problem()
    with torch.no_grad():
        assert problem.total().grad_fn is None
    with torch.inference_mode():
        assert problem.total().grad_fn is None
    problem.irs, problem.logits = [ir.detach() for ir in problem.irs], problem.logits.detach()
    assert problem.total().grad_fn is None


@pytest.mark.parametrize("scaled", [False, True])
def test_compiled_graphs_give_what_the_node_gives(scaled: bool) -> None:
    problem = Problem(grad_scale=16.0 if scaled else None)

    def loss(irs: list[Tensor], logits: Tensor) -> LossParts:
        return native.lit_loss(Inputs(irs, problem.teacher_irs, logits, *problem.inputs()[3:]), LossOptions())

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(problem.irs, problem.logits)
    plain = loss(problem.irs, problem.logits)
    assert NODE in plain.total.grad_fn.name()
    assert all(map(torch.equal, compiled, plain))
    by = torch.tensor(3.0)
    grads = (torch.autograd.grad(parts.total, problem.leaves(), by) for parts in (compiled, plain))
    for left, right in zip(*grads):
        torch.testing.assert_close(left, right)


def test_backward_may_be_compiled() -> None:
    compiled_autograd = pytest.importorskip("torch._dynamo.compiled_autograd")
    if not hasattr(compiled_autograd, "_enable"):
        pytest.skip("this torch compiles backward by another name")
    student = torch.randn(3, 4, requires_grad=True)
    (expected,) = torch.autograd.grad(ir_loss(student), student)
    total = ir_loss(student)
    with compiled_autograd._enable(torch.compile(backend="eager")):
        total.backward()
    torch.testing.assert_close(student.grad, expected)


# --- gradients


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grad_scale", [None, 1024.0])
@pytest.mark.parametrize("grad_output", [1.0, 1024.0, 3.0])
@pytest.mark.parametrize("retain_graph", [False, True])
def test_same_bits_as_the_node_in_python(dtype, grad_scale, grad_output, retain_graph) -> None:
    problem = Problem(dtype, grad_scale)
    results = []
    for loss in (native.lit_loss, in_python()):
        parts = loss(problem.inputs(), LossOptions())
        by = torch.tensor(grad_output, dtype=parts.total.dtype)
        grads = torch.autograd.grad(parts.total, problem.leaves(), by, retain_graph=retain_graph)
        results.append([*parts, *grads])
    for ours, theirs in zip(*results):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("grad_scale", [None, 8.0])
def test_gradients_are_those_of_eager(grad_scale: float | None) -> None:
    problem = Problem(torch.float64, grad_scale)
    ours, theirs = (
        torch.autograd.grad(problem.total(loss), problem.leaves()) for loss in (native.lit_loss, eager.lit_loss)
    )
    for mine, right in zip(ours, theirs):
        torch.testing.assert_close(mine, right)


def test_backward_gives_to_those_alone_that_need_a_gradient() -> None:
    problem = Problem()
    problem.total().backward()
    assert [ir.grad is not None for ir in problem.irs] == [True, False, True]
    assert problem.logits.grad is not None
    problem.logits = problem.logits.detach()
    problem.total().backward()
    assert problem.logits.grad is None


@pytest.mark.parametrize("retain_graph", [False, True])
def test_one_gradient_alone_may_be_asked_for(retain_graph: bool) -> None:
    problem = Problem()
    expected = torch.autograd.grad(problem.total(), problem.leaves())
    for leaf, right in zip(problem.leaves(), expected):
        (grad,) = torch.autograd.grad(problem.total(), leaf, retain_graph=retain_graph)
        assert torch.equal(grad, right)


def test_a_tensor_that_is_two_irs_gets_the_sum() -> None:
    student, other = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5)

    def total(loss: Loss) -> Tensor:
        inputs = Inputs([student, student], [other, torch.zeros_like(other)])
        return loss(inputs, LossOptions(beta=0.0)).total

    ours, theirs = (torch.autograd.grad(total(loss), student)[0] for loss in (native.lit_loss, eager.lit_loss))
    torch.testing.assert_close(ours, theirs)


class NothingBack(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, _grad: Tensor) -> None:  # type: ignore[override]
        return None


@pytest.mark.parametrize("loss", [native.lit_loss, in_python()], ids=["compiled", "python"])
def test_a_gradient_that_never_came_is_zero(loss: Loss) -> None:
    student = torch.randn(3, requires_grad=True)
    (grad,) = torch.autograd.grad(NothingBack.apply(ir_loss(student, loss)), student)
    assert torch.equal(grad, torch.zeros(3))


def test_hooks_of_the_total_change_the_gradient() -> None:
    student = torch.randn(3, requires_grad=True)
    total = ir_loss(student, grad_scale=torch.tensor(4.0))
    total.register_hook(lambda grad: 10 * grad)
    (grad,) = torch.autograd.grad(total, student)
    torch.testing.assert_close(grad, 10 * 2 / 3 * student.detach())


def test_autocast_changes_nothing() -> None:
    problem = Problem()
    plain = torch.autograd.grad(problem.total(), problem.leaves())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = problem.total()
        cast = torch.autograd.grad(total, problem.leaves())
    assert torch.equal(total, problem.total())
    assert all(map(torch.equal, cast, plain))


def test_losses_of_several_threads_do_not_disturb_each_other() -> None:
    def grads(number: int) -> list[Tensor]:
        student = torch.full((50,), float(number), requires_grad=True)
        return [torch.autograd.grad(ir_loss(student), student)[0] for _ in range(50)]

    expected = [grads(number) for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for found, right in zip(pool.map(grads, range(8)), expected):
            assert all(map(torch.equal, found, right))


# --- what is saved


class Kept:
    """What a hook packs: it lives as long as the graph holds the saved tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def test_saved_gradients_are_released_by_backward_unless_the_graph_is_kept() -> None:
    problem = Problem(grad_scale=2.0)
    kept: list[weakref.ref[Kept]] = []

    def pack(tensor: Tensor) -> Kept:
        packed = Kept(tensor)
        kept.append(weakref.ref(packed))
        return packed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed.tensor):
        total = problem.total()
    assert len(kept) == 5  # three IRs, logits and the scale
    total.backward(retain_graph=True)
    assert all(ref() is not None for ref in kept)
    total.backward()
    assert all(ref() is None for ref in kept)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        total.backward()


def test_saved_tensors_may_be_kept_elsewhere() -> None:
    problem = Problem(torch.float16, 1024.0)
    expected = torch.autograd.grad(problem.total(), problem.leaves())
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.numpy().copy(), torch.from_numpy):
        total = problem.total()
    assert all(map(torch.equal, torch.autograd.grad(total, problem.leaves()), expected))


def test_a_scale_that_was_changed_in_place_is_an_error() -> None:
    for loss in (native.lit_loss, in_python()):
        student, scale = torch.randn(3, requires_grad=True), torch.tensor(4.0)
        total = ir_loss(student, loss, scale)
        scale.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            total.backward()


def test_total_may_be_changed_in_place_and_the_parts_stay() -> None:
    problem = Problem()
    plain = native.lit_loss(problem.inputs(), LossOptions())
    expected = torch.autograd.grad(plain.total, problem.leaves())
    parts = native.lit_loss(problem.inputs(), LossOptions())
    parts.total.mul_(4)
    assert torch.equal(parts.total, 4 * plain.total)
    assert all(map(torch.equal, parts[1:], plain[1:]))
    for grad, right in zip(torch.autograd.grad(parts.total, problem.leaves()), expected):
        torch.testing.assert_close(grad, 4 * right)


# --- limits


def test_double_backward_is_refused_in_the_words_of_eager() -> None:
    words = []
    for loss in (native.lit_loss, in_python(), eager.lit_loss):
        student = torch.randn(3, requires_grad=True)
        with pytest.raises(RuntimeError) as error:
            torch.autograd.grad(ir_loss(student, loss), student, create_graph=True)
        words.append(str(error.value))
    assert words[0] == words[1] == words[2]


@pytest.mark.parametrize("loss", [native.lit_loss, in_python()], ids=["compiled", "python"])
def test_transforms_of_torch_func_are_refused(loss: Loss) -> None:
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(functools.partial(ir_loss, loss=loss))(torch.randn(3))
    with torch.autograd.forward_ad.dual_level():
        student = torch.autograd.forward_ad.make_dual(torch.randn(3, requires_grad=True), torch.ones(3))
        with pytest.raises(RuntimeError, match="jvp"):
            ir_loss(student, loss)


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_opcheck(dtype: torch.dtype, needs_grad: bool) -> None:
    problem = Problem(dtype, 8.0)
    if not needs_grad:
        problem.irs, problem.logits = [ir.detach() for ir in problem.irs], problem.logits.detach()
    torch.library.opcheck(torch.ops.lit_fast.lit_loss_total.default, arguments(problem.inputs(), LossOptions()))


# --- the very scale that the loss was computed with


@pytest.mark.parametrize("loss", [native.lit_loss, in_python()], ids=["compiled", "python"])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_backward_from_the_scale_itself_changes_nothing_and_launches_nothing(loss: Loss, scale: float) -> None:
    problem = Problem(grad_scale=scale)
    expected = torch.autograd.grad(problem.total(loss), problem.leaves(), problem.grad_scale.clone())
    total = problem.total(loss)
    with torch.profiler.profile() as profile:
        grads = torch.autograd.grad(total, problem.leaves(), problem.grad_scale)
    assert all(map(torch.equal, grads, expected))
    assert not any("rescale_" in event.key for event in profile.key_averages())


# --- without checks in Python


def test_usual_tensors_are_checked_by_the_op_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem()
    arguments = problem.irs, problem.teacher_irs, problem.logits, problem.teacher_logits, problem.labels
    expected = lit_fast.lit_loss(*arguments, rows=torch.ones(4, dtype=torch.bool))  # goes the long way
    calls: list[object] = []
    monkeypatch.setattr(functional, "check_inputs", lambda *given: calls.append(given) or check_inputs(*given))
    assert torch.equal(lit_fast.lit_loss(*arguments), expected)
    assert torch.equal(lit_fast.LITLoss()(*arguments, grad_scale=torch.tensor(2.0)), expected)
    assert calls == []
    with pytest.raises(ValueError, match="section 2: student gives"):
        lit_fast.lit_loss(problem.irs, [*problem.teacher_irs[:1], torch.zeros(4, 6), problem.irs[2]], *arguments[2:])
    assert len(calls) == 1
