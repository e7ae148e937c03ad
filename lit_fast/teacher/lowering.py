"""Lower a part of a frozen network to the instructions of csrc/teacher/program.cpp.

The part is traced to ATen operations (in eval mode, with the parameters as constants). BatchNorm is folded into the
convolution before it, and a convolution takes in the residual and the ReLU behind it. What has no instruction makes
the whole part unlowerable: ``NotLowerable`` says what it was, and the part runs as the module it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from lit_fast.errors import NotLowerable
from lit_fast.loss.targets import logits_of
from lit_fast.sections.dryrun import first_line
from lit_fast.teacher.instruction import NONE, RELU, Instruction, fold, overwrite_residuals

__all__ = ["lower"]

aten = torch.ops.aten


def lower(part: nn.Module, example: Tensor) -> tuple[list[Instruction], int]:
    """The instructions of a part, and the register of its result; register 0 is its input.

    Args:
        part: in eval mode; maps one tensor to one, or to an output with logits, which alone are computed.
        example: an input of it, with a batch of at least two.

    Raises:
        NotLowerable: the part does something that has no instruction, or that cannot be traced.
    """
    try:
        with torch.no_grad():
            graph = make_fx(lambda x: logits_of(part(x)), pre_dispatch=True)(example)
    except Exception as error:  # whatever the user's modules and hooks do to a tensor without a value
        raise NotLowerable(f"it cannot be traced to operations ({first_line(error)})") from error
    try:
        return _Lowering(graph, batch=example.shape[0]).run()
    except NotLowerable:
        raise
    except Exception as error:  # operations with arguments that no instruction was thought for
        raise NotLowerable(f"its operations have no instructions ({first_line(error)})") from error


_ENDS_IN_RELU = ("convolution", "linear", "scale_shift", "instance_norm", "add")
_SAME = (aten.detach.default, aten.contiguous.default, aten.clone.default, aten.alias.default, aten.dropout.default)


class _Lowering:
    """One pass over a traced graph; fuses an operation into the instruction before it where only it reads that one."""

    def __init__(self, graph: fx.GraphModule, batch: int) -> None:
        self.graph, self.batch = graph, batch
        self.steps: list[Instruction] = []
        self.register: dict[fx.Node, int] = {}
        self.constant: dict[fx.Node, Any] = {}
        self.shared: set[int] = set()  # registers that are read under two names

    def run(self) -> tuple[list[Instruction], int]:
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                self.register[node] = 0
            elif node.op == "get_attr":
                self.constant[node] = getattr(self.graph, node.target)
            elif node.op == "call_function":
                if node.users:
                    self._call(node)
            elif node.op == "output":
                (result,) = node.args if not isinstance(node.args[0], (tuple, list)) else node.args[0]
                if result not in self.register:
                    raise NotLowerable("an output that is not a tensor computed from the input")
                return self._numbered(self.register[result])
        raise AssertionError("a graph has an output")

    # -- registers ---------------------------------------------------------------------------------------------------

    def _of(self, node: Any) -> int:
        if not isinstance(node, fx.Node) or node not in self.register:
            raise NotLowerable(f"an operand that is no tensor computed from the input: {node}")
        return self.register[node]

    def _value(self, argument: Any) -> Any:
        return self.constant.get(argument, None) if isinstance(argument, fx.Node) else argument

    def _emit(self, node: fx.Node, op: str, source: Any, other: Any = None, **fields: Any) -> None:
        step = Instruction(op, self._of(source), len(self.steps) + 1, NONE if other is None else self._of(other))
        step.numbers = list(fields.get("numbers", ()))
        step.floats = list(fields.get("floats", ()))
        step.tensors = [tensor.detach() for tensor in fields.get("tensors", ()) if tensor is not None]
        self.steps.append(step)
        self.register[node] = step.output

    def _writer(self, node: Any) -> Instruction | None:
        """The step that computes a node which nothing else reads: what follows can be fused into it."""
        register = self.register.get(node) if isinstance(node, fx.Node) else None
        if not register or register in self.shared or len(node.users) != 1:
            return None
        return self.steps[register - 1]

    def _numbered(self, output: int) -> tuple[list[Instruction], int]:
        """Residuals may be computed after the convolution that takes them in: steps are put in order and renumbered."""
        order: list[Instruction] = []
        new = {0: 0}
        waiting = list(self.steps)
        while waiting:
            step = next(s for s in waiting if s.input in new and (s.other == NONE or s.other in new))
            waiting.remove(step)
            order.append(step)
            new[step.output] = len(order)
        for step in order:
            step.input, step.output = new[step.input], new[step.output]
            step.other = new.get(step.other, NONE)
        overwrite_residuals(order, new[output])
        return order, new[output]

    def _alias(self, node: fx.Node, source: Any) -> None:
        """Another name of what a register holds."""
        self.register[node] = self._of(source)
        if len(source.users) > 1:
            self.shared.add(self.register[node])

    # -- operations --------------------------------------------------------------------------------------------------

    def _call(self, node: fx.Node) -> None:
        if node.target in _SAME:
            if node.target is aten.dropout.default and node.args[2]:
                raise NotLowerable("dropout in train mode")
            self._alias(node, node.args[0])
            return
        emit = _EMITTERS.get(node.target)
        if emit is None:
            raise NotLowerable(str(node.target))
        emit(self, node, *_arguments(node))

    def convolution(
        self, node: fx.Node, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int,
        outside: Any = None,
    ) -> None:  # fmt: skip
        value = self._value(weight)
        if not isinstance(value, Tensor):
            raise NotLowerable("a convolution whose weight is computed")
        dims = value.dim() - 2
        if isinstance(padding, str):
            padding = _padding_in_numbers(padding, value.shape[2:], _each(dilation, dims))
        sizes = [n for numbers in (stride, padding, dilation, outside or [0]) for n in _each(numbers, dims)]
        numbers = [0, 0, int(outside is not None), groups, 1, *sizes]
        self._emit(node, "convolution", x, numbers=numbers, tensors=(value, self._value(bias)))

    def transposed(
        self, node: fx.Node, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, outside: Any, groups: int,
        dilation: Any,
    ) -> None:  # fmt: skip
        self.convolution(node, x, weight, bias, stride, padding, dilation, groups, outside)

    def batch_norm(
        self, node: fx.Node, x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, _momentum: float,
        eps: float, _cudnn: bool,
    ) -> None:  # fmt: skip
        if training:
            raise NotLowerable("a BatchNorm that uses the batch's statistics (no running ones)")
        scale = (self._value(var).double() + eps).rsqrt()
        scale = scale if self._value(weight) is None else scale * self._value(weight).double()
        shift = -self._value(mean).double() * scale
        shift = shift if self._value(bias) is None else shift + self._value(bias).double()
        writer = self._writer(x)
        if writer is not None and writer.op == "convolution" and not writer.numbers[RELU] and writer.other == NONE:
            fold(writer, scale, shift)
            self.register[node] = writer.output
            return
        dtype = self._value(mean).dtype
        channels = [tensor.to(dtype).view(-1, *[1] * (_dims(node) - 2)) for tensor in (scale, shift)]
        self._emit(node, "scale_shift", x, numbers=[0], tensors=channels)

    def instance_norm(
        self, node: fx.Node, x: Any, weight: Any, bias: Any, mean: Any, var: Any, use_input: bool, momentum: float,
        eps: float, cudnn: bool,
    ) -> None:  # fmt: skip
        if not use_input:
            self.batch_norm(node, x, weight, bias, mean, var, False, momentum, eps, cudnn)
            return
        self._emit(
            node, "instance_norm", x, numbers=[0], floats=[eps], tensors=(self._value(weight), self._value(bias))
        )

    def add(self, node: fx.Node, x: Any, y: Any, alpha: Any = 1) -> None:
        if alpha != 1:
            raise NotLowerable("an addition with a factor")
        for sum_in, residual in ((x, y), (y, x)):
            writer = self._writer(sum_in)
            fits = writer is not None and writer.op == "convolution" and writer.other == NONE
            fits = fits and _alike(sum_in, residual, node)
            if writer is not None and fits and not writer.numbers[RELU] and self._comes_before(residual, writer):
                writer.other = self._of(residual)
                self.register[node] = writer.output
                return
        self._emit(node, "add", x, y, numbers=[0])

    def _comes_before(self, residual: Any, writer: Instruction) -> bool:
        """Whether a residual does not itself need what the convolution computes."""
        needed = {self._of(residual)}
        for step in reversed(self.steps):
            if step.output in needed:
                needed |= {step.input, step.other}
        return writer.output not in needed

    def relu(self, node: fx.Node, x: Any) -> None:
        writer = self._writer(x)
        if writer is not None and writer.op in _ENDS_IN_RELU:
            writer.numbers[RELU] = 1
            self.register[node] = writer.output
            return
        self._emit(node, "relu", x)

    def linear(self, node: fx.Node, x: Any, weight: Any, bias: Any = None) -> None:
        self._emit(node, "linear", x, numbers=[0], tensors=(self._value(weight), self._value(bias)))

    def mean(self, node: fx.Node, x: Any, dims: Any, keep: bool = False, dtype: Any = None) -> None:
        if dtype is not None:
            raise NotLowerable("a mean in another dtype")
        self._emit(node, "mean", x, numbers=[int(keep), *dims])

    def adaptive_pool(self, node: fx.Node, x: Any, size: Any) -> None:
        if any(n != 1 for n in size):
            raise NotLowerable(f"adaptive pooling to {tuple(size)}")
        self._emit(node, "mean", x, numbers=[1, *range(-len(size), 0)])

    def max_pool(
        self, node: fx.Node, x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool
    ) -> None:
        sizes = [n for numbers in (kernel, stride or kernel, padding, dilation) for n in _each(numbers, len(kernel))]
        self._emit(node, "max_pool", x, numbers=[*sizes, int(ceil)])

    def avg_pool(
        self,
        node: fx.Node,
        x: Any,
        kernel: Any,
        stride: Any,
        padding: Any,
        ceil: bool,
        count: bool,
        divisor: Any = None,
    ) -> None:
        if divisor is not None:
            raise NotLowerable("average pooling with a divisor of its own")
        sizes = [n for numbers in (kernel, stride or kernel, padding) for n in _each(numbers, len(kernel))]
        self._emit(node, "avg_pool", x, numbers=[*sizes, int(ceil), int(count)])

    def flatten(self, node: fx.Node, x: Any, start: int, end: int = -1) -> None:
        if end not in (-1, _dims(x) - 1):
            raise NotLowerable("a flatten of inner dimensions")
        self._emit(node, "flatten", x, numbers=[start])

    def view(self, node: fx.Node, x: Any, sizes: Any) -> None:
        if len(sizes) != 2 or sizes[0] not in (self.batch, -1) or sizes[1] not in (-1, _numel(x) // self.batch):
            raise NotLowerable(f"a view to {tuple(sizes)}")
        self._emit(node, "flatten", x, numbers=[1])

    def slice(self, node: fx.Node, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> None:
        largest = 2**63 - 1
        if not start and end in (None, largest) and step == 1:
            self._alias(node, x)  # some releases of torch trace x[:] as a slice
            return
        self._emit(node, "slice", x, numbers=[dim, start or 0, largest if end is None else end, step])

    def pad(self, node: fx.Node, x: Any, sizes: Any, mode: str = "constant", value: Any = None) -> None:
        if mode != "constant":
            raise NotLowerable(f"padding by {mode}")
        self._emit(node, "pad", x, numbers=sizes, floats=[float(value or 0)])

    def transpose(self, node: fx.Node, x: Any, one: int, other: int) -> None:
        self._emit(node, "transpose", x, numbers=[one, other])

    def embedding(self, node: fx.Node, weight: Any, x: Any, *_training: Any) -> None:
        self._emit(node, "embedding", x, tensors=(self._value(weight),))

    def topk(self, node: fx.Node, x: Any, k: int, dim: int, largest: bool, ordered: bool) -> None:
        self._emit(node, "topk", x, numbers=[k, dim, int(largest), int(ordered), self._output(node)])

    def sort(self, node: fx.Node, x: Any, dim: int, descending: bool) -> None:
        self.stable_sort(node, x, False, dim, descending)

    def stable_sort(self, node: fx.Node, x: Any, stable: bool | None, dim: int, descending: bool) -> None:
        self._emit(node, "sort", x, numbers=[int(bool(stable)), dim, int(descending), self._output(node)])

    def _output(self, node: fx.Node) -> int:
        """Which of the two outputs of an operation is used: 0, the values, or 1, the indices."""
        used: set[Any] = {user.args[1] for user in node.users if user.target is operator.getitem and user.users}
        if len(used) != 1:
            raise NotLowerable(f"both outputs of {node.target}")
        (output,) = used
        return int(output)

    def item(self, node: fx.Node, source: Any, _index: int) -> None:
        self._alias(node, source)

    def gather(self, node: fx.Node, x: Any, dim: int, index: Any, sparse_grad: bool = False) -> None:
        self._emit(node, "gather", x, index, numbers=[dim])

    def leaky_relu(self, node: fx.Node, x: Any, slope: float) -> None:
        self._emit(node, "leaky_relu", x, floats=[slope])

    def tanh(self, node: fx.Node, x: Any) -> None:
        self._emit(node, "tanh", x)

    def sigmoid(self, node: fx.Node, x: Any) -> None:
        self._emit(node, "sigmoid", x)


_EMITTERS: dict[Any, Callable[..., None]] = {
    aten.conv1d.default: _Lowering.convolution,
    aten.conv2d.default: _Lowering.convolution,
    aten.conv1d.padding: _Lowering.convolution,
    aten.conv2d.padding: _Lowering.convolution,
    aten.conv_transpose1d.default: _Lowering.transposed,
    aten.conv_transpose2d.input: _Lowering.transposed,
    aten.batch_norm.default: _Lowering.batch_norm,
    aten.instance_norm.default: _Lowering.instance_norm,
    aten.add.Tensor: _Lowering.add,
    aten.add_.Tensor: _Lowering.add,
    aten.relu.default: _Lowering.relu,
    aten.relu_.default: _Lowering.relu,
    aten.linear.default: _Lowering.linear,
    aten.mean.dim: _Lowering.mean,
    aten.adaptive_avg_pool1d.default: _Lowering.adaptive_pool,
    aten.adaptive_avg_pool2d.default: _Lowering.adaptive_pool,
    aten.max_pool1d.default: _Lowering.max_pool,
    aten.max_pool2d.default: _Lowering.max_pool,
    aten.avg_pool1d.default: _Lowering.avg_pool,
    aten.avg_pool2d.default: _Lowering.avg_pool,
    aten.flatten.using_ints: _Lowering.flatten,
    aten.view.default: _Lowering.view,
    aten.reshape.default: _Lowering.view,
    aten.slice.Tensor: _Lowering.slice,
    aten.pad.default: _Lowering.pad,
    aten.transpose.int: _Lowering.transpose,
    aten.embedding.default: _Lowering.embedding,
    aten.topk.default: _Lowering.topk,
    aten.sort.default: _Lowering.sort,
    aten.sort.stable: _Lowering.stable_sort,
    aten.gather.default: _Lowering.gather,
    operator.getitem: _Lowering.item,
    aten.leaky_relu.default: _Lowering.leaky_relu,
    aten.leaky_relu_.default: _Lowering.leaky_relu,
    aten.tanh.default: _Lowering.tanh,
    aten.sigmoid.default: _Lowering.sigmoid,
}


# -- helpers ---------------------------------------------------------------------------------------------------------


def _arguments(node: fx.Node) -> list[Any]:
    """All arguments of an operation, its defaults included, in the order of its schema."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return list(node.args)
    values = list(node.args)
    for argument in node.target._schema.arguments[len(values) :]:
        values.append(node.kwargs.get(argument.name, argument.default_value))
    return values


def _each(numbers: Any, dims: int) -> list[int]:
    """One number per dimension; a list of one stands for all."""
    listed = [numbers] if isinstance(numbers, int) else list(numbers)
    return listed * dims if len(listed) == 1 else listed


def _padding_in_numbers(word: str, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    both = [d * (k - 1) if word == "same" else 0 for k, d in zip(kernel, dilation)]
    if any(n % 2 for n in both):
        raise NotLowerable("a convolution that pads one side more than the other")
    return [n // 2 for n in both]


def _dims(node: Any) -> int:
    return node.meta["val"].dim()


def _alike(*nodes: Any) -> bool:
    """Whether they are all tensors of one shape and dtype: a residual that a convolution takes in is not broadcast."""
    values = [node.meta["val"] if isinstance(node, fx.Node) else None for node in nodes]
    kinds = {(value.shape, value.dtype) if isinstance(value, Tensor) else None for value in values}
    return len(kinds) == 1 and None not in kinds


def _numel(node: Any) -> int:
    return node.meta["val"].numel()
