"""What the terms of a loss are divided by: how many rows and elements count.

Nothing here waits for the device or allocates by what tensors hold: a CUDA graph may capture it, and
``torch.compile(fullgraph=True)`` traces through.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from lit_fast.loss.backends.checks import check_rows, check_rows_of_ir, ir_rows_of, one_per_section
from lit_fast.loss.backends.options import Inputs, LossOptions, device_of, has_soft_labels, widest

Count = Tensor | float  # 0-d


@dataclass(frozen=True)
class LossCounts:
    """How much of a batch counts in each term of a loss: what the term's sum is divided by to give its mean.

    ``criterion.count`` gives those of a batch. Counts add up, over micro-batches (``first + second``, ``sum(counts)``)
    and over processes (``all_reduce``). Given to a loss as ``normalizer=``, the counts of a whole make losses and
    gradients of its pieces add up to those of the whole, however unequal the pieces are.

    Attributes:
        ce: the sum of the labels' class weights over all rows that count and are not ignored: their number, where
            there are no class weights. With soft labels the number of rows that count.
        kl: the number of rows that count.
        ir: the number of elements that count of each section's IR, a tensor [k] or k numbers.

    Example:
        >>> from lit_fast.loss.backends.counts import LossCounts
        >>> LossCounts(6, 8, (512, 256)) + LossCounts(2, 2, (128, 64))
        LossCounts(ce=8, kl=10, ir=(640, 320))
    """

    ce: Count
    kl: Count
    ir: Tensor | Sequence[Count] = ()

    def __add__(self, other: LossCounts) -> LossCounts:
        if len(self.ir) != len(other.ir):
            raise ValueError(f"expected counts of as many sections, got {len(self.ir)} and {len(other.ir)}")
        if isinstance(self.ir, Tensor) and isinstance(other.ir, Tensor):
            return LossCounts(self.ce + other.ce, self.kl + other.kl, self.ir + other.ir)
        return LossCounts(self.ce + other.ce, self.kl + other.kl, tuple(a + b for a, b in zip(self.ir, other.ir)))

    def __radd__(self, zero: int) -> LossCounts:
        """``sum`` begins with 0."""
        return self if zero == 0 else NotImplemented

    def all_reduce(self, device: torch.device | str | None = None) -> LossCounts:
        """The sum over all processes of torch's default group, each of which must call this.

        Args:
            device: that the processes exchange tensors on; None for that of the counts.
        """
        values = self.tensor(device)
        torch.distributed.all_reduce(values)
        return LossCounts(values[0], values[1], values[2:])

    def tensor(self, device: torch.device | str | None = None) -> Tensor:
        """The counts [2 + k] as float64: ce, kl, ir; on `device`, or that of the first count that is a tensor."""
        numbers = [self.ce, self.kl, *([self.ir] if isinstance(self.ir, Tensor) else self.ir)]
        if device is None:
            device = next((number.device for number in numbers if isinstance(number, Tensor)), "cpu")
        return torch.cat([_flat(number, torch.device(device)) for number in numbers])


def _flat(number: Count, device: torch.device) -> Tensor:
    if isinstance(number, Tensor):
        return number.detach().to(device, widest(device)).reshape(-1)
    return torch.full((1,), float(number), dtype=widest(device), device=device)


# --- counting


def count(
    options: LossOptions,
    class_weight: Tensor | None,
    irs: Sequence[Tensor | Sequence[int]] | None,
    labels: Tensor | None,
    rows: Tensor | None,
    ir_rows: Any,
) -> LossCounts:
    """The counts of a batch as a loss of these settings sees it. `irs`: tensors, or their shapes.

    Raises:
        TypeError, ValueError: what rows and elements there are is not said, or does not fit; the message names it.
    """
    ce: Count = 0.0
    kl: Count = 0.0
    if options.beta > 0:
        given = labels if labels is not None else rows
        if given is None:
            raise ValueError("labels: expected labels or rows to count, got neither; pass rows, True where they count")
        if rows is not None:
            check_rows(rows, given.shape[0])
        kl = _number_of_rows(rows, given.shape[0])
        if options.alpha > 0 and labels is not None:
            ce = (
                kl
                if labels.is_floating_point()
                else _labels_weight(counted_labels(labels, rows, options), class_weight, options)
            )
    if options.beta == 1:
        return LossCounts(ce, kl)
    if irs is None:
        raise ValueError(f"student_irs: beta={options.beta} needs the IRs of every section, or their shapes; got None")
    shapes = [ir.shape if isinstance(ir, Tensor) else torch.Size(ir) for ir in one_per_section("student_irs", irs)]
    masks = ir_rows_of(ir_rows, len(shapes))
    for section, (shape, mask) in enumerate(zip(shapes, masks), 1):
        check_rows_of_ir(section, mask, shape)
    return LossCounts(ce, kl, _elements(shapes, masks))


def counted_labels(labels: Tensor, rows: Tensor | None, options: LossOptions) -> Tensor:
    """Class indices, ignored in rows that do not count: what stands there may be no class."""
    return labels if rows is None else torch.where(rows, labels, options.ignore_index)


def _number_of_rows(rows: Tensor | None, batch: int) -> Count:
    return float(batch) if rows is None else rows.sum(dtype=widest(rows.device))


def _labels_weight(labels: Tensor, class_weight: Tensor | None, options: LossOptions) -> Tensor:
    given = labels != options.ignore_index
    wide = widest(labels.device)
    if class_weight is None:
        return given.sum(dtype=wide)
    known = labels.clamp(0, class_weight.numel() - 1)  # of a label that is no class the backend speaks
    return torch.where(given, class_weight.detach().to(labels.device, wide)[known], 0.0).sum()


def _elements(shapes: Sequence[torch.Size], masks: Sequence[Tensor | None]) -> tuple[Count, ...]:
    """The number of elements that count of each section; sections that share a mask have it added up once."""
    sums: list[tuple[Tensor, Tensor]] = []
    found: list[Count] = []
    for shape, mask in zip(shapes, masks):
        if mask is None:
            found.append(float(shape.numel()))
            continue
        known = [total for other, total in sums if other is mask]
        total = known[0] if known else mask.sum(dtype=widest(mask.device))
        sums.append((mask, total))
        found.append(total * float(math.prod(shape[mask.dim() :])))
    return tuple(found)


# --- the counts of a loss


def with_counts(inputs: Inputs, options: LossOptions, normalizer: LossCounts | None = None) -> Inputs:
    """Checked inputs, with all that a backend must know of what counts: counts, and labels ignored in rows that do not.

    Raises:
        TypeError, ValueError: the normalizer does not fit; the message names it.
    """
    partly = inputs.rows is not None or len(inputs.ir_rows) > 0
    if not partly and normalizer is None and options.reduction == "mean":
        return inputs
    labels = inputs.labels
    if labels is not None and not has_soft_labels(inputs):
        labels = counted_labels(labels, inputs.rows, options)
    device = device_of(inputs)
    if normalizer is not None:
        counts = _checked(normalizer, inputs, options).tensor(device)
    elif options.reduction == "sum":
        counts = torch.ones(2 + len(inputs.student_irs), dtype=widest(device), device=device)
    else:
        counts = _own_counts(inputs, labels, options).tensor(device)
    return Inputs(*inputs[:4], labels, *inputs[5:8], counts, inputs.ir_rows)


def _own_counts(inputs: Inputs, labels: Tensor | None, options: LossOptions) -> LossCounts:
    ce: Count = 0.0
    kl: Count = 0.0
    if inputs.student_logits is not None:
        kl = _number_of_rows(inputs.rows, inputs.student_logits.shape[0])
        if labels is not None:
            ce = kl if labels.is_floating_point() else _labels_weight(labels, inputs.class_weight, options)
    shapes = [ir.shape for ir in inputs.student_irs]
    return LossCounts(ce, kl, _elements(shapes, inputs.ir_rows or [None] * len(shapes)))


def _checked(normalizer: Any, inputs: Inputs, options: LossOptions) -> LossCounts:
    if not isinstance(normalizer, LossCounts):
        mend = "write for example normalizer=criterion.count(irs, labels)"
        raise TypeError(f"normalizer: expected lit_fast.LossCounts, got {type(normalizer).__name__}; {mend}")
    if options.reduction == "sum":
        raise ValueError("normalizer: reduction='sum' divides by nothing; leave reduction at 'mean', or normalizer out")
    sections = len(inputs.student_irs)
    if sections > 0 and len(normalizer.ir) != sections:
        raise ValueError(
            f"normalizer: ir: expected {sections} numbers of elements, one for each section, got {len(normalizer.ir)}"
        )
    _check_count("ce", normalizer.ce)
    _check_count("kl", normalizer.kl)
    if not isinstance(normalizer.ir, Tensor):
        for number, elements in enumerate(normalizer.ir, 1):
            _check_count(f"ir: section {number}", elements)
    return normalizer if sections > 0 else LossCounts(normalizer.ce, normalizer.kl)


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        if value.dim() != 0:
            raise ValueError(f"normalizer: {name}: expected one number, got a tensor of shape {tuple(value.shape)}")
    elif not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"normalizer: {name}: expected a number or a 0-d tensor, got {type(value).__name__}")
    elif not 0 <= float(value) < math.inf:
        raise ValueError(f"normalizer: {name}: expected a finite number >= 0 of what counts, got {value}")
