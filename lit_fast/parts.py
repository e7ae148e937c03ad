"""Divide a traced forward at the cuts, and run each piece on the live model.

A part's code is generated from its graph with the WHOLE model as ``self``, so modules, parameters and buffers are
looked up in the model at each call. Whatever happens to the model (``.to``, ``load_state_dict``, a replaced submodule,
a directly owned parameter such as a class token), the parts follow.
"""

from __future__ import annotations

import itertools
import linecache
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from lit_fast.tracing import Call, SplitError, Trace, trace

_serial = itertools.count()


def part_names(num_sections: int) -> tuple[str, ...]:
    """("stem", "section1", ..., "section<k>", "head")"""
    return ("stem", *(f"section{i + 1}" for i in range(num_sections)), "head")


def build(model: nn.Module, at: tuple[str, ...], stem: str | None) -> tuple[Part, ...]:
    """Trace ``model`` in both modes and make its parts: stem, sections, head.

    Raises:
        SplitError: the model cannot be cut so.
    """
    first_name = {id(module): name for name, module in reversed(list(model.named_modules()))}
    names = (*at, *([stem] if stem else []))
    paths = {name: first_name[id(model.get_submodule(name))] for name in names}
    if len(set(paths.values())) < len(paths):
        raise SplitError(
            f"two of {', '.join(names)} are the same module under two names; each cut needs its own module"
        )
    train, evaluate = (divide(trace(model, tuple(paths.values()), mode), at, stem, paths) for mode in (True, False))
    return tuple(
        Part(name, model, at, stem, train_graph, eval_graph)
        for name, train_graph, eval_graph in zip(part_names(len(at)), train, evaluate, strict=True)
    )


def _recut(model: nn.Module, at: tuple[str, ...], stem: str | None, name: str, training: bool) -> Part:
    part = build(model, at, stem)[part_names(len(at)).index(name)]
    part.training = training
    return part


def divide(traced: Trace, at: Sequence[str], stem: str | None, paths: dict[str, str]) -> list[fx.Graph]:
    """Divide a trace into the graphs of stem, sections and head.

    Args:
        traced: the forward, with the calls of every cut.
        at: the cuts, as the user named them.
        stem: the module whose output ends the stem; None for the input of ``at[0]``.
        paths: name as given -> the path fx uses (they differ where a module has two names).

    Raises:
        SplitError: naming the cut that is not called, called twice, out of order, or crossed by another tensor.
    """
    names = ([stem] if stem else []) + list(at)
    outputs = [_output(_only_call(traced, name, paths), name) for name in names]
    if not stem:
        outputs.insert(0, _input(_only_call(traced, at[0], paths), at[0]))
    _check_order(traced.graph, outputs, [stem or f"the input of {at[0]}", *at])
    home = _assign(traced.graph, outputs)
    _check_crossings(traced.graph, outputs, home, [stem or f"the input of {at[0]}", *at])
    return [_extract(traced.graph, outputs, home, part) for part in range(len(outputs) + 1)]


def _only_call(traced: Trace, name: str, paths: dict[str, str]) -> Call:
    calls = traced.calls.get(paths[name], [])
    if not calls:
        raise SplitError(
            f"cut {name!r}: forward never calls this module (a container, such as nn.ModuleList, is not called "
            "itself; nor is a module of which forward only uses the weights); name a module that is called"
        )
    if len(calls) > 1:
        raise SplitError(
            f"cut {name!r}: forward calls this module {len(calls)} times, so its output is not one IR; cut at a "
            "module that is called once (for example an nn.Identity placed after the call that you mean)"
        )
    return calls[0]


def _output(call: Call, name: str) -> fx.Node:
    if not isinstance(call.result, fx.Proxy):
        raise SplitError(
            f"cut {name!r}: it gives {type(call.result).__name__}, an IR must be one tensor; cut elsewhere"
        )
    return call.result.node


def _input(call: Call, name: str) -> fx.Node:
    for value in (*call.args, *call.kwargs.values()):
        if isinstance(value, fx.Proxy):
            return value.node
    raise SplitError(
        f"cut {name!r}: it is not called with a tensor, so section 1 has no input; name the stem's end: stem=..."
    )


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """``node`` and all it is computed from."""
    seen: set[fx.Node] = set()
    todo = [node]
    while todo:
        n = todo.pop()
        if n not in seen:
            seen.add(n)
            todo += n.all_input_nodes
    return seen


def _check_order(graph: fx.Graph, outputs: list[fx.Node], names: list[str]) -> None:
    result = next(node for node in graph.nodes if node.op == "output")
    source = next(node for node in graph.nodes if node.op == "placeholder")
    if source not in _ancestors(outputs[0]):
        raise SplitError(f"cut {names[0]!r}: it does not depend on the model's input")
    for (a, b), (name_a, name_b) in zip(itertools.pairwise(outputs), itertools.pairwise(names), strict=True):
        if a is b:
            raise SplitError(
                f"cuts {name_a!r} and {name_b!r} have the same output, the section between is empty; drop one"
            )
        if a not in _ancestors(b):
            if b in _ancestors(a):
                raise SplitError(f"cuts out of order: {name_b!r} runs before {name_a!r}; list them as they run")
            raise SplitError(
                f"cuts {name_a!r} and {name_b!r} are on parallel branches; cut where the branches have joined"
            )
    if outputs[-1] not in _ancestors(result):
        raise SplitError(f"cut {names[-1]!r}: the model's output does not depend on it")


def _assign(graph: fx.Graph, outputs: list[fx.Node]) -> dict[fx.Node, int]:
    """Part number of each node: the first part whose output needs it, else the head."""
    home: dict[fx.Node, int] = {node: 0 for node in graph.nodes if node.op == "placeholder"}
    result = next(node for node in graph.nodes if node.op == "output")
    for part, output in enumerate([*outputs, result]):
        for node in _ancestors(output):
            home.setdefault(node, part)
    for node in graph.nodes:
        # Statements whose value nobody uses (``x.add_(1)``, an assertion) belong where their inputs are.
        home.setdefault(node, max((home[n] for n in node.all_input_nodes if n.op != "get_attr"), default=0))
    return home


def _check_crossings(graph: fx.Graph, outputs: list[fx.Node], home: dict[fx.Node, int], names: list[str]) -> None:
    crossing: dict[int, dict[fx.Node, fx.Node]] = {}
    for user in graph.nodes:
        for node in user.all_input_nodes:
            if user.op == "get_attr" or node.op == "get_attr":
                continue
            for cut in range(home[node], home[user]):
                if node is not outputs[cut]:
                    crossing.setdefault(cut, {}).setdefault(node, user)
    if not crossing:
        return
    parts = part_names(len(outputs) - 1)
    lines = []
    for cut, extra in sorted(crossing.items()):
        others = "; ".join(f"{_describe(node)}, used later by {_describe(user)}" for node, user in extra.items())
        lines.append(f"between {parts[cut]} and {parts[cut + 1]} ({names[cut]!r}): {others}")
    raise SplitError(
        "more than one tensor crosses a cut; besides the IR,\n  "
        + "\n  ".join(lines)
        + "\ncut where a single tensor passes (take sizes from the tensor at hand: x.flatten(1), x.shape[0])"
    )


def _describe(node: fx.Node) -> str:
    line = node.meta.get("line")
    where = f" at {line}" if line else ""
    if node.op == "placeholder":
        return "the model's input"
    if node.op == "output":
        return "the model's output"
    if node.op == "call_module":
        return f"{str(node.target)!r}{where}"
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"{node.name!r} ({target}{where})"


def _extract(graph: fx.Graph, outputs: list[fx.Node], home: dict[fx.Node, int], part: int) -> fx.Graph:
    piece = fx.Graph()
    source = next(node for node in graph.nodes if node.op == "placeholder") if part == 0 else outputs[part - 1]
    env = {source: piece.placeholder("x")}

    def look_up(node: fx.Node) -> fx.Node:
        if node.op == "get_attr" and node not in env:
            env[node] = piece.node_copy(node)
        return env[node]

    for node in graph.nodes:
        if home[node] == part and node.op not in ("placeholder", "output", "get_attr"):
            env[node] = piece.node_copy(node, look_up)
    if part < len(outputs):
        piece.output(look_up(outputs[part]))
    else:
        result = next(node for node in graph.nodes if node.op == "output")
        piece.output(fx.node.map_arg(result.args[0], look_up))
    return piece


@dataclass(frozen=True)
class Code:
    """A part's graph and the function made from it: ``run(model, x)``."""

    graph: fx.Graph
    source: str
    run: Callable[[nn.Module, Tensor], Any]


def generate(graph: fx.Graph, name: str) -> Code:
    """Make a Python function from a part's graph; tracebacks show its lines under ``<lit_fast NAME>``."""
    code = graph.python_code(root_module="self")
    filename = f"<lit_fast {name} {next(_serial)}>"
    linecache.cache[filename] = (len(code.src), None, code.src.splitlines(keepends=True), filename)
    scope = dict(code.globals)
    exec(compile(code.src, filename, "exec"), scope)
    return Code(graph, code.src, scope["forward"])


class Part(nn.Module):
    """Stem, section or head of a split model: a view that runs one piece of the model's forward.

    Holds no tensors. ``parameters()``, ``named_parameters()``, ``modules()`` and ``state_dict()`` give the live
    model's, those of this part alone, under their names in the model; ``train()`` and ``eval()`` act on its modules.

    Args:
        name: "stem", "section<i>" or "head".
        model: the whole model.
        at, stem: the cuts that gave this part, as for ``split``.
        train_graph, eval_graph: the piece as the model's forward has it in train and in eval mode.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        at: tuple[str, ...],
        stem: str | None,
        train_graph: fx.Graph,
        eval_graph: fx.Graph,
    ) -> None:
        super().__init__()
        self.name = name
        self._cuts = (at, stem)
        self._owner = (model,)  # in a tuple: not registered, the model is registered once, in SplitModel
        self._eval = generate(eval_graph, name)
        train = generate(train_graph, name)
        self._train = self._eval if train.source == self._eval.source else train
        self._targets = self._collect("call_module")
        self._tensors = self._collect("get_attr")
        self.training = model.training

    @property
    def owner(self) -> nn.Module:
        """The whole model."""
        return self._owner[0]

    @property
    def graph(self) -> fx.Graph:
        """The piece's graph in the present mode; its targets are names in the whole model."""
        return self._code().graph

    def forward(self, x: Tensor) -> Any:
        return self._code().run(self.owner, x)

    def _code(self) -> Code:
        # The model's own flag counts too: after model.eval() on the inner model the part must not stay in train mode.
        return self._train if self.training and self.owner.training else self._eval

    def _collect(self, op: str) -> tuple[str, ...]:
        nodes = itertools.chain(self._eval.graph.nodes, self._train.graph.nodes)
        return tuple(dict.fromkeys(str(node.target) for node in nodes if node.op == op))

    def _direct(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Tensors that the part's code uses itself, such as a class token."""
        for name in self._tensors:
            path, _, last = name.rpartition(".")
            value = getattr(self.owner.get_submodule(path), last)
            if isinstance(value, Tensor):
                yield f"{prefix}.{name}" if prefix else name, value

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        for name in self._targets:
            yield name, self.owner.get_submodule(name)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, module in self.named_children():
            yield from module.named_modules(memo, f"{prefix}.{name}" if prefix else name, remove_duplicate)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        seen = set()
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            seen.add(id(parameter))
            yield name, parameter
        for name, tensor in self._direct(prefix):
            if isinstance(tensor, nn.Parameter) and id(tensor) not in seen:
                yield name, tensor

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        seen = set()
        for name, buffer in super().named_buffers(prefix, recurse, remove_duplicate):
            seen.add(id(buffer))
            yield name, buffer
        for name, tensor in self._direct(prefix):
            if not isinstance(tensor, nn.Parameter) and id(tensor) not in seen:
                yield name, tensor

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The part's entries of the model's state_dict."""
        whole = self.owner.state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        roots = tuple(f"{prefix}{name}." for name in self._targets)
        direct = {f"{prefix}{name}" for name in self._tensors}
        return {key: value for key, value in whole.items() if key.startswith(roots) or key in direct}

    def __reduce__(self) -> tuple[Any, ...]:
        # Generated code can be neither pickled nor deep-copied: a copy is cut anew from the copied model.
        return _recut, (self.owner, *self._cuts, self.name, self.training)

    def extra_repr(self) -> str:
        return f"{self.name}: {', '.join(self._targets) or 'no modules'}"
