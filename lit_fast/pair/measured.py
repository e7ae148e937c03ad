"""Where options of the step are on by themselves: where committed figures say that they make it faster.

The figures are benchmarks/results/nvidia-h200.json: the captured step of ResNet-110 to 20 in bfloat16 at batches of 32,
128 and 1024, with ``side_by_side``, with ``fused_norm`` and with both, is faster with each. What is unlike that in kind
(another generation of GPUs, another precision, wider layers, no graph) was not measured, and stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import torch
from torch import nn

from lit_fast.literals import Switch
from lit_fast.sections.model import SplitModel
from lit_fast.triton import support

__all__ = ["CAPABILITY", "PRECISION", "WIDEST", "Switches", "switches"]

CAPABILITY = (9, 0)  # of the H200, and of the H100
PRECISION = "bf16"
WIDEST = 64  # channels of a BatchNorm


class Switches(TypedDict):
    side_by_side: Switch
    fused_norm: Switch


def switches(options: Mapping[str, Any], student: SplitModel, precision: str, capture: bool) -> Switches:
    """What a step's options say of both, with ``"auto"`` decided: never on where True is refused."""
    asked = (options.get("side_by_side", "auto"), options.get("fused_norm", "auto"))
    faster = "auto" in asked and _is_as_measured(student, precision, capture)
    side_by_side, fused_norm = (faster if one == "auto" else one for one in asked)
    if asked[0] == "auto" and options.get("bn_policy") == "both":
        side_by_side = False
    if asked[1] == "auto" and fused_norm:
        device = next(student.parameters()).device
        fused_norm, _ = support.available(device.type, device.index)
    return {"side_by_side": side_by_side, "fused_norm": fused_norm}


def _is_as_measured(student: SplitModel, precision: str, capture: bool) -> bool:
    device = next(student.parameters()).device
    if device.type != "cuda" or precision != PRECISION or not capture or student.how != "traced":
        return False
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) != CAPABILITY:
        return False
    widths = [module.num_features for module in student.modules() if isinstance(module, nn.BatchNorm2d)]
    return bool(widths) and max(widths) <= WIDEST
