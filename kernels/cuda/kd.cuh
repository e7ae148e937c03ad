// The KD loss (paper eq. 2) and its gradient with respect to the student's logits, by the blocks of the logits.
//
// A row belongs to a group of threads: some lanes of a warp, a warp, or a block. Where they can, its threads hold all
// of its logits in registers (kd_held.cuh); else they read it twice (kd_walked.cuh): for the softmax states at
// temperatures 1 and tau, then for losses and gradient. Rows with soft labels are read twice. Sums over rows are
// float64.
#pragma once

#include "kernels/cuda/kd_held.cuh"
#include "kernels/cuda/kd_walked.cuh"

namespace lit_fast::cuda {

// The thread's share of the rows' losses. Arrays: Typed or Untyped. held: how many classes a thread may hold, which
// takes registers; there are none for more class weights than a strip's.
template <int held, typename C, typename Array>
__device__ __forceinline__ RowSums kd_rows(const Problem& problem, double grad_scale, const Logits<Array>& logits,
                                           Scratch& scratch) {
  const Rows& rows = problem.rows;
  const int lanes = lanes_of_row(rows.classes, static_cast<int>(blockDim.x));
  if constexpr (held >= kStrip) {
    if (!rows.has_soft_labels && lanes <= kWarp && rows.classes <= lanes * kStrip) {
      return kd_held<C, kStrip>(problem, grad_scale, logits, lanes, scratch);
    }
  }
  if constexpr (held > kStrip) {
    if (!rows.has_soft_labels && rows.classes <= lanes * held && rows.class_weight == nullptr) {
      return kd_held<C, held>(problem, grad_scale, logits, lanes, scratch);
    }
  }
  return kd_walked(kd_context<C>(problem, grad_scale, lanes, scratch), logits);
}

template <typename C, typename S, int held = 0>
__device__ __forceinline__ RowSums kd_typed(const Problem& problem, double grad_scale, Scratch& scratch) {
  const auto typed = [](const void* data) { return Typed<S>{static_cast<S*>(const_cast<void*>(data))}; };
  const Rows& rows = problem.rows;
  const Logits<Typed<S>> logits{typed(rows.student), typed(rows.teacher), typed(rows.grad)};
  return kd_rows<held, C>(problem, grad_scale, logits, scratch);
}

template <typename C>
__device__ __forceinline__ RowSums kd_any(const Problem& problem, double grad_scale, Scratch& scratch) {
  const Rows& rows = problem.rows;
  const Logits<Untyped> logits{Untyped{const_cast<void*>(rows.student), rows.student_dtype},
                               Untyped{const_cast<void*>(rows.teacher), rows.teacher_dtype},
                               Untyped{rows.grad, rows.student_dtype}};
  return kd_rows<0, C>(problem, grad_scale, logits, scratch);
}

// S: the type of all tensors, or Any.
template <typename S, typename C>
__device__ __forceinline__ RowSums kd_loss(const Problem& problem, double grad_scale, Scratch& scratch) {
  if constexpr (!is_any<S>) {
    return kd_typed<C, S, sizeof(S) == sizeof(float) ? kStrip : 2 * kStrip>(problem, grad_scale, scratch);
  } else {
    const Rows& rows = problem.rows;
    if (!rows.has_teacher || rows.teacher_dtype == rows.student_dtype) {
      if constexpr (sizeof(C) == sizeof(double)) {
        if (rows.student_dtype == DType::f64) {
          return kd_typed<C, double>(problem, grad_scale, scratch);
        }
      } else {
        switch (rows.student_dtype) {
          case DType::f16:
            return kd_typed<C, Half>(problem, grad_scale, scratch);
          case DType::bf16:
            return kd_typed<C, BFloat16>(problem, grad_scale, scratch);
          case DType::f32:
            return kd_typed<C, float>(problem, grad_scale, scratch);
          default:
            break;
        }
      }
    }
    return kd_any<C>(problem, grad_scale, scratch);
  }
}

}  // namespace lit_fast::cuda
