"""Compiles the CUDA kernels for the CPU (cuda_on_cpu.h) and offers them as the ops ``lit_fast::lit_loss, rescale_``."""

from __future__ import annotations

import ctypes
import functools
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_fast.loss.backends import fused
from lit_fast.loss.backends.ops import empty_results, inputs_of

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent
DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}  # DType of kernels/cuda/problem.h
POINTER, LONG, DOUBLE, INT, BYTE = (
    ctypes.c_void_p,
    ctypes.c_longlong,
    ctypes.c_double,
    ctypes.c_int,
    ctypes.c_ubyte,
)


class Section(ctypes.Structure):
    _fields_ = (
        *[(name, POINTER) for name in ("student", "teacher", "grad")],
        ("numel", LONG),
        ("weight", DOUBLE),
        ("first_block", INT),
        *[(name, BYTE) for name in ("student_dtype", "teacher_dtype")],
        ("slope", DOUBLE),
    )


class CountedRows(ctypes.Structure):
    _fields_ = (("counted", POINTER), ("of_row", LONG))


class Rows(ctypes.Structure):
    _fields_ = (
        *[(name, POINTER) for name in ("student", "teacher", "grad", "labels", "class_weight")],
        *[(name, POINTER) for name in ("soft_labels", "counted")],
        *[(name, LONG) for name in ("batch", "ignore_index")],
        ("label_smoothing", DOUBLE),
        *[(name, INT) for name in ("classes", "blocks")],
        *[(name, BYTE) for name in ("student_dtype", "teacher_dtype", "class_weight_dtype", "soft_labels_dtype")],
        *[(name, ctypes.c_bool) for name in ("has_labels", "has_teacher", "has_soft_labels")],
        *[(name, DOUBLE) for name in ("inverse_tau", "ce_slope", "kl_slope", "at_all")],
    )


class Scaled(ctypes.Structure):  # Rescaling::Tensor
    _fields_ = (("data", POINTER), ("numel", LONG), ("first_block", INT), ("dtype", BYTE))


class Quotient(ctypes.Structure):
    _fields_ = (("factor", POINTER), ("scale", POINTER), ("factor_dtype", BYTE), ("scale_dtype", BYTE))


class Options(ctypes.Structure):
    _fields_ = (
        *[(name, DOUBLE) for name in ("alpha", "beta", "tau")],
        ("grad_scale", POINTER),
        ("counts", POINTER),
        *[(name, INT) for name in ("grad_scale_dtype", "tau_squared", "ir_kind", "doubles")],
        *[(name, INT) for name in ("threads", "blocks", "all_blocks_at_once")],
    )


def compile_cpp(source: str, output: Path, *options: str) -> None:
    """Compile a file of this folder; raises RuntimeError with the compiler's words."""
    # As for devices: memory may be read as another type. No a * b + c by one instruction, whatever the CPU has.
    common = ["-std=c++20", f"-I{ROOT}", "-ffp-contract=off", "-fno-strict-aliasing", "-Wall", "-Wno-unknown-pragmas"]
    command = ["g++", *common, *options, "-o", str(output), str(FOLDER / source), "-pthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


class Emulator:
    """The kernels, run with `threads` threads in a block and at most `blocks` blocks."""

    def __init__(self, folder: Path) -> None:
        file = folder / "kernels.so"
        compile_cpp("library.cpp", file, "-O2", "-fPIC", "-shared")
        self.library = ctypes.CDLL(str(file))
        sizes = [self.library.size_of(i) for i in range(6)]
        assert sizes == [ctypes.sizeof(kind) for kind in (Section, Rows, Scaled, Quotient, Options, CountedRows)], sizes

    def backend(self, *, threads: int = 64, blocks: int = 5, at_once: bool = False) -> Any:
        """The differentiable loss, as lit_fast.loss.backends.native.lit_loss."""
        lit_loss = functools.partial(self.lit_loss, threads, blocks, at_once)
        return functools.partial(fused.lit_loss, fused.Ops(lit_loss, self.rescale_))

    def lit_loss(
        self,
        threads: int,
        blocks: int,
        at_once: bool,
        *arguments: Any,
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """What csrc/cuda/lit_loss.cpp does, with CPU tensors."""
        inputs, numbers = inputs_of(arguments)
        student_irs, teacher_irs, student_logits, teacher_logits, labels, class_weight, grad_scale, *what = inputs
        counted_rows, counts, counted_irs = what
        section_weights, ir_kind, alpha, beta, tau, tau_squared, ignore_index, label_smoothing, need_grad = numbers
        parts, ir_grads, logits_grad = empty_results(*arguments)
        parts.fill_(float("nan"))
        kept = []  # until the kernels have run
        sections = (Section * len(student_irs))()
        for section, student, teacher, weight in zip(sections, student_irs, teacher_irs, section_weights):
            model = torch.empty_like(student)
            pair = [_laid_out_as(model, tensor) for tensor in (student, teacher)]
            kept += pair
            section.student, section.teacher = (tensor.data_ptr() for tensor in pair)
            section.student_dtype, section.teacher_dtype = DTYPES[student.dtype], DTYPES[teacher.dtype]
            section.numel, section.weight = student.numel(), weight
        for section, grad in zip(sections, ir_grads):
            section.grad = grad.data_ptr()

        ir_rows = (CountedRows * len(counted_irs))()
        for one, counted, section in zip(ir_rows, counted_irs, student_irs):
            kept.append(counted.contiguous())
            one.counted, one.of_row = kept[-1].data_ptr(), section.shape[counted.dim() :].numel()

        rows = Rows(ignore_index=ignore_index, label_smoothing=label_smoothing)
        if student_logits is not None:
            rows.batch, rows.classes = student_logits.shape
            given = {"student": student_logits, "teacher": teacher_logits, "class_weight": class_weight}
            for name, tensor in given.items():
                if tensor is not None:
                    kept.append(tensor.contiguous())
                    setattr(rows, name, kept[-1].data_ptr())
                    setattr(rows, f"{name}_dtype", DTYPES[tensor.dtype])
            soft = labels is not None and labels.is_floating_point()
            if soft:
                kept.append(labels.contiguous())
                rows.soft_labels, rows.soft_labels_dtype = kept[-1].data_ptr(), DTYPES[labels.dtype]
            elif labels is not None:
                kept.append(labels.long().contiguous())
                rows.labels = kept[-1].data_ptr()
            if counted_rows is not None:
                kept.append(counted_rows.contiguous())
                rows.counted = kept[-1].data_ptr()
            rows.has_labels, rows.has_soft_labels = labels is not None and not soft, soft
            rows.has_teacher = teacher_logits is not None
            rows.grad = logits_grad.data_ptr() if need_grad else None
        options = Options(alpha, beta, tau, tau_squared=tau_squared, ir_kind=ir_kind)
        options.doubles = parts.dtype == torch.float64
        options.threads, options.blocks, options.all_blocks_at_once = threads, blocks, at_once
        if grad_scale is not None:
            options.grad_scale, options.grad_scale_dtype = grad_scale.data_ptr(), DTYPES[grad_scale.dtype]
        if counts is not None:
            options.counts = counts.data_ptr()
        status = self.library.lit_loss_on_cpu(
            sections,
            ir_rows,
            len(sections),
            len(ir_rows),
            ctypes.byref(rows),
            ctypes.byref(options),
            POINTER(parts.data_ptr()),
        )
        if status == 1:
            raise RuntimeError("device-side assert")
        assert status == 0, "what is wrong is printed"
        return parts, ir_grads, logits_grad

    def share_blocks(self, wanted: list[int], work: list[float], blocks: int) -> list[int]:
        """Blocks for pieces of work, as kernels/cuda/plan.h shares them out."""
        shares = (INT * len(wanted))()
        self.library.share_blocks_on_cpu(
            (LONG * len(wanted))(*wanted), (DOUBLE * len(work))(*work), len(wanted), blocks, shares
        )
        return list(shares)

    def plan(
        self, numels: list[int], batch: int, classes: int, dtype: torch.dtype, threads: int, blocks: int
    ) -> tuple[list[int], int]:
        """Blocks of the rows and of each section, and the threads that share a row, for tensors of `dtype`."""
        sections = (Section * len(numels))()
        for section, numel in zip(sections, numels):
            section.numel, section.grad = numel, 16  # any address: there are gradients
            section.student_dtype = section.teacher_dtype = DTYPES[dtype]
        rows = Rows(batch=batch, classes=classes, has_labels=True, has_teacher=True)
        rows.student_dtype = rows.teacher_dtype = DTYPES[dtype]
        found, lanes = (INT * (1 + len(numels)))(), INT()
        self.library.plan_on_cpu(sections, len(numels), ctypes.byref(rows), threads, blocks, found, ctypes.byref(lanes))
        return list(found), lanes.value

    def counters(self, calls: list[tuple[int, int]]) -> list[int]:
        """The counters of calls, in order: each (device, stream's id), or id 0 for a captured one."""
        devices, ids = ((INT * len(calls))(*column) for column in zip(*calls))
        found = (INT * len(calls))()
        self.library.counters_on_cpu(devices, ids, len(calls), found)
        return list(found)

    def rescale_(self, grads: list[Tensor], factor: Tensor, scale: Tensor | None = None) -> None:
        by = Quotient(factor=factor.data_ptr(), factor_dtype=DTYPES[factor.dtype])
        if scale is not None:
            by.scale, by.scale_dtype = scale.data_ptr(), DTYPES[scale.dtype]
        tensors = (Scaled * len(grads))()
        for tensor, grad in zip(tensors, grads):
            tensor.data, tensor.numel, tensor.dtype = grad.data_ptr(), grad.numel(), DTYPES[grad.dtype]
        self.library.rescale_on_cpu(tensors, len(grads), ctypes.byref(by), 64, 5)


def _laid_out_as(model: Tensor, tensor: Tensor) -> Tensor:
    """As in csrc/layout.h."""
    same = all(size == 1 or a == b for size, a, b in zip(tensor.shape, tensor.stride(), model.stride()))
    return tensor if same else torch.empty_like(model, dtype=tensor.dtype).copy_(tensor)
