"""The loss of hidden states and heads in chunks of rows: what the op ``linear_kd`` computes.

For each chunk: the logits of both networks, the sums of the loss, d loss / d logits, and from it at once the gradients
of the student's hidden states and head. The host knows all counts beforehand; on a GPU it waits for them once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lit_fast.loss.backends import plain_kd
from lit_fast.loss.backends.checks import check_label_values
from lit_fast.loss.backends.ops import arguments
from lit_fast.loss.backends.options import Inputs, LossOptions
from lit_fast.loss.backends.plain_kd import Rows

_HAS_FLOAT64 = ("cpu", "cuda")
# By type of device: bytes of a chunk's logits of both networks and their gradient. GPUs need more rows at once.
_BYTES = {"cpu": 60 << 20}
_MOST_BYTES = 512 << 20
_FEWEST_ROWS = 32  # fewer, and adding to the head's gradient takes longer than computing it
# So many pieces of a chunk get their gradient one after the other, and it replaces their logits: more rows in as much
# memory. A GPU is fast with many rows alone.
_PIECES = {"cpu": 8}
# Of a weight at once: what a chunk's rows are multiplied by stays in the cache, which makes the logits 15 % faster.
_BLOCK_BYTES = {"cpu": 2 << 20}


class LinearInputs(NamedTuple):
    """The tensors of one loss of N rows and V classes, checked: only those that the options use.

    Attributes:
        student_hidden: [N, H_s]; gradients flow to it, to student_weight and to student_bias.
        student_weight: [V, H_s].
        student_bias: [V]; None if the head has none.
        teacher_hidden: [N, H_t]; None: no KL.
        teacher_weight: [V, H_t].
        teacher_bias: [V].
        labels: [N], int64; None: no cross-entropy.
        class_weight: [V].
        rows: [N], bool: which rows count; None: all.
        ce_count: 0-d, float64, what the sum of the cross-entropy is divided by; None: own label weights.
        kl_count: 0-d, float64, what that of KL is divided by; None: own rows.
        grad_scale: 0-d, see ``Inputs``.
    """

    student_hidden: Tensor
    student_weight: Tensor
    student_bias: Tensor | None = None
    teacher_hidden: Tensor | None = None
    teacher_weight: Tensor | None = None
    teacher_bias: Tensor | None = None
    labels: Tensor | None = None
    class_weight: Tensor | None = None
    rows: Tensor | None = None
    ce_count: Tensor | None = None
    kl_count: Tensor | None = None
    grad_scale: Tensor | None = None


def in_chunks(
    inputs: LinearInputs,
    options: LossOptions,
    chunk: int,
    autocast: torch.dtype | None,
    kernel: str,
    needed: Sequence[bool],
) -> tuple[Tensor, ...]:
    """(parts [3]: total, CE, KL; gradients of the student's hidden states, weight and bias).

    Args:
        autocast: what products are computed in; None: in the tensors' own dtypes.
        kernel: the op for a chunk's logits, see ``linear.FUSED``; empty for plain PyTorch.
        needed: which gradients are; the others are empty.
    """
    hidden = inputs.student_hidden
    counted = _counted_rows(inputs, options)  # their numbers, or None: all rows
    labels = inputs.labels if inputs.labels is None or counted is None else inputs.labels[counted]
    if labels is not None and labels.device.type == "cpu":
        check_label_values(labels, inputs.student_weight.shape[0], options.ignore_index)
    rows = hidden.shape[0] if counted is None else len(counted)
    student = _Head(hidden, inputs.student_weight, inputs.student_bias, autocast, min(chunk, rows))
    teacher = None
    if inputs.teacher_hidden is not None and inputs.teacher_weight is not None:
        teacher = _Head(inputs.teacher_hidden, inputs.teacher_weight, inputs.teacher_bias, autocast, min(chunk, rows))
    counts = _read_counts(inputs, options, labels, _pieces(rows, chunk, hidden.device), student.dtype)
    grads = _Gradients(inputs, student.dtype, counts.after, needed)
    sums = hidden.new_zeros(2, dtype=_wide(hidden.device))
    for pieces in counts.chunks:
        start, stop = pieces[0].start, pieces[-1].stop
        here = slice(start, stop) if counted is None else counted[start:stop]
        states = student.rows(here)
        slopes = z_s = student.logits(states)
        z_t = None if teacher is None else teacher.logits(teacher.rows(here))
        for piece in pieces:
            own = slice(piece.start - start, piece.stop - start)
            piece_labels = None if labels is None else labels[piece.start : piece.stop]
            logits = Rows(z_s[own], None if z_t is None else z_t[own], piece_labels, inputs.class_weight)
            ce, kl, slope = _kd_sums(logits, options, counts, piece.label_weight, kernel, any(needed))
            sums += torch.stack([ce, kl]).to(sums.dtype)
            if len(pieces) == 1:
                slopes = slope
            elif any(needed):
                z_s[own] = slope  # where the logits are no longer needed
        if any(needed):
            grads.add(here, slopes, states, student.weight)
    return _parts(sums, options, counts, _loss_dtype(student, teacher)), *grads.finished(inputs)


def rows_at_once(classes: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many rows a chunk has by default: their logits stay within a bound, yet their products are fast."""
    bound = _BYTES.get(device.type, _MOST_BYTES)
    rows = int(bound / (classes * dtype.itemsize * (2 + 1 / _PIECES.get(device.type, 1))))
    return max(rows // 8 * 8, _FEWEST_ROWS)


def _parts(sums: Tensor, options: LossOptions, counts: _Counts, dtype: torch.dtype) -> Tensor:
    """Total, cross-entropy and KL [3], from sums over rows [2]; a mean over nothing is 0 / 0."""
    ce, kl = (sums / sums.new_tensor([counts.ce, counts.kl])).unbind()
    ce, kl = (ce if options.alpha > 0 else sums.new_zeros(())), (kl if options.alpha < 1 else sums.new_zeros(()))
    return torch.stack([options.alpha * ce + (1 - options.alpha) * kl, ce, kl]).to(dtype)


def _loss_dtype(*heads: _Head | None) -> torch.dtype:
    return torch.float64 if any(head and head.dtype == torch.float64 for head in heads) else torch.float32


def _wide(device: torch.device) -> torch.dtype:
    return torch.float64 if device.type in _HAS_FLOAT64 else torch.float32


# --- what counts


class _Piece(NamedTuple):
    """Rows whose loss is computed at once."""

    start: int
    stop: int
    label_weight: float = 0.0  # of all: what their labels weigh in the cross-entropy's mean


class _Counts(NamedTuple):
    """What the host knows of a loss.

    Attributes:
        chunks: the pieces of each.
        ce: what the sum of the cross-entropy is divided by.
        kl: what that of KL is divided by.
        before: what gradients of logits are multiplied by, so that they neither under- nor overflow.
        after: what their products with hidden states and weights are.
    """

    chunks: Sequence[Sequence[_Piece]]
    ce: float
    kl: float
    before: float = 1.0
    after: float = 1.0


def _pieces(rows: int, chunk: int, device: torch.device) -> list[list[_Piece]]:
    """Those of each chunk."""
    step = -(-chunk // _PIECES.get(device.type, 1))
    chunks = [(start, min(start + chunk, rows)) for start in range(0, rows, chunk)]
    return [[_Piece(i, min(i + step, stop)) for i in range(start, stop, step)] for start, stop in chunks]


def _counted_rows(inputs: LinearInputs, options: LossOptions) -> Tensor | None:
    """The numbers of the rows that add to the loss, in order; None where all may."""
    counted = inputs.rows
    if inputs.labels is not None and inputs.teacher_hidden is None:
        labelled = inputs.labels != options.ignore_index
        counted = labelled if counted is None else counted & labelled
    if counted is None:
        return None
    numbers = counted.nonzero().squeeze(1)
    return None if len(numbers) == len(counted) else numbers


def label_weights(labels: Tensor, class_weight: Tensor | None, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """What each label weighs in the cross-entropy's mean."""
    given = labels != ignore_index
    if class_weight is None:
        return given.to(dtype)
    return torch.where(given, class_weight.to(dtype)[torch.where(given, labels, 0)], 0.0)


def _read_counts(
    inputs: LinearInputs,
    options: LossOptions,
    labels: Tensor | None,
    chunks: Sequence[Sequence[_Piece]],
    dtype: torch.dtype,
) -> _Counts:
    """All that the host must know; on a GPU it waits for the device here, once.

    Args:
        labels: of the rows that count.
        dtype: of the student's logits.
    """
    hidden = inputs.student_hidden
    rows = chunks[-1][-1].stop if chunks else 0
    weights = torch.zeros(rows, dtype=_wide(hidden.device), device=hidden.device)
    if labels is not None:
        weights = label_weights(labels, inputs.class_weight, options.ignore_index, weights.dtype)
    sums = torch.cat([weights.new_zeros(1), weights.cumsum(0)])  # over all rows before a row
    edges = [0, *(piece.stop for pieces in chunks for piece in pieces)]
    ce_count, kl_count, scale = inputs.ce_count, inputs.kl_count, inputs.grad_scale
    if kl_count is None:
        kl_count = sums.new_tensor(len(hidden)) if inputs.rows is None else inputs.rows.sum()
    scalars = [sums[-1] if ce_count is None else ce_count, kl_count, sums.new_ones(()) if scale is None else scale]
    numbers = torch.cat([torch.stack([number.to(sums.dtype) for number in scalars]), sums[edges]])
    ce, kl, before, *at_edges = numbers.tolist()
    at = dict(zip(edges, at_edges))
    known = [[piece._replace(label_weight=at[piece.stop] - at[piece.start]) for piece in pieces] for pieces in chunks]
    after = 1.0
    if scale is None and dtype == torch.float16:
        before = _float16_scale(options, _over(at[rows], ce), _over(rows, kl), rows)
        after = 1 / before
    return _Counts(known, ce, kl, before, after)


def _float16_scale(options: LossOptions, hard: float, soft: float, rows: int) -> float:
    """A power of 2 that makes the gradients of a row's logits about 8 in all.

    The probability of one of many classes over the number of rows would vanish in float16. Far from the largest float16
    as well: of products with hidden states, a chunk's rows are summed.
    """
    slope = options.alpha * hard if options.alpha > 0 else 0.0
    if options.alpha < 1:
        slope += (1 - options.alpha) * (options.tau if options.tau_squared else 1 / options.tau) * soft
    mean = _over(slope, rows)
    return 2.0 ** (3 - math.frexp(mean)[1]) if 0 < mean < math.inf else 1.0


def _over(number: float, count: float) -> float:
    """A quotient that is NaN for a count of nothing."""
    return number / count if count else math.nan


# --- logits and their gradient


class _Head:
    """A linear layer ready for products in one dtype, and memory for the logits of `most` rows."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, autocast: torch.dtype | None, most: int
    ) -> None:
        self.dtype = hidden.dtype if autocast is None or hidden.dtype == torch.float64 else autocast  # as F.linear
        self.hidden = hidden  # [N, H]
        self.weight = weight.to(self.dtype)  # [V, H]
        if 1 not in self.weight.stride():  # matrix products would copy it in every chunk
            self.weight = self.weight.contiguous()
        self._bias = None if bias is None else bias.to(self.dtype)
        classes, width = weight.shape
        self._memory = hidden.new_empty(most, classes, dtype=self.dtype)
        bound = _BLOCK_BYTES.get(hidden.device.type)
        self._block = classes if bound is None else max(bound // (max(width, 1) * self.dtype.itemsize), 1)

    def rows(self, which: slice | Tensor) -> Tensor:
        """Some rows of the hidden states, [rows, H]."""
        return self.hidden[which].to(self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, V] of hidden states [rows, H], in the same memory at each call."""
        out = self._memory[: hidden.shape[0]]
        blocks = zip(self.weight.split(self._block), out.split(self._block, 1))
        for number, (weight, logits) in enumerate(blocks):
            if self._bias is None:
                torch.mm(hidden, weight.t(), out=logits)
            else:
                bias = self._bias[number * self._block :][: len(weight)]
                torch.addmm(bias, hidden, weight.t(), out=logits)
        return out


def _kd_sums(
    rows: Rows, options: LossOptions, counts: _Counts, label_weight: float, kernel: str, need_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of CE and KL over rows, 0-d, and what they add to the gradient of the loss, [rows, V]."""
    student, count = rows.student, rows.student.shape[0]
    smooth_alone = label_weight == 0 and options.label_smoothing > 0 and rows.class_weight is not None
    if label_weight == 0 and not smooth_alone:
        rows = rows._replace(labels=None)
    per_ce, per_kl = _over(options.alpha, counts.ce), _over(1 - options.alpha, counts.kl)
    hard = 0.0 if rows.labels is None else per_ce * label_weight
    soft = 0.0 if rows.teacher is None else per_kl * count
    if not kernel or smooth_alone or not 0 < hard + soft < math.inf:
        return plain_kd.kd_sums(rows, options, counts.before * per_ce, counts.before * per_kl, need_grad)
    # The op computes a * mean CE + (1 - a) * mean KL over the chunk: with this a, times `hard + soft`, its share.
    scale = torch.full((), counts.before * (hard + soft), dtype=_wide(student.device), device=student.device)
    inputs = Inputs((), (), *rows, grad_scale=scale)
    op = getattr(torch.ops.lit_fast, kernel).default
    parts, _, slope = op(*arguments(inputs, replace(options, alpha=hard / (hard + soft))), need_grad)
    return parts[1] * label_weight, parts[2] * count, slope


class _Gradients:
    """The gradients of the student's hidden states and head, added up in float32 or float64."""

    def __init__(self, inputs: LinearInputs, dtype: torch.dtype, factor: float, needed: Sequence[bool]) -> None:
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        leaves = zip(inputs[:3], needed)
        self._hidden, self._weight, self._bias = (
            torch.zeros(leaf.shape, dtype=exact, device=leaf.device) if leaf is not None and need else None
            for leaf, need in leaves
        )
        self._factor = factor

    def add(self, here: slice | Tensor, slope: Tensor, hidden: Tensor, weight: Tensor) -> None:
        """Add what a chunk gives: slope [rows, V] is the gradient of its logits, hidden [rows, H], weight [V, H]."""
        if self._hidden is not None:
            self._hidden[here] = (slope @ weight).to(self._hidden.dtype) * self._factor
        if self._weight is not None and slope.dtype == self._weight.dtype:
            self._weight.addmm_(slope.t(), hidden, alpha=self._factor)
        elif self._weight is not None:
            self._weight.add_(slope.t() @ hidden, alpha=self._factor)
        if self._bias is not None:
            self._bias.add_(slope.sum(0, dtype=self._bias.dtype), alpha=self._factor)

    def finished(self, inputs: LinearInputs) -> list[Tensor]:
        """In the dtypes of ``gradient_dtype``; empty tensors for those that nobody needs."""
        return [
            inputs.student_hidden.new_empty(0)
            if grad is None or leaf is None
            else grad.to(gradient_dtype(leaf, inputs.grad_scale))
            for grad, leaf in zip((self._hidden, self._weight, self._bias), inputs[:3])
        ]


def gradient_dtype(leaf: Tensor, grad_scale: Tensor | None) -> torch.dtype:
    """Of a leaf's gradient until backward: a float16 one waits in float32 for a loss scale that is not known yet."""
    return torch.float32 if leaf.dtype == torch.float16 and grad_scale is None else leaf.dtype
