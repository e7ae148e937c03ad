"""The host's side of BatchNorm in training: how its work is cut, and the launches of `batch_norm_kernels`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_fast.triton.batch_norm_kernels import (
    finish_moments_kernel,
    finish_sums_kernel,
    moments_kernel,
    normalise_kernel,
    slope_kernel,
    sums_kernel,
)
from lit_fast.triton.launch import Launch, ceil_div, triton_dtype
from lit_fast.triton.scalars import three_floats

TILE = 4096  # elements that a program takes at once, 16 for each of its threads; half as many of float64
WARPS = 8
FEWEST, MOST = 8, 64  # channels of a tile
PROGRAMS = 512  # with partial sums, at most: 4 for each multiprocessor of the largest GPUs


class Running(NamedTuple):
    """What a training pass updates; see ``torch.nn.BatchNorm2d``."""

    mean: Tensor | None = None  # [channels]
    var: Tensor | None = None  # [channels]
    tracked: Tensor | None = None  # [] int64
    momentum: float | None = 0.0  # None: a cumulative average


class Plan(NamedTuple):
    """How the work is cut: by sizes alone."""

    rows: int
    channels: int
    height: int  # rows of a tile
    columns: int  # channels of a tile
    tiles: int  # above one another
    blocks: int  # side by side
    steps: int  # tiles of a program
    programs: int  # above one another

    @property
    def few(self) -> bool:
        """Whether every program can sum all partial results of its channels by itself: as many as a tile's elements."""
        return self.programs <= self.height


def plan_for(x: Tensor) -> Plan:
    """x: [rows, channels], neither of them 0."""
    rows, channels = x.shape
    tile = TILE // 2 if x.dtype == torch.float64 else TILE
    columns = min(max(1 << (channels - 1).bit_length(), FEWEST), MOST)
    height, blocks = tile // columns, ceil_div(channels, columns)
    tiles = ceil_div(rows, height)
    steps = ceil_div(tiles, max(1, min(PROGRAMS, tile // FEWEST) // blocks))
    return Plan(rows, channels, height, columns, tiles, blocks, steps, ceil_div(tiles, steps))


@dataclass(frozen=True)
class Forward:
    """Tensors and numbers of a forward pass; rows of x, residual and y are dense."""

    x: Tensor  # [rows, channels]
    residual: Tensor | None  # [rows, channels]
    weight: Tensor | None  # [channels]
    bias: Tensor | None  # [channels]
    y: Tensor  # [rows, channels], to be written
    moments: Tensor  # [2, channels], to be written: mean, 1 / sqrt(var + eps)
    running: Running
    eps: float
    relu: bool


@dataclass(frozen=True)
class Backward:
    """Tensors of a backward pass; rows of dy, x, y, dx and masked are dense."""

    dy: Tensor  # [rows, channels]
    x: Tensor  # [rows, channels]
    y: Tensor | None  # [rows, channels]; None without residual
    weight: Tensor | None  # [channels]
    bias: Tensor | None  # [channels]
    moments: Tensor  # [2, channels]
    dx: Tensor  # [rows, channels], to be written
    masked: Tensor | None  # [rows, channels], to be written: the residual's gradient; None where that is dy, or none
    grad_weight: Tensor  # [channels] in the type that is computed in, to be written
    grad_bias: Tensor  # [channels] in the type that is computed in, to be written
    relu: bool


def forward_launches(f: Forward) -> list[Launch]:
    """The launches that write y, moments and running statistics; they must run in order, on one stream."""
    plan = plan_for(f.x)
    partials = _partials(plan, f.moments)
    running = f.running
    numbers = (*three_floats(f.eps), *three_floats(running.momentum or 0.0))
    cumulative = running.momentum is None and running.mean is not None
    sizes, common = _sizes(plan), _common(plan, f.moments)
    finishing = {
        "partials": partials,
        "moments": f.moments,
        "running_mean": running.mean,
        "running_var": running.var,
        "tracked": running.tracked if cumulative else None,
        "numbers": numbers,
        "programs": plan.programs,
        "each": plan.steps * plan.height,
    }
    tensors: dict[str, Any] = {"x": f.x, "residual": f.residual, "weight": f.weight, "bias": f.bias, "y": f.y}
    first = {"x": f.x, "partials": partials, "tracked": running.tracked, "steps": plan.steps, **sizes, **common}
    last = {**tensors, **finishing, **sizes, **common, **_second(plan), "RELU": f.relu}
    between = {**finishing, "rows": plan.rows, "channels": plan.channels, "DTYPE": common["DTYPE"], **_wide(f.x)}
    return _launches(plan, (moments_kernel, first), (finish_moments_kernel, between), (normalise_kernel, last))


def backward_launches(b: Backward) -> list[Launch]:
    """The launches that write every gradient; they must run in order, on one stream."""
    plan = plan_for(b.x)
    partials = _partials(plan, b.moments)
    tensors: dict[str, Any] = {"x": b.x, "weight": b.weight, "bias": b.bias, "moments": b.moments}
    shared = {**tensors, **_sizes(plan), **_common(plan, b.moments)}
    finishing = {
        "partials": partials,
        "grad_bias": b.grad_bias,
        "grad_weight": b.grad_weight,
        "programs": plan.programs,
    }
    read = {"dy": b.dy, "y": b.y, "masked": b.masked}
    first = {**shared, **read, "partials": partials, "steps": plan.steps, "RELU": b.relu}
    g = b.dy if b.masked is None else b.masked
    last = {**shared, **finishing, **_second(plan), "dy": g, "dx": b.dx, "RELU": b.relu and b.masked is None}
    between = {**finishing, "channels": plan.channels, **_wide(b.x)}
    return _launches(plan, (sums_kernel, first), (finish_sums_kernel, between), (slope_kernel, last))


def _launches(plan: Plan, first: tuple[Any, dict], between: tuple[Any, dict], last: tuple[Any, dict]) -> list[Launch]:
    launches = [Launch(first[0], plan.programs * plan.blocks, first[1], WARPS)]
    if not plan.few:
        launches.append(Launch(between[0], ceil_div(plan.channels, FEWEST), between[1], WARPS))
    programs = plan.programs if plan.few else plan.tiles
    return [*launches, Launch(last[0], programs * plan.blocks, last[1], WARPS)]


def _partials(plan: Plan, like: Tensor) -> Tensor:
    return like.new_empty(plan.programs, 2, plan.channels)


def _sizes(plan: Plan) -> dict[str, int]:
    return {"rows": plan.rows, "channels": plan.channels, "blocks": plan.blocks}


def _common(plan: Plan, moments: Tensor) -> dict[str, Any]:
    return {"DTYPE": triton_dtype(moments.dtype), "ROWS": plan.height, "COLUMNS": plan.columns}


def _second(plan: Plan) -> dict[str, Any]:
    """Of the launch over all elements: programs that sum partial results themselves take as many tiles as those had."""
    return {"FINISHED": not plan.few, "steps": plan.steps if plan.few else 1}


def _wide(x: Tensor) -> dict[str, int]:
    """Of the launch in between: few channels for each program, so that it holds the partial results of all programs."""
    return {"COUNT": (TILE // 2 if x.dtype == torch.float64 else TILE) // FEWEST, "COLUMNS": FEWEST}
