"""The op that makes a batch of a dataset that lies on the device: rows gathered, cropped, mirrored and normalised.

One call writes the inputs and labels of the rows that follow `position`, which it reads on the device: a CUDA graph
that recorded the call makes another batch at each replay. Nothing is drawn and nothing computed about pixels: `levels`
holds the network's input for each of the 256 values of a pixel, so every implementation gives the same bits.

    position  int64 []                  row of the plan that the global batch starts with
    plan      int64 [2, N] or [5, N]    for each row of the epoch: image, label; crop row, crop column, flip (0 or 1)
    images    uint8 [M, C, H, W], or tokens [M, L]; contiguous
    levels    [C, 256], in the type of out; None for tokens
    pad       zero pixels around an image; crop rows and columns lie in 0 .. 2 * pad
    first     rows of the global batch before this one, which other processes take
    out       float32, float16 or bfloat16 [B, C, H, W], contiguous or channels_last; tokens: int64 [B, L], contiguous
    labels    int64 [B], contiguous

On the CPU a row beyond the plan is an error. Kernels on a GPU cannot raise: there it gets the label -1, which makes the
loss NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lit_fast.data.augment import crop_and_flip, normalise
from lit_fast.extension import EXTENSION
from lit_fast.triton import support

__all__ = ["MOVES", "eager_gather", "gather_for", "levels"]

Gather = Callable[[Tensor, Tensor, Tensor, "Tensor | None", int, int, Tensor, Tensor], None]
MOVES = 5  # rows of a plan with crops and flips


def levels(mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """What `normalise` makes of every value of a pixel: [C, 256]."""
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, len(mean), 16, 16)
    return normalise(values, mean, std).view(len(mean), 256).to(dtype)


def gather_for(device: torch.device) -> Gather:
    """The fastest implementation for tensors on a device: compiled on the CPU, Triton's on a GPU, else `eager_gather`.

    All check their arguments and raise ValueError for what they would read or write out of bounds.
    """
    if device.type == "cpu" and EXTENSION.loaded:
        compiled: Gather = torch.ops.lit_fast.gather_batch.default
        return compiled
    if device.type == "cuda" and support.available("cuda", device.index)[0]:
        kernel: Gather = torch.ops.lit_fast.gather_batch_triton.default
        return kernel
    return eager_gather


def eager_gather(
    position: Tensor,
    plan: Tensor,
    images: Tensor,
    table: Tensor | None,
    pad: int,
    first: int,
    out: Tensor,
    labels: Tensor,
) -> None:
    """The op in plain PyTorch, for any device; no host sync."""
    _check(position, plan, images, table, out, labels)
    rows = plan.index_select(1, position + first + torch.arange(len(out), device=out.device))
    raw = images.index_select(0, rows[0])
    if len(plan) == MOVES:
        raw = crop_and_flip(raw, pad, rows[2], rows[3], rows[4].bool())
    labels.copy_(rows[1])
    if table is None:
        out.copy_(raw)
    else:
        planes = [values.index_select(0, plane.flatten().int()) for values, plane in zip(table, raw.unbind(1))]
        out.copy_(torch.stack([p.view(len(out), *raw.shape[2:]) for p in planes], 1))


def _triton_gather(
    position: Tensor,
    plan: Tensor,
    images: Tensor,
    table: Tensor | None,
    pad: int,
    first: int,
    out: Tensor,
    labels: Tensor,
) -> None:
    from lit_fast.triton.gather import gather_launch

    _check(position, plan, images, table, out, labels)
    if len(out):
        with support.on_device(out.device):
            gather_launch(position, plan, images, table, pad, first, out, labels).run()


def _check(position: Tensor, plan: Tensor, images: Tensor, table: Tensor | None, out: Tensor, labels: Tensor) -> None:
    """Refuse what would be read or written out of bounds; csrc/cpu/gather.cpp does the same."""
    if position.numel() != 1 or position.dtype is not torch.int64:
        raise ValueError(f"gather_batch: position: expected one int64, got {_shown(position)}")
    if plan.dim() != 2 or plan.shape[0] not in (2, MOVES) or plan.dtype is not torch.int64 or not plan.is_contiguous():
        raise ValueError(f"gather_batch: plan: expected contiguous int64 [2 or 5, N], got {_shown(plan)}")
    dims = 2 if table is None else 4
    if images.dim() != dims or images.dtype is not torch.uint8 or not images.is_contiguous():
        raise ValueError(
            "gather_batch: images: expected contiguous uint8 [M, C, H, W], or [M, L] without levels, got "
            f"{_shown(images)}"
        )
    if out.dim() != dims or out.shape[1:] != images.shape[1:]:
        raise ValueError(f"gather_batch: out: expected [B, ...] of images {list(images.shape)}, got {_shown(out)}")
    if not (out.is_contiguous() or (dims == 4 and out.is_contiguous(memory_format=torch.channels_last))):
        raise ValueError(f"gather_batch: out: expected contiguous or channels_last, got strides {out.stride()}")
    if labels.shape != out.shape[:1] or labels.dtype is not torch.int64 or not labels.is_contiguous():
        raise ValueError(f"gather_batch: labels: expected contiguous int64 [{len(out)}], got {_shown(labels)}")
    if table is None:
        if out.dtype is not torch.int64:
            raise ValueError(f"gather_batch: out: expected int64 for tokens, got {_shown(out)}")
        return
    if table.shape != (images.shape[1], 256) or table.dtype is not out.dtype or not table.is_contiguous():
        expected = f"{str(out.dtype).removeprefix('torch.')} [{images.shape[1]}, 256]"
        raise ValueError(f"gather_batch: levels: expected contiguous {expected}, got {_shown(table)}")


def _shown(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


# --- registration

_library = torch.library.Library("lit_fast", "FRAGMENT")
_library.define(
    "gather_batch_triton(Tensor position, Tensor plan, Tensor images, Tensor? levels, int pad, int first, "
    "Tensor(a!) out, Tensor(b!) labels) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
for _key in ("CPU", "CUDA"):
    _library.impl("gather_batch_triton", _triton_gather, _key)
torch.library.register_fake("lit_fast::gather_batch_triton", lambda *_: None, lib=_library)
if EXTENSION.loaded:
    torch.library.register_fake("lit_fast::gather_batch", lambda *_: None, lib=_library)
