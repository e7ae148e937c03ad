"""Read weights into a model, from this project's files or from published ones, and say by name what does not fit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lit_fast.errors import CheckpointError
from lit_fast.models.saved import NumpyValue, read_saved

# Keys under which training scripts wrap their weights, tried in this order; averaged weights come last.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "weights",
    "module",
    "checkpoint",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
)
_COMPILED = "_orig_mod."  # torch.compile writes it before the names of what it compiled: the model or a submodule
_AVERAGED = "n_averaged"  # AveragedModel writes it beside its weights
_DEEPEST = 4  # dictionaries within dictionaries: a file may hold one that holds itself


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load the weights in ``path`` into ``model``, in place, wherever they were saved.

    Reads ``torch.save`` files (with ``weights_only=True``, onto the CPU), ``.safetensors`` and ``.npz``. Unwraps
    ``{"state_dict": ...}`` and the like, and takes off what stands before every key: ``module.``, ``model.``,
    ``student.model.``, and ``_orig_mod.`` wherever it is. Every parameter must be there with its shape; only
    BatchNorm's ``num_batches_tracked``, which old files lack, may be missing. The model is changed only if all fits.

    Args:
        model: takes the weights; each tensor keeps its device and dtype.
        path: the file.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a file of weights; or missing keys, unexpected keys or other shapes, all of them listed.

    Example:
        >>> from lit_fast import models
        >>> models.load_checkpoint(models.resnet56(num_classes=10), "resnet56.th")  # doctest: +SKIP
    """
    file = Path(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise FileNotFoundError(f"checkpoint {file} {what}; give the path of a .th, .pt, .pth or .safetensors file")
    weights = _renamed(_unwrap(read_saved(file), file), model)
    _compare(model, weights, file)
    model.load_state_dict(weights, strict=False)  # strict but for num_batches_tracked: _compare has looked


def _unwrap(loaded: Any, file: Path) -> dict[str, Tensor]:
    """The dictionary of tensors within what was read."""
    for _ in range(_DEEPEST):
        if not isinstance(loaded, Mapping) or _is_weights(loaded):
            break
        inner = [key for key in WRAPPERS if isinstance(loaded.get(key), Mapping)][:1]
        inner = inner or [key for key, value in loaded.items() if isinstance(value, Mapping) and _is_weights(value)]
        if len(inner) != 1:
            break
        loaded = loaded[inner[0]]
    if not isinstance(loaded, Mapping) or not _is_weights(loaded):
        raise CheckpointError(
            f"{file}: expected a state_dict of tensors, bare or under one of {', '.join(WRAPPERS[:5])}; got "
            + _described(loaded)
        )
    return dict(loaded)


def _is_weights(content: Mapping[Any, Any]) -> bool:
    named = (isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    return bool(content) and all(named)


def _described(loaded: Any) -> str:
    """What stands in the way of taking it for a state_dict."""
    if not isinstance(loaded, Mapping):
        return type(loaded).__name__
    several = [repr(key) for key, value in loaded.items() if isinstance(value, Mapping) and _is_weights(value)]
    if len(several) > 1:
        return f"several: {_some(several)}; save the one that is meant"
    if any(isinstance(value, Tensor) for value in loaded.values()):
        others = [f"{key!r} ({_kind(value)})" for key, value in loaded.items() if not _is_weights({key: value})]
        return f"tensors and beside them {_some(others)}; leave out what is not the model's"
    if loaded and all(isinstance(value, NumpyValue) for value in loaded.values()):
        return "arrays of NumPy; save them as tensors, or with numpy.savez as .npz"
    return f"keys {list(loaded)[:8]}"


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return "a tensor whose key is no text"
    return "a value of NumPy" if isinstance(value, NumpyValue) else type(value).__name__


def _renamed(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The weights under the model's own names where a prefix makes the difference, on either side.

    The first prefix that makes all of the model's weights be there is taken; else the first that makes some be there.
    """
    own = {key.replace(_COMPILED, ""): key for key in model.state_dict()}
    plain = {key.replace(_COMPILED, ""): value for key, value in weights.items()}
    if _AVERAGED not in own:
        plain.pop(_AVERAGED, None)
    required = {key for key in own if not _may_be_missing(key)}
    some = None
    for prefix in _prefixes(plain, own):
        under = {key.removeprefix(prefix): value for key, value in plain.items() if key.startswith(prefix)}
        if required <= under.keys():
            beside = {key: value for key, value in plain.items() if not key.startswith(prefix)}
            return {own.get(key, key): value for key, value in under.items()} | beside
        if some is None and len(under) == len(plain) and under.keys() & own.keys():
            some = {own.get(key, key): value for key, value in under.items()}
    for prefix in _prefixes(own, plain):  # the model is wrapped, the file is not
        if prefix and all(prefix + key in own for key in plain):
            return {own[prefix + key]: value for key, value in plain.items()}
    return weights if some is None else some


def _prefixes(names: Mapping[str, Any], others: Mapping[str, Any]) -> Iterator[str]:
    """The beginnings of ``names``, up to a dot, behind which one of ``others`` stands; first of all, none."""
    yield ""
    seen = {""}
    for name in names:
        parts = name.split(".")
        for count in range(1, len(parts)):
            prefix = ".".join(parts[:count]) + "."
            if prefix not in seen and name.removeprefix(prefix) in others:
                seen.add(prefix)
                yield prefix


def _may_be_missing(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def _compare(model: nn.Module, weights: dict[str, Tensor], file: Path) -> None:
    expected = model.state_dict()
    problems = []
    missing = [key for key in expected if key not in weights and not _may_be_missing(key)]
    unexpected = [key for key in weights if key not in expected]
    if missing:
        problems.append(f"missing ({len(missing)}): {_some(missing)}")
    if unexpected:
        problems.append(f"unexpected ({len(unexpected)}): {_some(unexpected)}")
    shapes = [key for key in expected if key in weights and expected[key].shape != weights[key].shape]
    for key in shapes[:8]:
        line = f"{key}: the model has {tuple(expected[key].shape)}, the file {tuple(weights[key].shape)}"
        if key.partition(".")[0] in ("linear", "fc3") and expected[key].shape[1:] == weights[key].shape[1:]:
            line += f"; build the model with num_classes={weights[key].shape[0]}"
        if key == "conv1.weight" and expected[key].shape[2:] == weights[key].shape[2:]:
            line += f"; build the model with in_channels={weights[key].shape[1]}"
        problems.append(line)
    if len(shapes) > 8:
        problems.append(f"... and {len(shapes) - 8} more shapes differ")
    real = [key for key in expected if key in weights and expected[key].is_floating_point()]
    other = [f"{key} ({weights[key].dtype})" for key in real if not weights[key].is_floating_point()]
    unlike = [k for k in expected if k in weights and k not in real and weights[k].is_complex()]
    other += [f"{key} ({weights[key].dtype})" for key in unlike]
    if other:
        problems.append(f"not floating-point ({len(other)}): {_some(other)}")
    parameters = dict(model.named_parameters())
    bad = [
        key
        for key in real
        if weights[key].is_floating_point()
        and bool((~weights[key].isfinite() if key in parameters else weights[key].isnan()).any())
    ]
    if bad:
        problems.append(f"NaN or infinite ({len(bad)}): {_some(bad)}; training went wrong before they were saved")
    if problems:
        modules = {key.partition(".")[0] for key in expected}
        if missing or any(key.partition(".")[0] in modules for key in unexpected):
            problems.append("the file holds another architecture or depth: build the model it was saved from")
        elif unexpected:
            problems.append(
                "the file holds more than this model's weights: save model.state_dict() alone, or build the model it "
                "was saved from"
            )
        raise CheckpointError(f"{file} does not fit {type(model).__name__}:\n  " + "\n  ".join(problems))


def _some(keys: list[str], limit: int = 6) -> str:
    return ", ".join(keys[:limit]) + (f", ... and {len(keys) - limit} more" if len(keys) > limit else "")
