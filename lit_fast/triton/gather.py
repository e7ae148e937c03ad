"""Gathers a batch of a resident dataset, cropped, mirrored and normalised: see ``lit_fast.data.gather``."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lit_fast.triton.launch import BLOCK, Launch, ceil_div


@triton.jit(do_not_specialize=["first", "length", "count"])
def gather_kernel(
    position,  # []
    plan,  # [2 or 5, length]: image, label, crop row, crop column, flip
    images,  # [count, CHANNELS, HEIGHT, WIDTH]
    levels,  # [CHANNELS, 256] in the type of out; None for tokens
    out,  # [B, CHANNELS, HEIGHT, WIDTH] in either memory format, or tokens [B, WIDTH]
    labels,  # [B]
    first,
    length,
    count,
    PAD: tl.constexpr,
    MOVED: tl.constexpr,  # the plan holds crops and flips
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program writes one block of one image. A row beyond the plan gets the label -1 and empty pixels."""
    program = tl.program_id(0)
    b = (program // BLOCKS).to(tl.int64)
    at = tl.load(position) + first + b
    planned = (at >= 0) & (at < length)
    image = tl.load(plan + at, planned, other=-1)
    known = (image >= 0) & (image < count)

    SIZE: tl.constexpr = CHANNELS * HEIGHT * WIDTH
    element = (program % BLOCKS) * BLOCK + tl.arange(0, BLOCK)  # in the order of out's memory
    if CHANNELS_LAST:
        channel, pixel = element % CHANNELS, element // CHANNELS
    else:
        channel, pixel = element // (HEIGHT * WIDTH), element % (HEIGHT * WIDTH)
    y, x = pixel // WIDTH, pixel % WIDTH
    if MOVED:
        flip = tl.load(plan + 4 * length + at, planned, other=0) != 0
        x = tl.where(flip, WIDTH - 1 - x, x)
        y += (tl.load(plan + 2 * length + at, planned, other=0) - PAD).to(tl.int32)
        x += (tl.load(plan + 3 * length + at, planned, other=0) - PAD).to(tl.int32)
    inside = (element < SIZE) & (y >= 0) & (y < HEIGHT) & (x >= 0) & (x < WIDTH) & known
    value = tl.load(images + image * SIZE + (channel * HEIGHT + y) * WIDTH + x, inside, other=0)
    if levels is None:
        value = value.to(tl.int64)
    else:
        value = tl.load(levels + channel * 256 + value.to(tl.int32), element < SIZE, other=0.0)
    tl.store(out + b * SIZE + element, value, element < SIZE)
    if program % BLOCKS == 0:
        tl.store(labels + b, tl.load(plan + length + at, known, other=-1))


def gather_launch(
    position: Tensor,
    plan: Tensor,
    images: Tensor,
    levels: Tensor | None,
    pad: int,
    first: int,
    out: Tensor,
    labels: Tensor,
) -> Launch:
    """The launch that writes a batch of at least one row; the tensors as in ``lit_fast.data.gather``."""
    channels, height, width = (1, 1, images.shape[1]) if levels is None else images.shape[1:]
    blocks = ceil_div(channels * height * width, BLOCK)
    arguments = {
        "position": position,
        "plan": plan,
        "images": images,
        "levels": levels,
        "out": out,
        "labels": labels,
        "first": first,
        "length": plan.shape[1],
        "count": len(images),
        "PAD": pad,
        "MOVED": plan.shape[0] > 2,
        "CHANNELS": channels,
        "HEIGHT": height,
        "WIDTH": width,
        "CHANNELS_LAST": not out.is_contiguous(),
        "BLOCKS": blocks,
        "BLOCK": BLOCK,
    }
    return Launch(gather_kernel, len(out) * blocks, arguments)
