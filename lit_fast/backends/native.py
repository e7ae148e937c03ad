"""The LIT loss by the compiled op ``lit_fast::lit_loss`` (csrc/ops.cpp)."""

from __future__ import annotations

import functools

import torch

from lit_fast.backends import extension, fused

# Loaded with this module, so that a compiled graph sees a fact and no loading.
EXTENSION = extension.load()


def available(device_type: str = "cpu", _device_index: int | None = None) -> tuple[bool, str]:
    """Whether the op can be used for tensors on a device of this type, and why or why not."""
    if EXTENSION.loaded and device_type not in EXTENSION.devices:
        return False, f"the compiled extension has no code for {device_type}"
    return EXTENSION.loaded, EXTENSION.reason


if EXTENSION.loaded:
    lit_loss = functools.partial(
        fused.lit_loss, fused.Ops(torch.ops.lit_fast.lit_loss.default, torch.ops.lit_fast.rescale_.default)
    )
    torch.library.register_fake("lit_fast::lit_loss")(fused.fake)

    @torch.library.register_fake("lit_fast::rescale_")
    def _fake_rescale_(grads: list[torch.Tensor], factor: torch.Tensor) -> None:
        pass
