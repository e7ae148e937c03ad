// The KD loss (paper eq. 2) and its gradient with respect to the student's logits, by the blocks of the logits.
//
// A row belongs to a group of threads, a warp or a block. The group reads it twice: for the softmax states at
// temperatures 1 and tau, then for losses and gradient.
#pragma once

#include "kernels/cuda/sums.cuh"

#if defined(__CUDACC_RTC__)
extern "C" __device__ int printf(const char*, ...);
#else
#include <cmath>
#include <cstdio>
#endif

namespace lit_fast::cuda {

#if !defined(__CUDACC_RTC__)
using std::log;
#endif

constexpr int kStrip = 4;  // classes that a thread looks at together

// What all threads of the blocks of the logits need besides the rows.
template <typename C>
struct KdContext {
  const Rows& rows;
  Scratch& scratch;
  bool shared_by_block;  // a row's group is the block, else a warp
  double class_weight_sum;
  double inverse_tau;
  C ce_scale, kl_scale;  // d total / d logit = ce_scale * cross_entropy_slope + kl_scale * (q - p)

  __device__ __forceinline__ int lane() const {
    return shared_by_block ? static_cast<int>(threadIdx.x) : lane_of_thread();
  }
  __device__ __forceinline__ int lanes() const { return shared_by_block ? static_cast<int>(blockDim.x) : kWarp; }

  template <typename Operation, int n>
  __device__ __forceinline__ void reduce(double (&values)[n], Operation operation) const {
    if (shared_by_block) {
      reduce_block(values, operation, scratch);
    } else {
      reduce_warp(values, operation);
    }
  }
};

// --- labels

struct LabelTotals {
  double labels;   // sum of the class weights of the labels that count
  double classes;  // sum of the class weights of all classes
};

__device__ __forceinline__ double class_weight_of(const Rows& rows, Index c) {
  return rows.class_weight == nullptr
             ? 1.0
             : Untyped{const_cast<void*>(rows.class_weight), rows.class_weight_dtype}.read<double>(c);
}

// Stops the kernel, and with it all work on the device: a failed assertion, where there is one to call.
__device__ __forceinline__ void fail() {
#if defined(__CUDA_ARCH__) && defined(__GNUC__) && !defined(__CUDACC_RTC__)
  __assert_fail("labels are in range", __FILE__, __LINE__, "lit_loss");
#else
  __trap();
#endif
}

__device__ __forceinline__ void check_label(const Rows& rows, Index row, Index label) {
  if (label < 0 || label >= rows.classes) {
    printf("lit_loss: labels: label %lld of row %lld is out of range; expected 0 to %d, or ignore_index = %lld\n",
           label, row, rows.classes - 1, rows.ignore_index);
    fail();
  }
}

// Every block of the logits adds up all labels by itself, in the same order: no block waits for another.
__device__ __forceinline__ LabelTotals label_totals(const Rows& rows, Scratch& scratch) {
  double totals[2] = {0, 0};
  for (Index row = threadIdx.x; row < rows.batch; row += blockDim.x) {
    const Index label = rows.labels[row];
    if (label != rows.ignore_index) {
      check_label(rows, row, label);
      totals[0] += class_weight_of(rows, label);
    }
  }
  if (rows.label_smoothing > 0) {
    for (Index c = threadIdx.x; c < rows.classes; c += blockDim.x) {
      totals[1] += class_weight_of(rows, c);
    }
  }
  reduce_block(totals, Add(), scratch);
  return {totals[0], totals[1]};
}

// The targets of a row's cross-entropy, -sum_c target_c log softmax(z)_c: `every` times the class's weight at every
// class, and `label_target` more at the label.
struct HardTargets {
  int label;  // -1: the row has none, and no cross-entropy
  double label_target;
  double every;
  double mass;  // sum of all targets
};

template <typename C>
__device__ __forceinline__ HardTargets hard_targets(const KdContext<C>& kd, Index row) {
  const Rows& rows = kd.rows;
  if (!rows.has_labels || rows.labels[row] == rows.ignore_index) {
    return {-1, 0, 0, 0};
  }
  const int label = static_cast<int>(rows.labels[row]);
  const double label_target = (1 - rows.label_smoothing) * class_weight_of(rows, label);
  const double every = rows.label_smoothing / rows.classes;
  return {label, label_target, every, label_target + every * kd.class_weight_sum};
}

// --- first reading: softmax states

// Of a row, or of the classes that one thread has seen: the largest logit, sums of exp(z - max), exp((z - max) / tau).
template <typename C>
struct RowState {
  C max;
  double hard;
  double soft;
};

// The thread's classes, in one pass: where the maximum grows, the sums so far shrink.
template <typename C, typename Logits>
__device__ __forceinline__ RowState<C> thread_state(const KdContext<C>& kd, Logits row, bool hard, bool soft) {
  const C inverse_tau = static_cast<C>(kd.inverse_tau);
  RowState<C> state{minus_infinity<C>(), 0, 0};
  for (int first = kd.lane(); first < kd.rows.classes; first += kStrip * kd.lanes()) {
    C z[kStrip], max = state.max;
#pragma unroll
    for (int i = 0; i < kStrip; ++i) {
      const int c = first + i * kd.lanes();
      z[i] = c < kd.rows.classes ? row.template read<C>(c) : minus_infinity<C>();
    }
#pragma unroll
    for (int i = 0; i < kStrip; ++i) {
      max = z[i] > max ? z[i] : max;
    }
    if (max > state.max) {
      state.hard *= exp(state.max - max);
      state.soft *= exp((state.max - max) * inverse_tau);
      state.max = max;
    }
    const C shift = is_masked(max) ? C(0) : max;
    C hard_sum = 0, soft_sum = 0;
#pragma unroll
    for (int i = 0; i < kStrip; ++i) {
      hard_sum += hard ? exp(z[i] - shift) : C(0);
      soft_sum += soft ? exp((z[i] - shift) * inverse_tau) : C(0);
    }
    state.hard += hard_sum;
    state.soft += soft_sum;
  }
  return state;
}

// Makes `state` relative to a larger maximum.
template <typename C>
__device__ __forceinline__ void shift_to(RowState<C>& state, C max, C inverse_tau) {
  if (!is_masked(max)) {  // else there are only masked classes: nothing to shift (and NaN sums stay NaN)
    state.hard *= exp(state.max - max);
    state.soft *= exp((state.max - max) * inverse_tau);
  }
  state.max = max;
}

// --- second reading: losses and gradient

// What a row's soft loss is made of.
template <typename C>
struct SoftPair {
  C max_s, max_t;
  C inverse_s, inverse_t;  // 1 / sums at tau
  C log_ratio;             // log of the sums' ratio
  C inverse_tau;

  __device__ __forceinline__ LossSlope<C> element(C z_s, C z_t) const {
    const C q = exp((z_s - max_s) * inverse_tau) * inverse_s;
    const C p = exp((z_t - max_t) * inverse_tau) * inverse_t;
    // The difference of near-equal logits is exact, that of two shifted ones is not: the difference is shifted.
    return kl_element(p, q, ((z_s - z_t) - (max_s - max_t)) * inverse_tau - log_ratio);
  }
};

struct RowSums {  // over rows, before any mean; one thread's share
  double ce;
  double kl;
};

// One row, by the threads of its group. Logits: Typed or Untyped, from the row's first class on.
template <typename C, typename Logits>
__device__ __forceinline__ void kd_row(const KdContext<C>& kd, Logits student, Logits teacher, Logits grad,
                                       const HardTargets& targets, RowSums& sums) {
  const Rows& rows = kd.rows;
  const C inverse_tau = static_cast<C>(kd.inverse_tau);
  const bool hard = targets.label >= 0, soft = rows.has_teacher;

  RowState<C> s = thread_state(kd, student, hard, soft);
  RowState<C> t{minus_infinity<C>(), 0, 0};
  if (soft) {
    t = thread_state(kd, teacher, false, true);
  }
  double maxima[2] = {s.max, t.max};
  kd.reduce(maxima, Max());
  shift_to(s, static_cast<C>(maxima[0]), inverse_tau);
  shift_to(t, static_cast<C>(maxima[1]), inverse_tau);
  double totals[3] = {s.hard, s.soft, t.soft};
  kd.reduce(totals, Add());

  const double log_normaliser = s.max + log(totals[0]);  // at temperature 1
  const C inverse_sum = static_cast<C>(1 / totals[0]);
  const SoftPair<C> pair{s.max,
                         t.max,
                         static_cast<C>(1 / totals[1]),
                         static_cast<C>(1 / totals[2]),
                         static_cast<C>(log(totals[1] / totals[2])),
                         inverse_tau};
  if (hard && kd.lane() == 0) {
    const C z = student.template read<C>(targets.label);
    sums.ce -= weighted_log(targets.label_target, z - log_normaliser);
  }
  const C every = static_cast<C>(targets.every), mass = static_cast<C>(targets.mass);
  const C label_slope = kd.ce_scale * static_cast<C>(targets.label_target);
  double every_log = 0;
  for (int c = kd.lane(); c < rows.classes; c += kd.lanes()) {
    const C z = student.template read<C>(c);
    C slope = 0;
    if (hard) {
      const C weight = static_cast<C>(class_weight_of(rows, c));
      slope = kd.ce_scale * cross_entropy_slope(exp(z - s.max) * inverse_sum, mass, every * weight);
      slope -= c == targets.label ? label_slope : C(0);
      if (every > 0) {
        every_log += weighted_log(static_cast<double>(weight), z - log_normaliser);
      }
    }
    if (soft) {
      const auto share = pair.element(z, teacher.template read<C>(c));
      slope += kd.kl_scale * share.slope;
      sums.kl += share.loss;
    }
    if (grad.data != nullptr) {
      grad.write(c, slope);
    }
  }
  sums.ce -= targets.every * every_log;
}

template <typename C, typename Logits>
__device__ __forceinline__ RowSums kd_rows(const KdContext<C>& kd, Logits student, Logits teacher, Logits grad) {
  const Index groups_of_block = kd.shared_by_block ? 1 : warps_of_block();
  const Index group = static_cast<Index>(blockIdx.x) * groups_of_block + (kd.shared_by_block ? 0 : warp_of_thread());
  RowSums sums{0, 0};
  for (Index row = group; row < kd.rows.batch; row += kd.rows.blocks * groups_of_block) {
    const Index start = row * kd.rows.classes;
    kd_row(kd, student.from(start), teacher.from(start), grad.from(start), hard_targets(kd, row), sums);
  }
  return sums;
}

template <typename S, typename C>
__device__ __forceinline__ RowSums kd_typed(const KdContext<C>& kd) {
  const auto typed = [](const void* data) { return Typed<S>{static_cast<S*>(const_cast<void*>(data))}; };
  return kd_rows(kd, typed(kd.rows.student), typed(kd.rows.teacher), typed(kd.rows.grad));
}

template <typename C>
__device__ __forceinline__ RowSums kd_any(const KdContext<C>& kd) {
  const Rows& rows = kd.rows;
  return kd_rows(kd, Untyped{const_cast<void*>(rows.student), rows.student_dtype},
                 Untyped{const_cast<void*>(rows.teacher), rows.teacher_dtype}, Untyped{rows.grad, rows.student_dtype});
}

// The thread's share of the rows' losses. Also notes the sum of the labels' weights for whoever takes the mean.
template <typename C>
__device__ __forceinline__ RowSums kd_loss(const Problem& problem, double grad_scale, Scratch& scratch) {
  const Rows& rows = problem.rows;
  LabelTotals totals{0, 0};
  if (rows.has_labels) {
    totals = label_totals(rows, scratch);
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      problem.carried->labels_weight = totals.labels;
    }
  }
  const double soft = problem.tau_squared ? problem.tau : 1 / problem.tau;  // tau^2 of eq. 2 times d(z / tau) / d z
  const double beta = problem.beta, alpha = problem.alpha;
  const KdContext<C> kd{rows,
                        scratch,
                        rows.classes > kClassesOfAWarp,
                        totals.classes,
                        1 / problem.tau,
                        static_cast<C>(beta * alpha * grad_scale / totals.labels),
                        static_cast<C>(beta * (1 - alpha) * soft * grad_scale / static_cast<double>(rows.batch))};
  if (!rows.has_teacher || rows.teacher_dtype == rows.student_dtype) {
    if constexpr (sizeof(C) == sizeof(double)) {
      if (rows.student_dtype == DType::f64) {
        return kd_typed<double>(kd);
      }
    } else {
      switch (rows.student_dtype) {
        case DType::f16:
          return kd_typed<Half>(kd);
        case DType::bf16:
          return kd_typed<BFloat16>(kd);
        case DType::f32:
          return kd_typed<float>(kd);
        default:
          break;
      }
    }
  }
  return kd_any(kd);
}

}  // namespace lit_fast::cuda
