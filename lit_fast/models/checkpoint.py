"""Read weights into a model, from this project's files or from published ones, and say by name what does not fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_fast.errors import CheckpointError

# Keys under which training scripts wrap their weights, tried in this order.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
# DistributedDataParallel and DataParallel write the first, torch.compile the second.
PREFIXES = ("module.", "_orig_mod.")


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load the weights in ``path`` into ``model``, in place, wherever they were saved.

    Reads ``torch.save`` files (with ``weights_only=True``, onto the CPU) and ``.safetensors``. Unwraps
    ``{"state_dict": ...}`` and the like, strips ``module.``. Every parameter must be there with its shape; only
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
    weights = _strip(_unwrap(_read(file), file), model)
    _compare(model, weights, file)
    model.load_state_dict(weights, strict=False)  # strict but for num_batches_tracked: _compare has looked


def _read(file: Path) -> Any:
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file, device="cpu")
        except SafetensorError as error:
            raise CheckpointError(
                f"{file}: not a whole safetensors file ({error}); copy or download it again"
            ) from error
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # torch.load raises UnpicklingError, RuntimeError, EOFError, KeyError ... by kind of damage
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{file}: cannot be read as a file of weights ({reason[0] if reason else type(error).__name__}). It may "
            "be cut short, or hold Python objects, which are not loaded because they could run code: save "
            "model.state_dict() with torch.save or as .safetensors"
        ) from error


def _unwrap(loaded: Any, file: Path) -> dict[str, Tensor]:
    for key in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        held = f"keys {list(loaded)[:8]}" if isinstance(loaded, Mapping) else type(loaded).__name__
        raise CheckpointError(
            f"{file}: expected a state_dict of tensors, bare or under one of {', '.join(WRAPPERS)}; got {held}"
        )
    return dict(loaded)


def _strip(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Take off the prefixes that all keys share, unless the model's own keys have them."""
    own = model.state_dict().keys()
    while not weights.keys() & own:
        shared = [prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in weights)]
        if not shared:
            break
        weights = {key.removeprefix(shared[0]): value for key, value in weights.items()}
    return weights


def _compare(model: nn.Module, weights: dict[str, Tensor], file: Path) -> None:
    expected = model.state_dict()
    problems = []
    missing = [key for key in expected if key not in weights and not key.endswith("num_batches_tracked")]
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
    if problems:
        if missing or unexpected:
            problems.append("the file holds another architecture or depth: build the model it was saved from")
        raise CheckpointError(f"{file} does not fit {type(model).__name__}:\n  " + "\n  ".join(problems))


def _some(keys: list[str], limit: int = 6) -> str:
    return ", ".join(keys[:limit]) + (f", ... and {len(keys) - limit} more" if len(keys) > limit else "")
