"""Sizes of a model: parameters, layers, multiply-accumulates.

MACs are half of what `torch.utils.flop_counter` counts: convolutions, matrix products and attention; not BatchNorm,
activations or additions. That is the convention of the method's table (ResNet-20: 40.6 MMACs).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_fast.sections.dryrun import on_meta, untouched
from lit_fast.sections.inputs import Inputs, call, num_rows, replaced
from lit_fast.sections.model import SplitModel
from lit_fast.sections.parts import Part
from lit_fast.sections.tracing import set_mode

_WEIGHT_LAYERS = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.MultiheadAttention,
)
# What published models call the projection on a shortcut, which "ResNet-50" does not count as a layer.
_SHORTCUTS = ("shortcut", "downsample")


def count_parameters(module: nn.Module) -> int:
    """Number of parameters (elements), each shared one once."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_nonzero(module: nn.Module) -> int:
    """Number of parameters (elements) that are not zero, each shared one once."""
    return sum(int(parameter.count_nonzero()) for parameter in module.parameters())


def count_layers(module: nn.Module) -> int:
    """Number of layers with a weight matrix, as in "ResNet-20": convolutions and linear layers off the shortcuts.

    The input projection of nn.MultiheadAttention counts as one, its output projection as another.
    """
    return sum(
        isinstance(layer, _WEIGHT_LAYERS) and not any(name in _SHORTCUTS for name in path.split("."))
        for path, layer in module.named_modules()
    )


def count_part_macs(model: SplitModel, inputs: Sequence[Any]) -> list[int]:
    """Multiply-accumulates per image of stem, sections and head, as `count_macs` counts them.

    Args:
        model: the split model.
        inputs: of each part, [B, ...]; a recorded model takes the first alone, and runs once.
    """
    if model.how == "traced":
        return [count_macs(part, x[:1]) for part, x in zip(model.parts, inputs)]
    with torch.no_grad(), set_mode(model, False), _nothing_fused():
        marks = _flops_at(model, inputs[0])
    return [(after - before) // 2 // num_rows(inputs[0]) for before, after in itertools.pairwise(marks)]


def _flops_at(model: SplitModel, inputs: Inputs) -> list[int]:
    """Operations up to the beginning, the start of section 1, the end of each section, and the end."""
    from torch.utils.flop_counter import FlopCounterMode

    def marks_of(inputs: Inputs) -> list[int]:
        marks = [0]

        def note(*_: Any) -> None:
            marks.append(int(counter.get_total_flops()))

        def around(i: int) -> contextlib.AbstractContextManager[None]:
            if i == 0:
                note()
            return contextlib.nullcontext()

        with FlopCounterMode(display=False) as counter:
            model.run(inputs, note, around=around)
            note()
        model.release()
        return marks

    try:
        with on_meta(model):
            return marks_of(replaced(inputs, _on_meta))
    except Exception:  # whatever a forward raises when its tensors have no values
        with untouched(model):
            return marks_of(inputs)


def _on_meta(value: Any) -> Any:
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value


def count_macs(module: nn.Module, example: Inputs) -> int:
    """Multiply-accumulates per image of one forward in eval mode.

    Counted on shapes alone, on torch's meta device. Where a module cannot run there (its forward looks at values) it
    runs once on ``example``. Nothing of the model is changed, nor the random state.

    Args:
        module: a model, a split model or one of its parts.
        example: its inputs, [B, ...]; the count is divided by B.

    Example:
        >>> from lit_fast.models import resnet20
        >>> count_macs(resnet20(), torch.zeros(1, 3, 32, 32)) / 1e6
        40.55104
    """
    owner = module.owner if isinstance(module, Part) else module
    with torch.no_grad(), set_mode(owner, False), _nothing_fused():
        return _flops(owner, module, example) // 2 // num_rows(example)


@contextlib.contextmanager
def _nothing_fused() -> Iterator[None]:
    """Attention as matrix products: torch's counter does not know its fused encoder layer, nor the CPU's attention."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _flops(owner: nn.Module, module: nn.Module, example: Inputs) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with on_meta(owner), FlopCounterMode(display=False) as counter:
            call(module, replaced(example, _on_meta))
    except Exception:  # whatever a forward raises when its tensors have no values
        with untouched(owner), FlopCounterMode(display=False) as counter:
            call(module, example)
    return int(counter.get_total_flops())
