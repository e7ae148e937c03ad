"""Batches as a model's forward takes them: one tensor, a tuple of arguments, a dict of keyword arguments."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lit_fast.errors import SplitError

__all__ = [
    "Inputs",
    "call",
    "dtypes_told",
    "first_tensor",
    "num_rows",
    "only_tensor",
    "replaced",
    "tensors_of",
    "without_labels",
]

Inputs = Any  # a tensor, or tuples, lists and dicts of tensors and other values


def call(model: nn.Module, inputs: Inputs) -> Any:
    """``model(x)`` of a tensor, ``model(*arguments)`` of a tuple or list, ``model(**arguments)`` of a dict."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def only_tensor(inputs: Inputs) -> Any:
    """The input of a model that takes one: a tuple or dict of one tensor stands for that tensor.

    Raises:
        SplitError: there are several.
    """
    if not isinstance(inputs, (Mapping, tuple, list)):
        return inputs
    values = list(inputs.values() if isinstance(inputs, Mapping) else inputs)
    if len(values) != 1:
        names = f" ({', '.join(map(str, inputs))})" if isinstance(inputs, Mapping) else ""
        raise SplitError(
            f"this model was traced, so its parts take one tensor, got {len(values)} inputs{names}; "
            "split it with how='recorded'"
        )
    return values[0]


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts, in their order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_of(item)


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor in nested tuples, lists and dicts; None where there is none."""
    return next(tensors_of(value), None)


def num_rows(inputs: Inputs) -> int:
    """B, the size of the first tensor's dimension 0."""
    first = first_tensor(inputs)
    return 0 if first is None or first.dim() == 0 else len(first)


def replaced(value: Any, new: Callable[[Any], Any]) -> Any:
    """Nested tuples, lists and dicts with ``new(leaf)`` in the place of each other value.

    What did not change is not copied: the very container comes back.
    """
    if isinstance(value, (tuple, list)):
        items = [replaced(item, new) for item in value]
        if all(a is b for a, b in zip(items, value)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, Mapping):
        entries = {key: replaced(item, new) for key, item in value.items()}
        if all(entries[key] is value[key] for key in entries):
            return value
        return type(value)(**entries) if hasattr(value, "__dataclass_fields__") else type(value)(entries)  # type: ignore[call-arg]
    return new(value)


def without_labels(inputs: Inputs, labels: Tensor | None) -> tuple[Inputs, Tensor | None]:
    """The inputs without ``labels`` among them, which are the step's: the models would compute a loss of their own."""
    if not isinstance(inputs, Mapping) or "labels" not in inputs:
        return inputs, labels
    others = {key: value for key, value in inputs.items() if key != "labels"}
    return others, inputs["labels"] if labels is None else labels


@contextmanager
def dtypes_told(inputs: Inputs, **models: nn.Module | None) -> Iterator[None]:
    """Within the context, an error of PyTorch about unequal dtypes becomes one that says whose they are.

    Raises:
        TypeError: instead of PyTorch's.
    """
    try:
        yield
    except RuntimeError as error:
        owners = {"the inputs": tensors_of(inputs)}
        owners |= {f"the {role}": model.parameters() for role, model in models.items() if model is not None}
        dtypes = {owner: _floating_dtypes(tensors) for owner, tensors in owners.items()}
        if len(set().union(*dtypes.values())) < 2 or not _ABOUT_DTYPES.search(str(error)):
            raise
        whose = ", ".join(f"{owner} {' and '.join(sorted(names))}" for owner, names in dtypes.items() if names)
        raise TypeError(
            f"dtypes: expected one that inputs and models share, got {whose} ({str(error).splitlines()[0]}); convert "
            "them (inputs.float(), model.float()), or train float32 and half precision together under autocast "
            "(precision='bf16')"
        ) from error


_ABOUT_DTYPES = re.compile(r"dtype|scalar type|(bias|weight) type", re.IGNORECASE)


def _floating_dtypes(tensors: Iterable[Tensor]) -> set[str]:
    return {str(tensor.dtype).removeprefix("torch.") for tensor in tensors if tensor.is_floating_point()}
