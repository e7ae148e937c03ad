"""The parts of a split model: pieces of its forward, run on the live model.

A part's code is generated from its graph with the WHOLE model as ``self``, so modules, parameters and buffers are
looked up in the model at each call. Whatever happens to the model (``.to``, ``load_state_dict``, a replaced submodule,
a directly owned parameter such as a class token), the parts follow.
"""

from __future__ import annotations

import itertools
import linecache
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from lit_fast.errors import SplitError
from lit_fast.sections.cuts import divide, part_names
from lit_fast.sections.tracing import trace


def build(model: nn.Module, at: tuple[str, ...], stem: str | None) -> tuple[Part, ...]:
    """Trace ``model`` in both modes and make its parts: stem, sections, head.

    Raises:
        SplitError: the model cannot be cut so.
    """
    first_name = {id(module): name for name, module in model.named_modules()}
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

    def state_dict(  # type: ignore[override]
        self, *, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """The part's entries of the model's state_dict."""
        whole = self.owner.state_dict(prefix=prefix, keep_vars=keep_vars)
        modules = tuple(f"{prefix}{name}." for name in self._targets)
        tensors = {f"{prefix}{name}" for name in self._tensors}
        own = {key: value for key, value in whole.items() if key.startswith(modules) or key in tensors}
        if destination is None:
            return own
        destination.update(own)
        return destination

    def __reduce__(self) -> tuple[Any, ...]:
        # Generated code can be neither pickled nor deep-copied: a copy is cut anew from the copied model.
        return _recut, (self.owner, *self._cuts, self.name, self.training)

    def extra_repr(self) -> str:
        return f"{self.name}: {', '.join(self._targets) or 'no modules'}"
