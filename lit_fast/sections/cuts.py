"""Divide a traced forward at the cuts: which part each operation belongs to, and whether one tensor passes each cut."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import fx

from lit_fast.errors import SplitError
from lit_fast.sections.parts import part_names
from lit_fast.sections.tracing import Call, Trace


@dataclass(frozen=True)
class Cuts:
    """Where a model is cut.

    Attributes:
        at: names of the modules whose outputs are the IRs.
        stem: name of the module whose output is section 1's input; None: the input of ``start`` is.
        start: name of the module that section 1 begins with; None: ``at[0]``.
    """

    at: tuple[str, ...]
    stem: str | None = None
    start: str | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        """All that are named, each once."""
        return tuple(dict.fromkeys(name for name in (*self.at, self.stem, self.start) if name is not None))


def divide(traced: Trace, cuts: Cuts, paths: dict[str, str]) -> list[fx.Graph]:
    """Divide a trace into the graphs of stem, sections and head.

    Args:
        traced: the forward, with the calls of every cut.
        cuts: as the user named them.
        paths: name as given -> the path fx uses (they differ where a module has two names).

    Raises:
        SplitError: naming the cut that is not called, called twice, out of order, or crossed by another tensor.
    """
    start = cuts.start or cuts.at[0]
    names = [cuts.stem or f"the input of {start}", *cuts.at]
    outputs = [
        _output(_only_call(traced, name, paths), name) for name in (*([cuts.stem] if cuts.stem else []), *cuts.at)
    ]
    if not cuts.stem:
        outputs.insert(0, _input(_only_call(traced, start, paths), start))
    _check_order(traced.graph, outputs, names)
    home = _assign(traced.graph, outputs)
    _check_crossings(traced.graph, outputs, home, names)
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
        others = "; ".join(f"{_value(node)}, used later by {_describe(user)}" for node, user in extra.items())
        lines.append(f"between {parts[cut]} and {parts[cut + 1]} ({names[cut]!r}): {others}")
    raise SplitError(
        "more than one tensor crosses a cut; besides the IR,\n  "
        + "\n  ".join(lines)
        + "\ncut where a single tensor passes (take sizes from the tensor at hand: x.flatten(1), x.shape[0])"
    )


def _value(node: fx.Node) -> str:
    return f"the output of {_describe(node)}" if node.op == "call_module" else _describe(node)


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
