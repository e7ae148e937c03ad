"""The KD loss (paper eq. 2) and its gradient with respect to the student's logits, over rows of logits.

A program takes tiles of ROWS rows, one after the other, and walks twice over their classes, CLASSES at a time: first
for the softmax states, then for losses and gradient. Sums over classes are kept apart for each of the CLASSES lanes
until the end of a walk.

A label that is neither a class nor `ignore_index` reads nothing, and counts with the weight NaN: it makes the loss and
every gradient of the logits NaN, which no training run overlooks.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lit_fast.triton.maths import is_masked, kl_element, log1p, rounded, weighted_log, widened
from lit_fast.triton.scalars import exact


@triton.jit
def label_weight(label, class_weight, counts, ignore_index, classes, DTYPE: tl.constexpr):
    """What labels weigh in the cross-entropy's mean: their classes' weights, 0 if ignored, NaN if out of range."""
    known = (label >= 0) & (label < classes)
    counts = counts & (label != ignore_index)
    if class_weight is None:
        weight = tl.zeros(label.shape, DTYPE) + 1.0
    else:
        weight = widened(tl.load(class_weight + label, known, other=0.0), DTYPE)
    return tl.where(counts, tl.where(known, weight, float("nan")), 0.0)


@triton.jit
def labels_weight(
    labels,  # [batch]
    class_weight,  # [classes], or None
    first,
    stride,
    batch,
    classes,
    ignore_index,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum of ``label_weight`` over blocks of BLOCK labels: block `first` and every `stride`-th after it."""
    sums = tl.zeros([BLOCK], DTYPE)
    for start in range(first * BLOCK, batch, stride * BLOCK):
        row = start + tl.arange(0, BLOCK)
        label = tl.load(labels + row, row < batch, other=0).to(tl.int64)
        sums += label_weight(label, class_weight, row < batch, ignore_index, classes, DTYPE)
    return tl.sum(sums)


@triton.jit
def grown(sums, old_max, new_max, z, scale):
    """Sums of exp((z - max) * scale), lane by lane, when logits z [ROWS, CLASSES] come in and raise the maximum."""
    shift = tl.where(is_masked(new_max), 0.0, new_max)  # only masked classes so far: nothing to shift
    return sums * tl.exp((old_max - shift) * scale)[:, None] + tl.exp((z - shift[:, None]) * scale)


@triton.jit
def cross_entropy_scale(
    labels,  # [batch]
    class_weight,  # [classes], or None
    label_sums,  # [label_programs] float64, sums of the labels' weights, or None: they are summed here
    counts,  # [2 + sections] float64: the first is the sum to take, or None
    label_programs,
    batch,
    classes,
    ignore_index,
    weight,  # of the cross-entropy in the total, times the loss scale
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """d total / d logit = this * the slope of a row's cross-entropy: its mean is over the labels' weights."""
    if counts is not None:
        total = tl.load(counts).to(DTYPE)
    elif labels is None:  # soft ones
        total = tl.cast(batch, DTYPE)
    elif label_sums is None:
        total = labels_weight(labels, class_weight, 0, 1, batch, classes, ignore_index, DTYPE, BLOCK)
    else:
        partial = tl.arange(0, BLOCK)
        total = tl.sum(tl.load(label_sums + partial, partial < label_programs, other=0.0)).to(DTYPE)
    return weight.to(DTYPE) / total


@triton.jit
def soft_target(
    labels,  # pointers [ROWS, CLASSES]
    inside,
    class_weight,  # [classes], or None
    c,
    classes,
    at_label,
    at_all,
    DTYPE: tl.constexpr,
):
    """What classes c are targets with in rows of soft labels, [ROWS, CLASSES]; 0 outside."""
    target = at_label * widened(tl.load(labels, inside, other=0.0), DTYPE) + at_all
    if class_weight is not None:
        target *= widened(tl.load(class_weight + c, c < classes, other=0.0), DTYPE)[None, :]
    return tl.where(inside, target, 0.0)


@triton.jit
def kd_tile(
    student,  # [batch, classes]
    teacher,  # [batch, classes], or None: no KL
    grad,  # [batch, classes], or None
    labels,  # [batch], or None: no cross-entropy but with soft labels
    soft_labels,  # [batch, classes], or None
    counted,  # [batch], uint8: 0 where a row does not count; None if all do
    class_weight,  # [classes], or None
    batch,
    classes,
    ignore_index,
    inverse_tau,
    kl_scale,  # d total / d logit = kl_scale * (q - p) + ce_scale * slope of the row's cross-entropy
    ce_scale,
    at_label,  # the share of its class's weight that a label is a target with
    at_all,  # the share of its weight that every class is a target with
    tile,
    LAST: tl.constexpr,
    SMOOTHING: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Sums of cross-entropy, KL and label weights over ROWS rows; writes their gradient."""
    row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
    in_batch = row < batch
    counts = in_batch
    if counted is not None:
        counts &= tl.load(counted + row, in_batch, other=0) != 0
    row_start = row * classes
    lane = tl.arange(0, CLASSES)

    # First walk: softmax states.
    lowest = tl.full([ROWS], float("-inf"), DTYPE)
    zeros = tl.zeros([ROWS, CLASSES], DTYPE)
    max_s = lowest
    max_t = lowest
    hard_s = zeros
    soft_s = zeros
    soft_t = zeros
    weights = tl.zeros([CLASSES], DTYPE)
    soft_mass = zeros
    for first in range(0, classes, CLASSES):
        c = first + lane
        inside = counts[:, None] & (c < classes)[None, :]
        place = row_start[:, None] + c[None, :]
        z = widened(tl.load(student + place, inside, other=float("-inf")), DTYPE)
        new_max = tl.maximum(max_s, tl.max(z, 1))
        if (labels is not None) or (soft_labels is not None):
            hard_s = grown(hard_s, max_s, new_max, z, 1.0)
        if teacher is not None:
            soft_s = grown(soft_s, max_s, new_max, z, inverse_tau)
        max_s = new_max
        if teacher is not None:
            z_t = widened(tl.load(teacher + place, inside, other=float("-inf")), DTYPE)
            new_max_t = tl.maximum(max_t, tl.max(z_t, 1))
            soft_t = grown(soft_t, max_t, new_max_t, z_t, inverse_tau)
            max_t = new_max_t
        if soft_labels is not None:
            soft_mass += soft_target(soft_labels + place, inside, class_weight, c, classes, at_label, at_all, DTYPE)
        elif SMOOTHING and class_weight is not None:
            weights += widened(tl.load(class_weight + c, c < classes, other=0.0), DTYPE)
    sum_soft_s = tl.sum(soft_s, 1)
    sum_soft_t = tl.sum(soft_t, 1)
    inverse_s = 1.0 / sum_soft_s
    inverse_t = 1.0 / sum_soft_t
    max_difference = max_s - max_t
    log_ratio = log1p(tl.sum(soft_s - soft_t, 1) * inverse_t)  # of two sums that may be nearly equal

    # The targets of a row's cross-entropy: `at_all` times the weight of every class, and `label_target` at its label.
    ce = tl.zeros([ROWS], DTYPE)
    weight = tl.zeros([ROWS], DTYPE)
    if (labels is not None) or (soft_labels is not None):
        sum_hard = tl.sum(hard_s, 1)
        inverse_hard = 1.0 / sum_hard
        log_hard = tl.log(sum_hard)
    if soft_labels is not None:
        mass = tl.sum(soft_mass, 1)
        weight = tl.where(counts, 1.0, 0.0).to(DTYPE)
    if labels is not None:
        label = tl.load(labels + row, in_batch, other=0).to(tl.int64)
        given = in_batch & (label != ignore_index)
        weight = label_weight(label, class_weight, in_batch, ignore_index, classes, DTYPE)
        label_target = at_label * weight
        mass = label_target
        if SMOOTHING:
            mass += at_all * (classes * 1.0 if class_weight is None else tl.sum(weights))
        readable = given & (label >= 0) & (label < classes)
        z_label = widened(tl.load(student + row_start + label, readable, other=0.0), DTYPE)
        ce = -weighted_log(label_target, (z_label - max_s) - log_hard)

    # Second walk: losses and gradient.
    kl = zeros
    smooth = zeros
    if (grad is not None) or (teacher is not None) or (soft_labels is not None) or SMOOTHING:
        for first in range(0, classes, CLASSES):
            c = first + lane
            inside = counts[:, None] & (c < classes)[None, :]
            place = row_start[:, None] + c[None, :]
            z = widened(tl.load(student + place, inside, other=float("-inf")), DTYPE)
            slope = zeros
            if soft_labels is not None:
                targets = soft_target(soft_labels + place, inside, class_weight, c, classes, at_label, at_all, DTYPE)
                below = z - max_s[:, None]
                smooth += weighted_log(targets, below - log_hard[:, None])
                slope = ce_scale * (tl.exp(below) * inverse_hard[:, None] * mass[:, None] - targets)
            if labels is not None:
                target = tl.zeros([CLASSES], DTYPE)
                if SMOOTHING:
                    target += at_all
                    if class_weight is not None:
                        target *= widened(tl.load(class_weight + c, c < classes, other=0.0), DTYPE)
                    target = tl.where(c < classes, target, 0.0)
                    log_p = (z - max_s[:, None]) - log_hard[:, None]
                    smooth += weighted_log(target[None, :], log_p)
                if grad is not None:
                    p = tl.exp(z - max_s[:, None]) * inverse_hard[:, None]
                    targets = target[None, :] + tl.where(c[None, :] == label[:, None], label_target[:, None], 0.0)
                    slope = tl.where(given[:, None], ce_scale * (p * mass[:, None] - targets), 0.0)
            if teacher is not None:
                z_t = widened(tl.load(teacher + place, inside, other=float("-inf")), DTYPE)
                q = tl.exp((z - max_s[:, None]) * inverse_tau) * inverse_s[:, None]
                p_t = tl.exp((z_t - max_t[:, None]) * inverse_tau) * inverse_t[:, None]
                # The difference of near-equal logits is exact, that of two shifted ones is not: it is shifted itself.
                delta = ((z - z_t) - max_difference[:, None]) * inverse_tau - log_ratio[:, None]
                share, difference = kl_element(p_t, q, delta, LAST)
                kl += tl.where(inside, share, 0.0)
                slope += kl_scale * difference
            if grad is not None:
                if counted is not None:
                    slope = tl.where(counts[:, None], slope, 0.0)
                stored = in_batch[:, None] & (c < classes)[None, :]
                tl.store(grad + place, rounded(slope, grad.dtype.element_ty), stored)
    if soft_labels is not None:
        ce = tl.where(counts, -tl.sum(smooth, 1), 0.0)
    if labels is not None:
        if SMOOTHING:
            ce -= tl.sum(smooth, 1)
        ce = tl.where(given, ce, 0.0)
    return tl.sum(ce), tl.sum(tl.where(counts, tl.sum(kl, 1), 0.0)), tl.sum(weight)


@triton.jit
def kd_rows(
    student,
    teacher,
    grad,
    labels,
    soft_labels,
    counted,
    class_weight,
    label_sums,
    counts,
    label_programs,
    batch,
    classes,
    ignore_index,
    settings,  # 15 floats, see loss.py
    scale,  # the loss scale
    first,  # tile
    tiles,
    LAST: tl.constexpr,
    SMOOTHING: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``kd_tile`` over `tiles` tiles from tile `first` on, as far as there are rows."""
    inverse_tau = exact(settings[0], settings[1], settings[2]).to(DTYPE)
    kl_scale = (exact(settings[3], settings[4], settings[5]) * scale).to(DTYPE)
    ce_weight = exact(settings[6], settings[7], settings[8]) * scale
    at_label = exact(settings[9], settings[10], settings[11]).to(DTYPE)
    at_all = exact(settings[12], settings[13], settings[14]).to(DTYPE)
    if counts is not None:
        kl_scale = (exact(settings[3], settings[4], settings[5]) * scale / tl.load(counts + 1)).to(DTYPE)
    ce_scale = kl_scale
    if ((labels is not None) or (soft_labels is not None)) and (grad is not None):
        ce_scale = cross_entropy_scale(
            labels,
            class_weight,
            label_sums,
            counts,
            label_programs,
            batch,
            classes,
            ignore_index,
            ce_weight,
            DTYPE,
            BLOCK,
        )
    ce = tl.cast(0.0, DTYPE)
    kl = ce
    weight = ce
    for tile in range(first, tl.minimum(first + tiles, tl.cdiv(batch, ROWS))):
        tile_ce, tile_kl, tile_weight = kd_tile(
            student,
            teacher,
            grad,
            labels,
            soft_labels,
            counted,
            class_weight,
            batch,
            classes,
            ignore_index,
            inverse_tau,
            kl_scale,
            ce_scale,
            at_label,
            at_all,
            tile,
            LAST,
            SMOOTHING,
            DTYPE,
            ROWS,
            CLASSES,
        )
        ce += tile_ce
        kl += tile_kl
        weight += tile_weight
    return ce, kl, weight
