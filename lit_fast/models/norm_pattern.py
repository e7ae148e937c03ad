"""BatchNorm, addition and ReLU in the forwards of networks that do not call `norm_act` themselves.

A forward that does nothing but call its submodules, add and apply ReLU, as those of torchvision's and timm's ResNet
blocks and of nn.Sequential, is traced, and where ``relu(norm(x))`` or ``relu(norm(x) + residual)`` stands in it, that
becomes one call. The modules stay as they are: such a forward takes their place for the time of a pass.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lit_fast.errors import SplitError
from lit_fast.models.fused_norm import enabled, is_plain, norm_act
from lit_fast.sections.model import SplitModel
from lit_fast.sections.traced import TracedPart, generate
from lit_fast.sections.tracing import trace

__all__ = ["FusedForwards"]

_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_)
_SUMS = (operator.add, operator.iadd, torch.add)
_IN_PLACE = (operator.iadd, "add_")
# What a forward may name beside its submodules: nothing whose value could change after it was read.
_LIBRARIES: Mapping[str, types.ModuleType] = {"torch": torch, "nn": nn, "functional": F, "F": F}
_METHODS = ("relu", "relu_", "add", "add_")

Forward = Callable[[Any, Tensor], Any]  # of a module or a part, and its input


class FusedForwards:
    """Those of a student in train mode, wherever the pattern stands.

    Attributes:
        modules: whose forward they are: blocks and the like, and parts that were read themselves.
    """

    def __init__(self, student: SplitModel) -> None:
        found = [(module, _of_module(module)) for module in student.model.modules()]
        found += [(part, _of_part(part)) for part in student.parts if isinstance(part, TracedPart)]
        self._forwards = [(module, forward, dict(module._modules)) for module, forward in found if forward is not None]
        self.modules = [module for module, *_ in self._forwards]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within the context they run, and `norm_act` uses the kernels wherever it can."""
        replaced = []
        try:
            for module, forward, children in self._forwards:
                if _trains(module) and "forward" not in vars(module) and module._modules == children:
                    module.__dict__["forward"] = types.MethodType(forward, module)
                    replaced.append(module)
            with enabled():
                yield
        finally:
            for module in replaced:
                del module.__dict__["forward"]


def _trains(module: nn.Module) -> bool:
    return module.training and (not isinstance(module, TracedPart) or module.owner.training)


# --- which forwards


def _of_module(module: nn.Module) -> Forward | None:
    """The forward of one with the pattern in it; None for others."""
    if not any(type(child) is nn.BatchNorm2d for child in module.children()) or not _reads_submodules_alone(module):
        return None
    try:
        graph = trace(module, (), training=True).graph
    except SplitError:
        return None
    return _forward(graph, dict(module.named_modules()), type(module).__name__, lambda m: m, type(module).forward)


def _of_part(part: TracedPart) -> Forward | None:
    modules = dict(part.owner.named_modules())
    return _forward(part.train_graph, modules, part.name, lambda p: p.owner, TracedPart.forward)


def _reads_submodules_alone(module: nn.Module) -> bool:
    """Whether its forward decides by nothing but which submodules there are: a trace of it then stays true."""
    forward = type(module).forward
    if "forward" in vars(module) or not isinstance(forward, types.FunctionType):
        return False
    code = forward.__code__
    if code.co_argcount != 2 or code.co_kwonlyargcount or code.co_freevars or any(
        isinstance(constant, types.CodeType) for constant in code.co_consts
    ):  # fmt: skip
        return False
    return all(_is_known(name, module, forward) for name in code.co_names)


def _is_known(name: str, module: nn.Module, forward: types.FunctionType) -> bool:
    library = _LIBRARIES.get(name)
    if library is not None and forward.__globals__.get(name) is library:
        return True
    return name in module._modules or name in _METHODS or vars(module).get(name, ...) is None


def _forward(
    graph: fx.Graph,
    modules: Mapping[str, nn.Module],
    name: str,
    owner: Callable[[Any], nn.Module],
    original: Forward,
) -> Forward | None:
    """A forward made of a graph in which the pattern is one call; the original while one of its modules has hooks."""
    fused = fx.Graph()
    fused.output(fused.graph_copy(graph, {}))
    taken = [taken for node in list(fused.nodes) for taken in _fuse(node, modules)]
    if not taken:
        return None
    run = generate(fused, f"{name}, fused").run

    def forward(self: Any, x: Tensor) -> Any:
        root = owner(self)
        if all(is_plain(root.get_submodule(path)) for path in taken):
            return run(root, x)
        return original(self, x)

    return forward


# --- the pattern


def _fuse(relu: fx.Node, modules: Mapping[str, nn.Module]) -> list[str]:
    """Replace what ends in this node by one call, and name the modules that it stands for; [] if nothing does."""
    if not _is_relu(relu, modules):
        return []
    total, passed = _behind_identities(relu.all_input_nodes[0], modules)
    norm, residual = total, None
    if _is_sum(total):
        norm, residual, more = _terms(total, modules)
        # The sum is made later than it was: nobody may write to a term, or read the norm's input, in between.
        if len(total.users) > 1 or _after_identities(total, modules) is not relu or not isinstance(residual, fx.Node):
            return []
        passed = [*passed, total, *more]
    if not _is_norm(norm, modules):
        return []
    (source,) = norm.all_input_nodes
    if residual is not None and len(source.users) > 1:
        return []
    replaced = {relu, norm, *passed}
    graph = relu.graph
    with graph.inserting_before(norm if residual is None else relu):
        module = graph.get_attr(str(norm.target))
        if residual is None:
            called = graph.call_function(norm_act, (module, source))
        else:
            called = graph.call_function(_norm_add_relu, (module, source, residual, total.target in _IN_PLACE))
    relu.replace_all_uses_with(called)
    for node in reversed([node for node in graph.nodes if node in replaced]):
        graph.erase_node(node)
    return [str(node.target) for node in replaced if node.op == "call_module"]


def _terms(total: fx.Node, modules: Mapping[str, nn.Module]) -> tuple[Any, Any, list[fx.Node]]:
    """Of a sum: the term that a norm gave, the other one, and what hands the first on."""
    first, second = total.args
    norm, passed = _behind_identities(first, modules)
    if _is_norm(norm, modules) or total.target in _IN_PLACE:  # which writes to the first
        return norm, second, passed
    norm, passed = _behind_identities(second, modules)
    return norm, first, passed


def _norm_add_relu(norm: nn.BatchNorm2d, x: Tensor, residual: Tensor, in_place: bool) -> Tensor:
    """``relu(norm(x) + residual)``, of the shape and dtype that it has in the network."""
    if in_place or (residual.shape, residual.dtype) == (x.shape, x.dtype):
        return norm_act(norm, x, residual)
    return F.relu(norm(x) + residual)


def _is_relu(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if len(node.all_input_nodes) != 1 or len(node.args) != 1:
        return False
    if node.op == "call_module":
        return type(modules[str(node.target)]) is nn.ReLU
    if node.op == "call_function":
        return node.target in _RELUS
    return node.op == "call_method" and node.target in ("relu", "relu_")


def _is_norm(node: Any, modules: Mapping[str, nn.Module]) -> bool:
    """Whether it is a BatchNorm whose result is used once."""
    if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.users) != 1:
        return False
    return type(modules[str(node.target)]) is nn.BatchNorm2d and len(node.args) == 1 and not node.kwargs


def _is_sum(node: Any) -> bool:
    if not isinstance(node, fx.Node) or len(node.args) != 2 or node.kwargs:
        return False
    return (node.op == "call_function" and node.target in _SUMS) or (
        node.op == "call_method" and node.target in ("add", "add_")
    )


def _is_identity(node: Any, modules: Mapping[str, nn.Module]) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_module" and type(modules[str(node.target)]) is nn.Identity


def _behind_identities(node: Any, modules: Mapping[str, nn.Module]) -> tuple[Any, list[fx.Node]]:
    """What modules that hand on what they get were given, where nobody else uses it; and those modules."""
    passed = []
    while _is_identity(node, modules) and len(node.users) == 1:
        passed.append(node)
        node = node.all_input_nodes[0]
    return node, passed


def _after_identities(node: fx.Node, modules: Mapping[str, nn.Module]) -> fx.Node:
    node = node.next
    while _is_identity(node, modules):
        node = node.next
    return node
