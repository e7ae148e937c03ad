"""Record a model's forward as a graph of its submodules, with torch.fx, no deeper than the cuts ask for.

A module without a cut inside it stays one opaque node, whatever its forward does. Only the forwards above the cuts are
read symbolically, so only those must be free of decisions on tensor values.
"""

from __future__ import annotations

import contextlib
import inspect
import linecache
import operator
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from lit_fast.errors import SplitError, UntraceableError

# Functions that make a tensor from nothing. Left alone they would run once, while tracing, and their result would be
# baked into the graph: random numbers drawn once, indices that stay on the CPU.
_FACTORIES = (
    *("arange", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "ones"),
    *("rand", "randint", "randn", "randperm", "tensor", "zeros"),
)
_TORCH = str(Path(torch.__file__).parent)
_IN_PLACE = ("add", "and", "floordiv", "matmul", "mod", "mul", "or", "pow", "sub", "truediv", "xor")


@dataclass
class Call:
    """One call of a watched module: what it got and what it gave, as the tracer's proxies."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


@dataclass
class Trace:
    """A model's forward in one mode: its graph, and the calls of the watched modules by name."""

    graph: fx.Graph
    calls: dict[str, list[Call]]


class _Proxy(fx.Proxy):
    """fx's proxy, but ``x += y`` and ``x[i] = y`` stay in place as the model wrote them."""

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def _in_place(name: str) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

    return method


for _name in _IN_PLACE:
    setattr(_Proxy, f"__i{_name}__", _in_place(f"i{_name}"))


class _CutTracer(fx.Tracer):
    proxy_buffer_attributes = True  # a slice of a buffer is recorded as such, not baked in
    param_shapes_constant = True

    def __init__(self, model: nn.Module, watched: Sequence[str]) -> None:
        super().__init__()
        self.watched = tuple(watched)
        self.calls: dict[str, list[Call]] = {}
        self.inside: list[tuple[str, nn.Module]] = [("", model)]
        self.ambient = _ambient()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(name.startswith(module_qualified_name + ".") for name in self.watched)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        # One input; other arguments of forward keep their defaults. Called through the instance, because a
        # forward that was replaced on the instance is the one that model(x) runs.
        forward = _forward_of(self.root, self.root.forward)
        return (lambda _root, x: forward(x)), [self.root, self.create_proxy("placeholder", "x", (), {})]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        name = self.path_of_module(m)
        leaf = self.is_leaf_module(m, name)
        if not leaf:
            self.inside.append((name, m))
        result = super().call_module(m, _forward_of(m, forward), args, kwargs)
        if not leaf:
            self.inside.pop()
        if name in self.watched:
            self.calls.setdefault(name, []).append(Call(args, kwargs, result))
        return result

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _ambient() != self.ambient:
            raise SplitError("it switches gradients or autocast on or off, which the parts would not repeat")
        node = super().create_node(*args, **kwargs)
        node.meta["line"] = _line_of_caller()
        return node

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter) and not self._is_known(a):
            raise SplitError(
                f"it uses a tensor of shape {tuple(a.shape)} that is no parameter, buffer or attribute of the model; "
                "register it as a buffer"
            )
        return super().create_arg(a)

    def _is_known(self, tensor: Tensor) -> bool:
        return tensor in self.tensor_attrs or any(tensor is buffer for buffer in self.root.buffers())


def trace(model: nn.Module, watched: Sequence[str], training: bool) -> Trace:
    """Trace ``model.forward`` in train or eval mode, reading only the modules that hold one of ``watched``.

    The model is left as it was: modes, attributes, buffers.

    Raises:
        SplitError: the forward cannot be traced; the message names the line, the cause and what to do.
    """
    tracer = _CutTracer(model, watched)
    _require_single_input(model)
    try:
        with _unchanged(model), set_mode(model, training), _record_factories(tracer):
            graph = tracer.trace(model)
    except Exception as error:
        raise _untraceable(tracer, error) from error
    return Trace(graph, tracer.calls)


@contextlib.contextmanager
def set_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Within the context every module's ``training`` flag is ``training``; afterwards each is what it was.

    Flags only: a model's own ``train()`` may do more than that.
    """
    before = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in before:
            module.training = training
        yield
    finally:
        for module, mode in before:
            module.training = mode


@contextlib.contextmanager
def _record_factories(tracer: fx.Tracer) -> Iterator[None]:
    """Within the context torch's factory functions are recorded instead of run.

    Patched as fx patches modules: a TorchFunctionMode never sees ``torch.zeros(x.shape[0], 4)``, which torch's argument
    parser rejects first.
    """

    def recorder(function: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            return tracer.create_proxy("call_function", function, args, kwargs)

        return record

    originals = {name: getattr(torch, name) for name in _FACTORIES}
    try:
        for name, function in originals.items():
            setattr(torch, name, recorder(function))
        yield
    finally:
        for name, function in originals.items():
            setattr(torch, name, function)


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Undo attributes that a traced forward sets (``self.last = x``), which would hold the tracer's proxies."""
    before = [(module, dict(module.__dict__)) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            if module.__dict__.keys() != attributes.keys() or any(
                module.__dict__[key] is not value for key, value in attributes.items()
            ):
                module.__dict__.clear()
                module.__dict__.update(attributes)


def _forward_of(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward``, or for nn.TransformerEncoder an equivalent that can be traced: its own asks for tensor ranks."""
    if type(module) is not nn.TransformerEncoder:
        return forward
    encoder = module

    def plain(src: Any, mask: Any = None, src_key_padding_mask: Any = None, is_causal: Any = None) -> Any:
        if mask is not None or src_key_padding_mask is not None or is_causal:
            raise SplitError(
                "nn.TransformerEncoder is called with a mask, and its forward decides on the mask's values; keep the "
                "layers in an nn.ModuleList and call each with the mask, or cut outside the encoder"
            )
        for layer in encoder.layers:
            src = layer(src)
        return src if encoder.norm is None else encoder.norm(src)

    return plain


def _require_single_input(model: nn.Module) -> None:
    parameters = inspect.signature(model.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    accepts = [p for p in parameters if p.kind in (*positional, inspect.Parameter.VAR_POSITIONAL)]
    if len(required) > 1 or not accepts:
        raise UntraceableError(
            f"{type(model).__name__}.forward takes {len(required)} inputs ({', '.join(required)}); traced parts take "
            "one tensor: split it with how='recorded', or wrap it in a module whose forward takes one"
        )


def _ambient() -> tuple[bool, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
    )


def _outside(filename: str) -> bool:
    return not filename.startswith(_TORCH) and filename != __file__ and not filename.startswith("<")


def _line_of_caller() -> str:
    """``file.py:12`` of the model's own code that is running, or "" where torch's code alone is."""
    frame = sys._getframe(1)
    while frame is not None and not _outside(frame.f_code.co_filename):
        frame = frame.f_back  # type: ignore[assignment]
    return "" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def _untraceable(tracer: _CutTracer, error: Exception) -> UntraceableError:
    name, module = tracer.inside[-1]
    where = f"{f'{name!r} ' if name else ''}({type(module).__name__})"
    lines = [f for f in traceback.extract_tb(error.__traceback__) if _outside(f.filename)]
    line = ""
    if lines:
        code = linecache.getline(lines[-1].filename, lines[-1].lineno or 0).strip()
        line = f" at {Path(lines[-1].filename).name}:{lines[-1].lineno}: `{code}`"
    cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, fx.proxy.TraceError):
        cause = f"it decides on a tensor's value or size ({cause})"
    inner = [cut for cut in tracer.watched if not name or cut.startswith(name + ".")]
    whole = f" Or cut at {name!r} itself." if name else ""
    return UntraceableError(
        f"the forward of {where} cannot be traced{line}: {cause}. It is read because of the cuts inside it "
        f"({', '.join(inner)}); a module without a cut inside is never read: move that statement into a submodule of "
        f"its own.{whole}"
    )
