"""Run models once to learn their shapes, and leave no trace."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lit_fast.errors import SplitError
from lit_fast.loss.targets import logits_of
from lit_fast.sections.inputs import Inputs, only_tensor
from lit_fast.sections.model import SplitModel

_CONTAINERS = (dict, list, set, deque)


@contextlib.contextmanager
def untouched(*models: nn.Module) -> Iterator[None]:
    """Within the context the models may run; afterwards they and the random state are what they were.

    That is every parameter and buffer (the very tensors, their values, devices and gradients), every attribute of every
    module, hooks and modes included, also where the run raises.
    """
    modules = _modules(models)
    parameters = list(dict.fromkeys(parameter for model in models for parameter in model.parameters()))
    tensors = [*parameters, *(buffer for model in models for buffer in model.buffers())]
    with _attributes_kept(modules), _values_kept(parameters), _random_state_kept(tensors):
        # They run on copies of their buffers: BatchNorm writes into running statistics without counting the write.
        _exchange(modules, lambda tensor: tensor if _is_parameter(tensor) else tensor.detach().clone())
        yield


@contextlib.contextmanager
def on_meta(model: nn.Module) -> Iterator[None]:
    """Within the context the model has shapes alone, on torch's meta device; afterwards it is what it was."""
    modules = _modules([model])
    with _attributes_kept(modules), _random_state_kept([]):
        _exchange(modules, _shape_of)
        yield


def _modules(models: Iterable[nn.Module]) -> list[nn.Module]:
    """Each module once, the parts of split models included, which hold attributes and a mode of their own.

    Raises:
        SplitError: one makes its parameters when it first runs, and becomes another class with them.
    """
    found = [module for model in models for module in model.modules()]
    for module in found:
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and is_lazy(tensor):
                raise SplitError(
                    f"{type(module).__name__}: its {name} is made when it first runs, and a dry run changes nothing; "
                    "run the model on one batch before"
                )
    return list(dict.fromkeys([*found, *(part for m in found if isinstance(m, SplitModel) for part in m.parts)]))


@contextlib.contextmanager
def _attributes_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    """All that a module holds, and what its dicts, lists and sets hold: tensors, children, hooks, caches."""
    attributes = [(vars(module), dict(vars(module))) for module in modules]
    held = {id(value): value for _, before in attributes for value in before.values() if isinstance(value, _CONTAINERS)}
    contents = [(container, copy.copy(container)) for container in held.values()]
    try:
        yield
    finally:
        for present, before in attributes:
            present.clear()
            present.update(before)
        for container, content in contents:
            container.clear()
            (container.extend if isinstance(container, (list, deque)) else container.update)(content)


@contextlib.contextmanager
def _values_kept(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    with torch.no_grad():
        before = [(p, p.detach().clone(), p.requires_grad, p.grad) for p in parameters]
    try:
        yield
    finally:
        for parameter, value, requires_grad, grad in before:
            _put_back(parameter, value)
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not grad:
                parameter.grad = grad


def _put_back(parameter: nn.Parameter, value: Tensor) -> None:
    """Only where it changed: a write counts as one for autograd."""
    alike = (parameter.shape, parameter.dtype, parameter.device) == (value.shape, value.dtype, value.device)
    if not alike:
        parameter.data = value
    elif not value.is_meta and not torch.equal(parameter, value):
        parameter.data.copy_(value)


@contextlib.contextmanager
def _random_state_kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """torch's on the CPU and on the devices of the tensors, Python's, and NumPy's where it is in use."""
    devices = sorted({tensor.get_device() for tensor in tensors if tensor.is_cuda})
    numpy = sys.modules.get("numpy")
    pythons, numpys = random.getstate(), None if numpy is None else numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(pythons)
        if numpy is not None:
            numpy.random.set_state(numpys)


def _exchange(modules: Iterable[nn.Module], new: Callable[[Tensor], Tensor]) -> None:
    """Put ``new(tensor)`` in the place of every tensor that the modules hold; of one held twice, one and the same."""
    made: dict[int, Tensor] = {}

    def exchanged(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in made:
            made[id(value)] = new(value)
        return made[id(value)]

    for module in modules:
        for name, value in list(vars(module).items()):
            if isinstance(value, dict):
                value.update({key: exchanged(item) for key, item in value.items()})
            elif isinstance(value, list):
                value[:] = map(exchanged, value)
            elif isinstance(value, Tensor):
                vars(module)[name] = exchanged(value)


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)


def _shape_of(tensor: Tensor) -> Tensor:
    shape = torch.empty_like(tensor, device="meta")
    return nn.Parameter(shape, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shape


@dataclass
class Walk:
    """One pass through a split model's parts: what each part got and gave, up to the first that failed.

    The last output are the logits. The first input is what the model takes: not always one tensor.
    """

    inputs: list[Any] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def walk(
    model: SplitModel,
    role: str,
    inputs: Inputs,
    after: Callable[[str, Tensor], None] = lambda name, out: None,
    logits: Callable[[Any], Tensor] = logits_of,
) -> Walk:
    """Run a batch through stem, sections and head, in the mode the model is in.

    A recorded model keeps this run for its sections.

    Args:
        model: the split model.
        role: "teacher" or "student", for messages.
        inputs: what the model takes, [B, ...].
        after: called with each part's name and output; of a recorded model not for the stem, which is no module.
        logits: gives those in what the model returns.
    """
    if model.how == "recorded":
        return _walk_recorded(model, role, inputs, after, logits)
    try:
        x: Any = only_tensor(inputs)
    except SplitError as error:
        return Walk(problems=[f"{role}: {error}"])
    result = Walk()
    for name in model.part_names:
        result.inputs.append(x)
        try:
            out = model.part(name)(x)
        except Exception as error:  # whatever the user's modules raise
            result.problems.append(f"{name}: the {role} fails on its own input {describe(x)}: {first_line(error)}")
            return result
        if name == "head":
            out = _logits(out, result, role, logits)
        elif not isinstance(out, Tensor):
            result.problems.append(
                f"{name}: the {role} gives {type(out).__name__}, expected one tensor; cut where a single tensor passes"
            )
        if result.problems:
            return result
        after(name, out)
        result.outputs.append(out)
        x = out
    return result


def _walk_recorded(
    model: SplitModel,
    role: str,
    inputs: Inputs,
    after: Callable[[str, Tensor], None],
    logits_in: Callable[[Any], Tensor],
) -> Walk:
    result = Walk()
    try:
        irs, output = model.run(inputs, lambda i, ir: after(f"section{i + 1}", ir))
    except Exception as error:  # whatever the user's modules raise
        said = str(error) if isinstance(error, SplitError) else f"it fails on its own input: {first_line(error)}"
        result.problems.append(f"{role}: {said}")
        return result
    logits = _logits(output, result, role, logits_in)
    if not result.problems:
        after("head", logits)
        result.outputs = [model.entered, *irs, logits]
        result.inputs = [inputs, *result.outputs[:-1]]
    return result


def _logits(output: Any, result: Walk, role: str, logits_in: Callable[[Any], Tensor]) -> Any:
    try:
        return logits_in(output)
    except TypeError as error:
        result.problems.append(f"head: the {role}'s {error}")
        return None


def describe(tensor: Tensor) -> str:
    """``(B, 64, 16, 16) float32``"""
    return f"{batch_shape(tensor)} {dtype_name(tensor)}"


def batch_shape(tensor: Tensor) -> str:
    """``(B, 64, 16, 16)``"""
    return f"({', '.join(['B', *map(str, tensor.shape[1:])])})" if tensor.dim() else "()"


def dtype_name(tensor: Tensor) -> str:
    """``float32``"""
    return str(tensor.dtype).removeprefix("torch.")


def first_line(error: Exception) -> str:
    """The first line of an error's message, with its type."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".removesuffix(": ")
