"""The kernels of the fused LIT loss, in two stages, without atomics: the same bits in every run and on every GPU.

Stage one does all the work: every element of every section and every row of logits is read, its gradient written, and
each program leaves its partial sums in a workspace. Stage two, one program, sums them in a fixed order into the
parts [total, ce, kl, ir_1 .. ir_k]. How the work is cut depends on the sizes alone. Only a batch of many thousand
rows takes a launch more, before stage one, for the cross-entropy's denominator.

The workspace is float64:

    sections: 4 for each: its first program, its number of programs, its number of elements or count, its slope
    partials: 1 for each program with IRs: its sum of l(d)
    rows:     3 for each program with logits: its sums of cross-entropy, KL and label weights
    labels:   1 for each program of ``label_kernel``
"""

from __future__ import annotations

import triton
import triton.language as tl

from lit_fast.triton.ir import ir_blocks, ir_counted_blocks
from lit_fast.triton.kd import kd_rows, labels_weight
from lit_fast.triton.maths import widened
from lit_fast.triton.scalars import exact, find_section, integer, pick, pick_exact, pick_integer


@triton.jit(do_not_specialize=["batch", "ignore_index"])
def label_kernel(
    labels,  # [batch]
    class_weight,  # [classes], or None
    label_sums,  # [programs] float64
    batch,
    classes,
    ignore_index,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums of the labels' weights, before stage one."""
    program = tl.program_id(0)
    first = program.to(tl.int64)
    stride = tl.num_programs(0).to(tl.int64)
    total = labels_weight(labels, class_weight, first, stride, batch, classes, ignore_index, DTYPE, BLOCK)
    tl.store(label_sums + program, total.to(tl.float64))


@triton.jit(do_not_specialize=["steps", "row_programs", "tiles", "label_programs", "batch", "ignore_index"])
def loss_kernel(
    students,  # COUNT pointers to [numel_i], or None
    teachers,  # COUNT pointers to [numel_i], or None
    grads,  # COUNT pointers to [numel_i], or None
    numels,  # COUNT integers, coded
    programs,  # COUNT integers, coded: how many programs share each section
    slopes,  # 3 * COUNT floats: d total / d element of section i = slope_i * l'(student - teacher), or that * its count
    ir_rows,  # COUNT pointers to [numel_i / of_rows_i], uint8, or None
    of_rows,  # COUNT integers, coded: elements of each row; or None
    steps,  # blocks of each program
    first_section,  # coded: sections and programs of the launches before this one
    first_partial,  # coded
    sections,  # [all sections, 4] of the workspace
    partials,  # [all programs with IRs] of the workspace
    student_logits,  # [batch, classes], or None
    teacher_logits,  # [batch, classes], or None
    logits_grad,  # [batch, classes], or None
    labels,  # [batch], or None
    soft_labels,  # [batch, classes], or None
    counted,  # [batch], uint8, or None
    class_weight,  # [classes], or None
    label_sums,  # [label_programs] of the workspace, or None
    counts,  # [2 + all sections] float64, or None
    label_programs,
    batch,
    classes,
    ignore_index,
    settings,  # 15 floats, or None
    rows,  # [row_programs, 3] of the workspace
    row_programs,
    tiles,  # of each program with rows
    grad_scale,  # [], or None
    COUNT: tl.constexpr,
    KIND: tl.constexpr,
    ALIGNED: tl.constexpr,
    LAST: tl.constexpr,
    SMOOTHING: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
):
    """Stage one. The first `row_programs` programs take rows of logits, the others blocks of IRs."""
    program = tl.program_id(0)
    scale = tl.cast(1.0, tl.float64)
    if grad_scale is not None:
        scale = widened(tl.load(grad_scale), tl.float64)
    if program < row_programs:
        if student_logits is not None:
            ce, kl, weight = kd_rows(
                student_logits,
                teacher_logits,
                logits_grad,
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
                settings,
                scale,
                program.to(tl.int64) * tiles,
                tiles,
                LAST,
                SMOOTHING,
                DTYPE,
                ROWS,
                CLASSES,
                LABELS,
            )
            place = rows + program.to(tl.int64) * 3
            tl.store(place, ce.to(tl.float64))
            tl.store(place + 1, kl.to(tl.float64))
            tl.store(place + 2, weight.to(tl.float64))
    elif students is not None:
        mine = (program - row_programs).to(tl.int64)
        section, first, count, numel = find_section(mine, numels, programs, COUNT)
        slope = pick_exact(slopes, section, COUNT)
        own = numel.to(tl.float64)
        if counts is not None:
            own = tl.load(counts + 2 + integer(first_section) + section)
            slope /= own
        grad = None
        if grads is not None:
            grad = pick(grads, section, COUNT)
        if ir_rows is not None:
            total = ir_counted_blocks(
                pick(students, section, COUNT),
                pick(teachers, section, COUNT),
                grad,
                pick(ir_rows, section, COUNT),
                pick_integer(of_rows, section, COUNT),
                numel,
                (slope * scale).to(DTYPE),
                (mine - first) * steps,
                steps,
                KIND,
                DTYPE,
                BLOCK,
            )
        else:
            total = ir_blocks(
                pick(students, section, COUNT),
                pick(teachers, section, COUNT),
                grad,
                numel,
                (slope * scale).to(DTYPE),
                (mine - first) * steps,
                steps,
                KIND,
                ALIGNED,
                DTYPE,
                BLOCK,
            )
        tl.store(partials + integer(first_partial) + mine, total.to(tl.float64))
        if mine == first:
            place = sections + (integer(first_section) + section) * 4
            tl.store(place, (integer(first_partial) + first).to(tl.float64))
            tl.store(place + 1, count.to(tl.float64))
            tl.store(place + 2, own)
            tl.store(place + 3, slope)


@triton.jit(do_not_specialize=["count", "most", "row_programs", "batch"])
def parts_kernel(
    parts,  # [3 + count]
    sections,  # [count, 4] of the workspace
    partials,  # of the workspace
    rows,  # [row_programs, 3] of the workspace
    counts,  # [2 + count] float64, or None
    count,
    most,  # the largest number of programs that a section has
    row_programs,
    batch,
    weights,  # 9 floats: of cross-entropy and KL in the total, and tau^2 or 1
    HARD: tl.constexpr,
    SOFT: tl.constexpr,
    SECTIONS: tl.constexpr,  # a power of 2 >= count; 0 without IRs
    WIDTH: tl.constexpr,  # partial sums of a section at once
    ROWS: tl.constexpr,  # partial sums of rows at once
):
    """Stage two: the parts, from the partial sums of stage one, all in float64. A mean over nothing is 0 / 0 = NaN."""
    total = tl.cast(0.0, tl.float64)
    ce = total
    kl = total
    if HARD or SOFT:
        ce_sums = tl.zeros([ROWS], tl.float64)
        kl_sums = tl.zeros([ROWS], tl.float64)
        weight_sums = tl.zeros([ROWS], tl.float64)
        for start in range(0, row_programs, ROWS):
            program = start + tl.arange(0, ROWS)
            place = rows + program.to(tl.int64) * 3
            inside = program < row_programs
            ce_sums += tl.load(place, inside, other=0.0)
            kl_sums += tl.load(place + 1, inside, other=0.0)
            weight_sums += tl.load(place + 2, inside, other=0.0)
        if HARD:
            weight = tl.sum(weight_sums)
            if counts is not None:
                weight = tl.load(counts)
            ce = tl.sum(ce_sums) / weight
            total += exact(weights[0], weights[1], weights[2]) * ce
        if SOFT:
            number = tl.cast(batch, tl.float64)
            if counts is not None:
                number = tl.load(counts + 1)
            kl = exact(weights[6], weights[7], weights[8]) * tl.sum(kl_sums) / number
            total += exact(weights[3], weights[4], weights[5]) * kl
    if SECTIONS > 0:
        section = tl.arange(0, SECTIONS)
        known = section < count
        place = sections + section.to(tl.int64) * 4
        first = tl.load(place, known, other=0.0).to(tl.int64)
        programs = tl.load(place + 1, known, other=0.0).to(tl.int64)
        numel = tl.load(place + 2, known, other=1.0)
        slope = tl.load(place + 3, known, other=0.0)
        sums = tl.zeros([SECTIONS, WIDTH], tl.float64)
        for start in range(0, most, WIDTH):
            program = (start + tl.arange(0, WIDTH)).to(tl.int64)
            inside = known[:, None] & (program[None, :] < programs[:, None])
            sums += tl.load(partials + first[:, None] + program[None, :], inside, other=0.0)
        sums_of_sections = tl.sum(sums, 1)
        tl.store(parts + 3 + section, (sums_of_sections / numel).to(parts.dtype.element_ty), known)
        total += tl.sum(tl.where(known, slope * sums_of_sections, 0.0))
    tl.store(parts, total.to(parts.dtype.element_ty))
    tl.store(parts + 1, ce.to(parts.dtype.element_ty))
    tl.store(parts + 2, kl.to(parts.dtype.element_ty))
