"""The LIT loss by the compiled op ``lit_fast::lit_loss`` (csrc/lit_loss.h)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from lit_fast.extension import EXTENSION
from lit_fast.loss.backends import fused, ops


def available(device_type: str = "cpu", device_index: int | None = None) -> tuple[bool, str]:
    """Whether the op can be used for tensors on such a device, and why or why not."""
    if not EXTENSION.loaded:
        return False, EXTENSION.reason
    if device_type not in EXTENSION.devices:
        return False, f"the compiled extension has no code for {device_type}"
    if device_type == "cuda" and not runs_on(torch.cuda.get_device_capability(device_index), EXTENSION.cuda_archs):
        name, codes = torch.cuda.get_device_name(device_index), ", ".join(EXTENSION.cuda_archs)
        return False, f"the compiled extension has code for {codes}, which {name} cannot run"
    return True, EXTENSION.reason


def runs_on(capability: tuple[int, int], codes: Sequence[str]) -> bool:
    """Whether a GPU runs any of these: machine code of its major version, as new or older, or PTX as old or older."""
    for code in codes:
        kind, _, number = code.partition("_")
        digits = number.rstrip("af")  # sm_90a, compute_100f: of that very architecture
        own = int(digits[:-1]), int(digits[-1])
        exact = number != digits
        fits = own == capability if exact else own <= capability and (kind == "compute" or own[0] == capability[0])
        if fits:
            return True
    return False


if EXTENSION.loaded:
    _library = ops.define("")
    _ops = torch.ops.lit_fast
    lit_loss = functools.partial(
        fused.lit_loss, fused.Ops(_ops.lit_loss.default, _ops.rescale_.default, _ops.lit_loss_total.default)
    )
