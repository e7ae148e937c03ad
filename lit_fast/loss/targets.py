"""What the loss is computed on: rows of logits with their labels, out of what a model returned for a batch.

A classifier returns logits [B, C]; a segmentation network [B, C, H, W]; a language model [B, T, V], in an object of its
library. ``LITStep(targets=...)`` takes one of these functions, by name, or one of your own with the same arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, get_args

from torch import Tensor

from lit_fast.literals import TargetsKind

__all__ = ["Targets", "causal_lm", "classification", "dense", "logits_of", "padding_of", "resolve", "tokens"]

# Where dicts and objects have their logits: Hugging Face, torchvision's segmentation networks.
_LOGITS = ("logits", "out")


class Targets(NamedTuple):
    """Rows for the loss.

    Attributes:
        logits: [N, C], floating.
        labels: class indices [N], or probabilities [N, C]; None where there are none.
        rows: bool [N], which rows count in cross-entropy and KL; None: all.
    """

    logits: Tensor
    labels: Tensor | None
    rows: Tensor | None = None


TargetsOf = Callable[[Any, Any, "Tensor | None"], Targets]  # of a model's output, its inputs and the labels


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returned: a tensor, the first of a tuple, ``.logits``, ``["logits"]`` or ``["out"]``.

    Raises:
        TypeError: there are none.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)) and not hasattr(output, "logits"):
        return logits_of(output[0]) if output else _no_logits(output)
    for name in _LOGITS:
        value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    return _no_logits(output)


def _no_logits(output: Any) -> Tensor:
    keys = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
    raise TypeError(
        f"targets: found no logits in the model's output, {type(output).__name__}{keys}; pass targets=, a function of "
        "(output, inputs, labels) that returns (logits [N, C], labels [N])"
    )


def classification(
    output: Any, inputs: Any, labels: Tensor | None, *, ignore_index: int = -100, skip_padding: bool = False
) -> Targets:
    """Logits [B, C] with labels [B] (or [B, C], probabilities), as they are."""
    return Targets(logits_of(output), labels)


def dense(
    output: Any, inputs: Any, labels: Tensor | None, *, ignore_index: int = -100, skip_padding: bool = False
) -> Targets:
    """Logits [B, C, ...], classes second, with labels [B, ...]: a row for each pixel.

    ``skip_padding`` leaves pixels labelled ``ignore_index`` out of KL, as they are out of cross-entropy.
    """
    logits = logits_of(output)
    if logits.dim() < 3:
        raise ValueError(f"targets 'dense': expected logits [B, C, ...], got {tuple(logits.shape)}")
    flat = None if labels is None else _flat(labels, (len(logits), *logits.shape[2:]), "dense")
    rows = flat != ignore_index if skip_padding and flat is not None else None
    return Targets(logits.movedim(1, -1).flatten(0, -2), flat, rows)


def tokens(
    output: Any, inputs: Any, labels: Tensor | None, *, ignore_index: int = -100, skip_padding: bool = False
) -> Targets:
    """Logits [B, T, C], classes last, with labels [B, T]: a row for each token.

    ``skip_padding`` leaves out the tokens that ``inputs["attention_mask"]`` says are padding; without a mask those
    labelled ``ignore_index``.
    """
    logits = _sequence(output, "tokens")
    flat = None if labels is None else _flat(labels, logits.shape[:2], "tokens")
    rows = padding_of(inputs, labels, ignore_index) if skip_padding else None
    return Targets(logits.flatten(0, 1), flat, None if rows is None else rows.flatten())


def causal_lm(
    output: Any, inputs: Any, labels: Tensor | None, *, ignore_index: int = -100, skip_padding: bool = False
) -> Targets:
    """Logits [B, T, V] against the next token: those of tokens 1 to T - 1 with labels of tokens 2 to T.

    Without labels these are ``inputs["input_ids"]`` (or the inputs, where these are one tensor), padding ignored.
    ``skip_padding`` leaves rows out whose next token is padding (as for `tokens`).
    """
    logits = _sequence(output, "causal_lm")
    mask = padding_of(inputs, labels, ignore_index)
    if labels is None:
        labels = inputs["input_ids"] if isinstance(inputs, Mapping) else inputs
        if mask is not None:
            labels = labels.masked_fill(~mask, ignore_index)
    _check_shape(labels, logits.shape[:2], "causal_lm")
    rows = mask[:, 1:].flatten() if skip_padding and mask is not None else None
    return Targets(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), rows)


def padding_of(inputs: Any, labels: Tensor | None, ignore_index: int = -100) -> Tensor | None:
    """bool [B, T], which tokens are none of the padding: by ``inputs["attention_mask"]``, else by the labels.

    None where neither says it.
    """
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.bool()
    return (
        labels != ignore_index if labels is not None and labels.dim() == 2 and not labels.is_floating_point() else None
    )


_READY: dict[str, Any] = {"classification": classification, "dense": dense, "tokens": tokens, "causal_lm": causal_lm}


def resolve(targets: TargetsKind | TargetsOf, ignore_index: int, skip_padding: bool) -> TargetsOf:
    """The function that a name stands for, or an own one, whose results are checked.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor a function.
    """
    if isinstance(targets, str):
        if targets not in _READY:
            names = ", ".join(map(repr, get_args(TargetsKind)))
            raise ValueError(f"targets: expected one of {names} or a function, got {targets!r}")
        return partial(_READY[targets], ignore_index=ignore_index, skip_padding=skip_padding)
    if not callable(targets):
        raise TypeError(f"targets: expected a name or a function, got {type(targets).__name__}")
    return partial(_checked, targets)


def _checked(own: Callable[..., Any], output: Any, inputs: Any, labels: Tensor | None) -> Targets:
    result = own(output, inputs, labels)
    if not isinstance(result, tuple) or not 2 <= len(result) <= 3 or not isinstance(result[0], Tensor):
        raise TypeError(
            "targets: expected the function to return (logits [N, C], labels [N]) or (logits, labels, rows [N]), got "
            f"{type(result).__name__}"
        )
    return Targets(*result)


def _sequence(output: Any, name: str) -> Tensor:
    logits = logits_of(output)
    if logits.dim() != 3:
        raise ValueError(f"targets {name!r}: expected logits [B, T, C], got {tuple(logits.shape)}")
    return logits


def _flat(labels: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    _check_shape(labels, shape, name)
    return labels.flatten()


def _check_shape(labels: Tensor, shape: tuple[int, ...], name: str) -> None:
    if tuple(labels.shape) != tuple(shape):
        raise ValueError(
            f"targets {name!r}: expected labels {tuple(shape)} for these logits, got {tuple(labels.shape)}"
        )
