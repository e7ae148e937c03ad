"""BatchNorm with the batch's statistics, residual and ReLU, forward and backward, over channels that lie innermost.

    y = relu(w (x - m) s + b + r),  s = 1 / sqrt(v + eps),  m and v of each channel, over all rows of x [rows, channels]
    g = dy where y > 0, else 0;     dr = g,  db = sum g,  dw = sum g (x - m) s,
    dx = w s (g - db / rows - (x - m) s dw / rows)                                    Ioffe and Szegedy 2015, section 3

Two launches each way: the first leaves partial sums, one of each program and channel; in the second, every program sums
those of its channels and goes over its elements. Where they are so many that reading them would take longer than a
launch, one in between sums them. No atomics: the same bits in every run.

A mean and the sum of squared deviations from it (M2) are kept, never a sum of squares, so that a large mean cancels
nothing (Welford 1962; Chan, Golub and LeVeque 1983).

Without residual, backward computes the sign of y anew from x, so that it reads two tensors. With one it reads y, writes
dr in the first launch, and takes that for dy in the second.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lit_fast.triton.maths import rounded, widened
from lit_fast.triton.scalars import exact

# --- what kernels share


@triton.jit
def place_of(blocks, COLUMNS: tl.constexpr):
    """Of a program: its number among those with the same channels, and these, [COLUMNS]."""
    program = tl.program_id(0)
    return program // blocks, (program % blocks) * COLUMNS + tl.arange(0, COLUMNS)


@triton.jit
def tile_at(start, channel, rows, channels, ROWS: tl.constexpr):
    """Of the tile from row `start` on: the offset of its first row, those within it, and what is inside the tensor."""
    row = tl.arange(0, ROWS)
    left = tl.minimum(rows - start, ROWS).to(tl.int32)
    inside = (row < left)[:, None] & (channel < channels)[None, :]
    return start * channels, row[:, None] * channels + channel[None, :], inside


@triton.jit
def of_channels(pointer, channel, channels, DEFAULT: tl.constexpr, DTYPE: tl.constexpr):
    """A vector's numbers for these channels; the default where there is no vector."""
    values = tl.full(channel.shape, DEFAULT, DTYPE)
    if pointer is not None:
        values = widened(tl.load(pointer + channel, channel < channels, other=0.0), DTYPE)
    return values


@triton.jit
def normalised(centred, scale, bias):
    """w (x - m) s + b from x - m and w s; forward and backward must see the same sign."""
    return centred * scale[None, :] + bias[None, :]


@triton.jit
def combined(mean, m2, count, total, COUNT: tl.constexpr):
    """Mean and M2, [COLUMNS], of `total` rows, from those of COUNT groups: mean, M2 [COUNT, COLUMNS], count [COUNT].

    The means are taken from that of the first group on, which has rows, so that what is summed is small.
    """
    group = tl.arange(0, COUNT)
    near = tl.sum(tl.where(group[:, None] == 0, mean, 0.0), 0)
    off = mean - near[None, :]
    shift = tl.sum(count[:, None] * off, 0) / total
    rest = off - shift[None, :]
    return near + shift, tl.sum(m2 + count[:, None] * rest * rest, 0)


@triton.jit
def partials_of(partials, programs, channel, channels, COUNT: tl.constexpr):
    """Both partial results of every program for these channels, [COUNT, COLUMNS] each; 0 beyond the last program."""
    program = tl.arange(0, COUNT)
    inside = (program < programs)[:, None] & (channel < channels)[None, :]
    place = partials + program[:, None] * (2 * channels) + channel[None, :]
    return tl.load(place, inside, other=0.0), tl.load(place + channels, inside, other=0.0)


# --- forward


@triton.jit(do_not_specialize=["rows", "blocks", "steps"])
def moments_kernel(
    x,  # [rows, channels]
    partials,  # [programs, 2, channels]: mean, M2
    tracked,  # [] int64, or None: batches seen, this one is to be added
    rows,
    channels,
    blocks,  # of COLUMNS channels
    steps,  # tiles of each program
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Mean and M2 of `steps` tiles: first of each place in the tile, by Welford's recurrence, then of all of them."""
    program, channel = place_of(blocks, COLUMNS)
    mean = tl.zeros([ROWS, COLUMNS], DTYPE)
    m2 = tl.zeros([ROWS, COLUMNS], DTYPE)
    seen = tl.cast(0.0, DTYPE)
    first = program.to(tl.int64) * steps
    for tile in range(first, first + steps):
        start, offset, inside = tile_at(tile * ROWS, channel, rows, channels, ROWS)
        value = widened(tl.load(x + start + offset, inside, other=0.0), DTYPE)
        seen += 1.0
        delta = tl.where(inside, value - mean, 0.0)
        mean += delta * (1.0 / seen)
        m2 += delta * (value - mean)
    left = rows - first * ROWS  # at least 1
    count = tl.minimum(tl.maximum(left - tl.arange(0, ROWS) + (ROWS - 1), 0) // ROWS, steps)
    total = tl.minimum(left, steps.to(tl.int64) * ROWS)
    mean_of_all, m2_of_all = combined(mean, m2, count.to(DTYPE), total.to(DTYPE), ROWS)
    place = partials + program * (2 * channels) + channel
    tl.store(place, mean_of_all, channel < channels)
    tl.store(place + channels, m2_of_all, channel < channels)
    if tracked is not None:  # noqa: SIM102, decided when it is compiled
        if tl.program_id(0) == 0:
            tl.store(tracked, tl.load(tracked) + 1)


@triton.jit
def finished_moments(
    partials,
    moments,
    running_mean,
    running_var,
    tracked,
    numbers,
    rows,
    channels,
    programs,
    each,
    channel,
    writes,
    DTYPE: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Mean and 1 / sqrt(var + eps) of these channels; if it `writes`, they are kept and the running ones updated."""
    program = tl.arange(0, COUNT).to(tl.int64)
    count = tl.minimum(tl.maximum(rows - program * each, 0), each).to(DTYPE)
    means, m2s = partials_of(partials, programs, channel, channels, COUNT)
    total = tl.cast(rows, DTYPE)
    mean, m2 = combined(means, m2s, count, total, COUNT)
    inverse = 1.0 / tl.sqrt(m2 / total + exact(numbers[0], numbers[1], numbers[2]).to(DTYPE))
    if writes:
        known = channel < channels
        tl.store(moments + channel, mean, known)
        tl.store(moments + channels + channel, inverse, known)
        if running_mean is not None:
            part = exact(numbers[3], numbers[4], numbers[5]).to(DTYPE)
            if tracked is not None:  # a cumulative average
                part = 1.0 / tl.load(tracked).to(DTYPE)
            old_mean = widened(tl.load(running_mean + channel, known, other=0.0), DTYPE)
            old_var = widened(tl.load(running_var + channel, known, other=0.0), DTYPE)
            new_mean = (1.0 - part) * old_mean + part * mean
            new_var = (1.0 - part) * old_var + part * (m2 / (total - 1.0))
            tl.store(running_mean + channel, rounded(new_mean, running_mean.dtype.element_ty), known)
            tl.store(running_var + channel, rounded(new_var, running_var.dtype.element_ty), known)
    return mean, inverse


@triton.jit(do_not_specialize=["rows", "programs", "each"])
def finish_moments_kernel(
    partials,  # [programs, 2, channels]: mean, M2
    moments,  # [2, channels]: mean, 1 / sqrt(var + eps)
    running_mean,  # [channels], or None
    running_var,  # [channels], or None
    tracked,  # [] int64, or None where momentum is a number
    numbers,  # 6 floats: eps, momentum
    rows,
    channels,
    programs,
    each,  # rows of each program
    DTYPE: tl.constexpr,
    COUNT: tl.constexpr,  # a power of 2 >= programs
    COLUMNS: tl.constexpr,
):
    """The launch between the two, where there are many partial moments."""
    channel = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    finished_moments(
        partials, moments, running_mean, running_var, tracked, numbers, rows, channels, programs, each, channel, True,
        DTYPE, COUNT,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "blocks", "programs", "each", "steps"])
def normalise_kernel(
    x,  # [rows, channels]
    residual,  # [rows, channels], or None
    weight,  # [channels], or None: 1
    bias,  # [channels], or None: 0
    y,  # [rows, channels]
    partials,  # [programs, 2, channels]: mean, M2
    moments,  # [2, channels]: mean, 1 / sqrt(var + eps)
    running_mean,  # [channels], or None
    running_var,  # [channels], or None
    tracked,  # [] int64, or None where momentum is a number
    numbers,  # 6 floats: eps, momentum
    rows,
    channels,
    blocks,
    programs,
    each,  # rows of each program with partial moments
    steps,  # tiles of each program
    FINISHED: tl.constexpr,  # the moments are there
    RELU: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """y of `steps` tiles."""
    program, channel = place_of(blocks, COLUMNS)
    if FINISHED:
        mean = of_channels(moments, channel, channels, 0.0, DTYPE)
        inverse = of_channels(moments + channels, channel, channels, 0.0, DTYPE)
    else:
        mean, inverse = finished_moments(
            partials, moments, running_mean, running_var, tracked, numbers, rows, channels, programs, each, channel,
            program == 0, DTYPE, ROWS,
        )  # fmt: skip
    scale = of_channels(weight, channel, channels, 1.0, DTYPE) * inverse
    b = of_channels(bias, channel, channels, 0.0, DTYPE)
    first = program.to(tl.int64) * steps
    for tile in range(first, first + steps):
        start, offset, inside = tile_at(tile * ROWS, channel, rows, channels, ROWS)
        centred = widened(tl.load(x + start + offset, inside, other=0.0), DTYPE) - mean[None, :]
        out = normalised(centred, scale, b)
        if residual is not None:
            out += widened(tl.load(residual + start + offset, inside, other=0.0), DTYPE)
        if RELU:
            out = tl.where(out <= 0.0, 0.0, out)  # NaN stays NaN
        tl.store(y + start + offset, rounded(out, y.dtype.element_ty), inside)


# --- backward


@triton.jit(do_not_specialize=["rows", "blocks", "steps"])
def sums_kernel(
    dy,  # [rows, channels]
    x,  # [rows, channels]
    y,  # [rows, channels], or None: its sign is that of w (x - m) s + b
    weight,  # [channels], or None: 1
    bias,  # [channels], or None: 0
    moments,  # [2, channels]
    masked,  # [rows, channels], or None: g
    partials,  # [programs, 2, channels]: sum g, sum g (x - m) s
    rows,
    channels,
    blocks,
    steps,  # tiles of each program
    RELU: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Both sums of `steps` tiles, and g."""
    program, channel = place_of(blocks, COLUMNS)
    mean = of_channels(moments, channel, channels, 0.0, DTYPE)
    inverse = of_channels(moments + channels, channel, channels, 0.0, DTYPE)
    scale = of_channels(weight, channel, channels, 1.0, DTYPE) * inverse
    b = of_channels(bias, channel, channels, 0.0, DTYPE)
    totals = tl.zeros([ROWS, COLUMNS], DTYPE)
    products = tl.zeros([ROWS, COLUMNS], DTYPE)
    first = program.to(tl.int64) * steps
    for tile in range(first, first + steps):
        start, offset, inside = tile_at(tile * ROWS, channel, rows, channels, ROWS)
        g = widened(tl.load(dy + start + offset, inside, other=0.0), DTYPE)
        centred = widened(tl.load(x + start + offset, inside, other=0.0), DTYPE) - mean[None, :]
        if RELU:
            if y is not None:
                out = widened(tl.load(y + start + offset, inside, other=0.0), DTYPE)
            else:
                out = normalised(centred, scale, b)
            g = tl.where(out <= 0.0, 0.0, g)  # where y is NaN the gradient passes, as in torch
        if masked is not None:
            tl.store(masked + start + offset, rounded(g, masked.dtype.element_ty), inside)
        totals += g
        products += tl.where(inside, g * centred, 0.0)
    place = partials + program * (2 * channels) + channel
    tl.store(place, tl.sum(totals, 0), channel < channels)
    tl.store(place + channels, tl.sum(products, 0) * inverse, channel < channels)


@triton.jit
def finished_sums(partials, grad_bias, grad_weight, channels, programs, channel, writes, COUNT: tl.constexpr):
    totals, products = partials_of(partials, programs, channel, channels, COUNT)
    total, product = tl.sum(totals, 0), tl.sum(products, 0)
    if writes:
        tl.store(grad_bias + channel, total, channel < channels)
        tl.store(grad_weight + channel, product, channel < channels)
    return total, product


@triton.jit(do_not_specialize=["programs"])
def finish_sums_kernel(
    partials,  # [programs, 2, channels]: sum g, sum g (x - m) s
    grad_bias,  # [channels]
    grad_weight,  # [channels]
    channels,
    programs,
    COUNT: tl.constexpr,  # a power of 2 >= programs
    COLUMNS: tl.constexpr,
):
    """The launch between the two, where there are many partial sums."""
    channel = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    finished_sums(partials, grad_bias, grad_weight, channels, programs, channel, True, COUNT)


@triton.jit(do_not_specialize=["rows", "blocks", "programs", "steps"])
def slope_kernel(
    dy,  # [rows, channels]
    x,  # [rows, channels]
    weight,  # [channels], or None: 1
    bias,  # [channels], or None: 0
    moments,  # [2, channels]
    dx,  # [rows, channels]
    partials,  # [programs, 2, channels]: sum g, sum g (x - m) s
    grad_bias,  # [channels]
    grad_weight,  # [channels]
    rows,
    channels,
    blocks,
    programs,
    steps,  # tiles of each program
    FINISHED: tl.constexpr,  # the gradients of weight and bias are there
    RELU: tl.constexpr,  # of w (x - m) s + b
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dx of `steps` tiles."""
    program, channel = place_of(blocks, COLUMNS)
    if FINISHED:
        total = of_channels(grad_bias, channel, channels, 0.0, DTYPE)
        product = of_channels(grad_weight, channel, channels, 0.0, DTYPE)
    else:
        total, product = finished_sums(
            partials, grad_bias, grad_weight, channels, programs, channel, program == 0, ROWS
        )
    mean = of_channels(moments, channel, channels, 0.0, DTYPE)
    inverse = of_channels(moments + channels, channel, channels, 0.0, DTYPE)
    scale = of_channels(weight, channel, channels, 1.0, DTYPE) * inverse
    b = of_channels(bias, channel, channels, 0.0, DTYPE)
    count = tl.cast(rows, DTYPE)
    level = (total / count)[None, :]
    slope = (product * inverse / count)[None, :]
    first = program.to(tl.int64) * steps
    for tile in range(first, first + steps):
        start, offset, inside = tile_at(tile * ROWS, channel, rows, channels, ROWS)
        g = widened(tl.load(dy + start + offset, inside, other=0.0), DTYPE)
        centred = widened(tl.load(x + start + offset, inside, other=0.0), DTYPE) - mean[None, :]
        if RELU:
            g = tl.where(normalised(centred, scale, b) <= 0.0, 0.0, g)
        out = scale[None, :] * (g - level - centred * slope)
        tl.store(dx + start + offset, rounded(out, dx.dtype.element_ty), inside)
