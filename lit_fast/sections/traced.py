"""Models cut by reading their forward: parts of generated code, each of which runs alone.

A part's code is generated from its graph with the WHOLE model as ``self``, so modules, parameters and buffers are
looked up in the model at each call.
"""

from __future__ import annotations

import itertools
import linecache
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from lit_fast.errors import SplitError
from lit_fast.sections.cuts import Cuts, divide
from lit_fast.sections.inputs import Inputs, only_tensor
from lit_fast.sections.model import After, Around, SplitModel
from lit_fast.sections.parts import Part, part_names
from lit_fast.sections.tracing import trace

__all__ = ["TracedModel", "TracedPart"]


class TracedModel(SplitModel):
    """A model whose parts are pieces of its forward, made by tracing it: they run alone, and can be lowered.

    Args:
        model: maps one tensor to its output.
        cuts: where to cut it.

    Raises:
        SplitError: it cannot be cut so.
    """

    how = "traced"

    def __init__(self, model: nn.Module, cuts: Cuts, why: str = "") -> None:
        self.cuts = cuts
        super().__init__(model, cuts.at, why)

    def _build(self) -> tuple[Part, ...]:
        return build(self.model, self.cuts)

    def run(
        self,
        inputs: Inputs,
        after: After | None = None,
        *,
        around: Around | None = None,
        sections: int | None = None,
        head: bool = True,
        copied: bool = False,
    ) -> tuple[list[Tensor], Any]:
        irs = []
        out = self.stem(only_tensor(inputs))
        for i, section in enumerate(self.sections[:sections]):
            with around(i) if around is not None else nullcontext():
                out = section(out)
            irs.append(out)
            if after is not None:
                after(i, out)
            if copied:
                out = out.clone()
        return irs, self.head(out) if head else None


def build(model: nn.Module, cuts: Cuts) -> tuple[Part, ...]:
    """Trace ``model`` in both modes and make its parts: stem, sections, head.

    Raises:
        SplitError: the model cannot be cut so.
    """
    first_name = {id(module): name for name, module in model.named_modules()}
    names = cuts.modules
    paths = {name: first_name[id(model.get_submodule(name))] for name in names}
    if len(set(paths.values())) < len(paths):
        raise SplitError(
            f"two of {', '.join(names)} are the same module under two names; each cut needs its own module"
        )
    train, evaluate = (divide(trace(model, tuple(paths.values()), mode), cuts, paths) for mode in (True, False))
    return tuple(
        TracedPart(name, model, cuts, train_graph, eval_graph)
        for name, train_graph, eval_graph in zip(part_names(len(cuts.at)), train, evaluate, strict=True)
    )


def _recut(model: nn.Module, cuts: Cuts, name: str, training: bool) -> Part:
    part = build(model, cuts)[part_names(len(cuts.at)).index(name)]
    part.training = training
    return part


@dataclass(frozen=True)
class Code:
    """A part's graph and the function made from it: ``run(model, x)``."""

    graph: fx.Graph
    source: str
    run: Callable[[nn.Module, Tensor], Any]


def generate(graph: fx.Graph, name: str) -> Code:
    """Make a Python function from a part's graph; tracebacks show its lines under ``<lit_fast NAME>``."""
    code = graph.python_code(root_module="self")
    filename = f"<lit_fast {name} {zlib.crc32(code.src.encode()):08x}>"  # equal sources share one entry of the cache
    linecache.cache[filename] = (len(code.src), None, code.src.splitlines(keepends=True), filename)
    scope = dict(code.globals)
    exec(compile(code.src, filename, "exec"), scope)
    return Code(graph, code.src, scope["forward"])


class TracedPart(Part):
    """A part that runs the code generated from its graphs.

    Args:
        name: "stem", "section<i>" or "head".
        model: the whole model.
        cuts: those that gave this part.
        train_graph, eval_graph: the piece as the model's forward has it in train and in eval mode.
    """

    def __init__(self, name: str, model: nn.Module, cuts: Cuts, train_graph: fx.Graph, eval_graph: fx.Graph) -> None:
        evaluate = generate(eval_graph, name)
        train = generate(train_graph, name)
        graphs = (eval_graph, train_graph)
        super().__init__(name, model, _targets(graphs, "call_module"), _targets(graphs, "get_attr"))
        self._cuts = cuts
        self._eval = evaluate
        self._train = evaluate if train.source == evaluate.source else train

    @property
    def sources(self) -> tuple[str, str]:
        """The generated code of train and of eval mode."""
        return self._train.source, self._eval.source

    @property
    def graph(self) -> fx.Graph:
        """The piece's graph in the present mode; its targets are names in the whole model."""
        return self._code().graph

    @property
    def train_graph(self) -> fx.Graph:
        """That of train mode."""
        return self._train.graph

    def forward(self, x: Tensor) -> Any:
        return self._code().run(self.owner, x)

    def _code(self) -> Code:
        # The model's own flag counts too: after model.eval() on the inner model the part must not stay in train mode.
        return self._train if self.training and self.owner.training else self._eval

    def __reduce__(self) -> tuple[Any, ...]:
        # Generated code can be neither pickled nor deep-copied: a copy is cut anew from the copied model.
        return _recut, (self.owner, self._cuts, self.name, self.training)


def _targets(graphs: tuple[fx.Graph, ...], op: str) -> tuple[str, ...]:
    nodes = itertools.chain(*(graph.nodes for graph in graphs))
    return tuple(dict.fromkeys(str(node.target) for node in nodes if node.op == op))
