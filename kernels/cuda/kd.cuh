// The KD loss (paper eq. 2) and its gradient with respect to the student's logits, by the blocks of the logits.
//
// A row belongs to a group of threads: some lanes of a warp, a warp, or a block. The group reads it twice: for the
// softmax states at temperatures 1 and tau, then for losses and gradient. Numbers of a class are of the type C that
// is computed in; sums, over classes and over rows, are float64.
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
using std::log1p;
#endif

// What all threads of the blocks of the logits need besides the rows.
template <typename C>
struct KdContext {
  const Rows& rows;
  Scratch& scratch;
  int lanes;  // threads that share a row: a power of two up to a warp, or all of the block
  C class_weight_sum;
  C inverse_tau;
  C ce_scale, kl_scale;  // d total / d logit = ce_scale * cross_entropy_slope + kl_scale * (q - p)

  __device__ __forceinline__ bool shared_by_block() const { return lanes > kWarp; }
  __device__ __forceinline__ int lane() const {
    return shared_by_block() ? static_cast<int>(threadIdx.x) : static_cast<int>(threadIdx.x) & (lanes - 1);
  }

  template <typename T, typename Operation, int n>
  __device__ __forceinline__ void reduce(T (&values)[n], Operation operation) const {
    if (shared_by_block()) {
      reduce_block(values, operation, scratch);
    } else {
      reduce_lanes(values, lanes, operation);
    }
  }
};

// --- labels

constexpr int kLabelsAtOnce = 8;  // that a thread loads before it looks at any

struct LabelTotals {
  double labels;   // sum of the class weights of the labels that count
  double classes;  // sum of the class weights of all classes
};

template <typename C>
__device__ __forceinline__ C class_weight_of(const Rows& rows, Index c) {
  return rows.class_weight == nullptr
             ? C(1)
             : Untyped{const_cast<void*>(rows.class_weight), rows.class_weight_dtype}.read<C>(c);
}

// Stops the kernel, and with it all work on the device: a failed assertion, where there is one to call.
__device__ __forceinline__ void fail() {
#if defined(__CUDA_ARCH__) && defined(__GNUC__) && !defined(__CUDACC_RTC__)
  __assert_fail("labels are in range", __FILE__, __LINE__, "lit_loss");
#else
  __trap();
#endif
}

__device__ __forceinline__ bool is_class(const Rows& rows, Index label) { return label >= 0 && label < rows.classes; }

// For a thread that has met a wrong label: names the first of those that it looks at, and stops.
__device__ __forceinline__ void name_wrong_label(const Rows& rows) {
  for (Index row = threadIdx.x; row < rows.batch; row += blockDim.x) {
    const Index label = rows.labels[row];
    if (label != rows.ignore_index && !is_class(rows, label)) {
      printf("lit_loss: labels: label %lld of row %lld is out of range; expected 0 to %d, or ignore_index = %lld\n",
             label, row, rows.classes - 1, rows.ignore_index);
      fail();
    }
  }
}

// Every block of the logits adds up all labels by itself, in the same order: no block waits for another. A thread loads
// several labels before it looks at the first.
__device__ __forceinline__ LabelTotals label_totals(const Rows& rows, Scratch& scratch) {
  double totals[2] = {0, 0};
  bool wrong = false;
  for (Index first = threadIdx.x; first < rows.batch; first += kLabelsAtOnce * blockDim.x) {
    Index labels[kLabelsAtOnce];
#pragma unroll
    for (int i = 0; i < kLabelsAtOnce; ++i) {
      const Index row = first + i * blockDim.x;
      labels[i] = row < rows.batch ? rows.labels[row] : rows.ignore_index;
    }
#pragma unroll
    for (int i = 0; i < kLabelsAtOnce; ++i) {
      const bool counts = labels[i] != rows.ignore_index, known = is_class(rows, labels[i]);
      wrong = wrong || (counts && !known);
      totals[0] += counts && known ? class_weight_of<double>(rows, labels[i]) : 0.0;
    }
  }
  if (wrong) {
    name_wrong_label(rows);
  }
  if (rows.label_smoothing > 0) {
    for (Index c = threadIdx.x; c < rows.classes; c += blockDim.x) {
      totals[1] += class_weight_of<double>(rows, c);
    }
  }
  reduce_block(totals, Add(), scratch);
  return {totals[0], totals[1]};
}

// The targets of a row's cross-entropy, -sum_c target_c log softmax(z)_c: `every` times the class's weight at every
// class, and `label_target` more at the label.
template <typename C>
struct HardTargets {
  int label;  // -1: the row has none, and no cross-entropy
  C label_target;
  C every;
  C mass;  // sum of all targets
};

template <typename C>
__device__ __forceinline__ HardTargets<C> hard_targets(const KdContext<C>& kd, Index row) {
  const Rows& rows = kd.rows;
  if (!rows.has_labels || row >= rows.batch || rows.labels[row] == rows.ignore_index) {
    return {-1, 0, 0, 0};
  }
  const int label = static_cast<int>(rows.labels[row]);
  const C label_target = static_cast<C>(1 - rows.label_smoothing) * class_weight_of<C>(rows, label);
  const C every = static_cast<C>(rows.label_smoothing / rows.classes);
  return {label, label_target, every, label_target + every * kd.class_weight_sum};
}

// --- rows, a strip of classes at a time

// A row's numbers, from its first class on. Logits: Typed or Untyped.
template <typename Logits>
struct Row {
  Logits student, teacher, grad;
  int classes;  // 0: the group has no row, and only takes part in what the warp does together
};

// Classes that a thread loads before it looks at any: a strip, or half of one in float64, which takes twice the
// registers.
template <typename C>
constexpr int kAtOnce = sizeof(C) == sizeof(double) ? kStrip / 2 : kStrip;

// The classes first, first + lanes, ... of a row; -inf, which counts for nothing, beyond its end.
template <typename C, typename Logits>
__device__ __forceinline__ void load_strip(Logits logits, int first, int lanes, int classes, C (&z)[kAtOnce<C>]) {
#pragma unroll
  for (int i = 0; i < kAtOnce<C>; ++i) {
    const int c = first + i * lanes;
    z[i] = c < classes ? logits.template read<C>(c) : minus_infinity<C>();
  }
}

// --- first reading: softmax states

// Of a row, or of the classes that one thread has seen: the largest logit, sums of exp(z - max), exp((z - max) / tau).
template <typename C>
struct RowState {
  C max;
  double hard;
  double soft;
};

// Makes `state` relative to a larger maximum.
template <typename C>
__device__ __forceinline__ void shift_to(RowState<C>& state, C max, C inverse_tau) {
  if (!is_masked(max)) {  // else there are only masked classes: nothing to shift (and NaN sums stay NaN)
    state.hard *= exp(state.max - max);
    state.soft *= exp((state.max - max) * inverse_tau);
  }
  state.max = max;
}

// Some more classes of the thread: where the maximum grows, the sums so far shrink.
template <typename C>
__device__ __forceinline__ void add_strip(RowState<C>& state, const C (&z)[kAtOnce<C>], bool hard, bool soft,
                                          C inverse_tau) {
  C max = state.max;
#pragma unroll
  for (int i = 0; i < kAtOnce<C>; ++i) {
    max = z[i] > max ? z[i] : max;
  }
  if (max > state.max) {
    shift_to(state, max, inverse_tau);
  }
  const C shift = is_masked(max) ? C(0) : max;
#pragma unroll
  for (int i = 0; i < kAtOnce<C>; ++i) {
    state.hard += hard ? exp(z[i] - shift) : C(0);
    state.soft += soft ? exp((z[i] - shift) * inverse_tau) : C(0);
  }
}

// 1 / a to double precision, by a step of Newton from the quotient in C, which costs less than a division of doubles.
template <typename C>
__device__ __forceinline__ double inverse_of(double a) {
  const double near = C(1) / static_cast<C>(a);
  return near + near * (1 - near * a);
}

// The softmaxes of a row: q and p at tau, of student and teacher, and the student's at temperature 1.
template <typename C>
struct Softmaxes {
  C max_s, max_t;
  C inverse_sum, log_sum;  // at temperature 1
  C inverse_s, inverse_t;  // 1 / sums at tau
  C log_ratio;             // log of the sums' ratio
  C inverse_tau;

  __device__ __forceinline__ C probability(C z_s) const { return exp(z_s - max_s) * inverse_sum; }
  __device__ __forceinline__ C log_probability(C z_s) const { return (z_s - max_s) - log_sum; }

  __device__ __forceinline__ LossSlope<C> kl(C z_s, C z_t) const {
    const C q = exp((z_s - max_s) * inverse_tau) * inverse_s;
    const C p = exp((z_t - max_t) * inverse_tau) * inverse_t;
    // The difference of near-equal logits is exact, that of two shifted ones is not: the difference is shifted.
    return kl_element(p, q, ((z_s - z_t) - (max_s - max_t)) * inverse_tau - log_ratio);
  }
};

template <typename C, typename Logits>
__device__ __forceinline__ Softmaxes<C> softmaxes(const KdContext<C>& kd, const Row<Logits>& row, bool hard) {
  const bool soft = kd.rows.has_teacher;
  RowState<C> s{minus_infinity<C>(), 0, 0}, t = s;
  for (int first = kd.lane(); first < row.classes; first += kAtOnce<C> * kd.lanes) {
    C z_s[kAtOnce<C>], z_t[kAtOnce<C>];
    load_strip(row.student, first, kd.lanes, row.classes, z_s);
    load_strip(row.teacher, first, kd.lanes, soft ? row.classes : 0, z_t);
    add_strip(s, z_s, hard, soft, kd.inverse_tau);
    add_strip(t, z_t, false, soft, kd.inverse_tau);
  }
  C maxima[2] = {s.max, t.max};
  kd.reduce(maxima, Max());
  shift_to(s, maxima[0], kd.inverse_tau);
  shift_to(t, maxima[1], kd.inverse_tau);
  double totals[3] = {s.hard, s.soft, t.soft};
  kd.reduce(totals, Add());
  const double inverse_s = inverse_of<C>(totals[1]), inverse_t = inverse_of<C>(totals[2]);
  // Logarithms of 1 + x, rounded once x is known: a confident row has a sum near 1, rows that agree a ratio near 1.
  const double excess = totals[1] - totals[2];
  const C log_ratio =
      excess >= 0 ? log1p(static_cast<C>(excess * inverse_t)) : -log1p(static_cast<C>(-excess * inverse_s));
  return {s.max,
          t.max,
          static_cast<C>(inverse_of<C>(totals[0])),
          log1p(static_cast<C>(totals[0] - 1)),
          static_cast<C>(inverse_s),
          static_cast<C>(inverse_t),
          log_ratio,
          kd.inverse_tau};
}

// --- second reading: losses and gradient

struct RowSums {  // over rows, before any mean; one thread's share
  double ce;
  double kl;
};

// One row, by the threads of its group.
template <typename C, typename Logits>
__device__ __forceinline__ void kd_row(const KdContext<C>& kd, const Row<Logits>& row, const HardTargets<C>& targets,
                                       RowSums& sums) {
  const Rows& rows = kd.rows;
  const bool hard = targets.label >= 0, soft = rows.has_teacher;
  const Softmaxes<C> softmax = softmaxes(kd, row, hard);
  const C label_slope = kd.ce_scale * targets.label_target;
  C ce = 0, every_log = 0, kl = 0;
  for (int first = kd.lane(); first < row.classes; first += kAtOnce<C> * kd.lanes) {
    C z_s[kAtOnce<C>], z_t[kAtOnce<C>];
    load_strip(row.student, first, kd.lanes, row.classes, z_s);
    load_strip(row.teacher, first, kd.lanes, soft ? row.classes : 0, z_t);
#pragma unroll
    for (int i = 0; i < kAtOnce<C>; ++i) {
      const int c = first + i * kd.lanes;
      if (c >= row.classes) {
        break;
      }
      C slope = 0;
      if (hard) {
        const C weight = class_weight_of<C>(rows, c);
        slope = kd.ce_scale * cross_entropy_slope(softmax.probability(z_s[i]), targets.mass, targets.every * weight);
        if (c == targets.label) {
          slope -= label_slope;
          ce = weighted_log(targets.label_target, softmax.log_probability(z_s[i]));
        }
        if (targets.every > 0) {
          every_log += weighted_log(weight, softmax.log_probability(z_s[i]));
        }
      }
      if (soft) {
        const auto share = softmax.kl(z_s[i], z_t[i]);
        slope += kd.kl_scale * share.slope;
        kl += share.loss;
      }
      if (row.grad.data != nullptr) {
        row.grad.write(c, slope);
      }
    }
  }
  sums.ce -= ce + targets.every * every_log;
  sums.kl += kl;
}

// The rows of the thread's group. All threads of a warp (of a block, where that shares a row) go through the loop
// equally often, since they add up together; a group whose row is beyond the last has nothing to add.
template <typename C, typename Logits>
__device__ __forceinline__ RowSums kd_rows(const KdContext<C>& kd, Logits student, Logits teacher, Logits grad) {
  const int together = kd.shared_by_block() ? kd.lanes : kWarp;  // threads
  const int groups_of_block = static_cast<int>(blockDim.x) / kd.lanes;
  const int group = static_cast<int>(threadIdx.x) / kd.lanes;
  const int first_group = static_cast<int>(threadIdx.x) / together * together / kd.lanes;  // of those together
  RowSums sums{0, 0};
  for (Index first = static_cast<Index>(blockIdx.x) * groups_of_block + first_group; first < kd.rows.batch;
       first += static_cast<Index>(kd.rows.blocks) * groups_of_block) {
    const Index number = first + (group - first_group), start = number * kd.rows.classes;
    const Row<Logits> row{student.from(start), teacher.from(start), grad.from(start),
                          number < kd.rows.batch ? kd.rows.classes : 0};
    kd_row(kd, row, hard_targets(kd, number), sums);
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
                        lanes_of_row(rows.classes, static_cast<int>(blockDim.x)),
                        static_cast<C>(totals.classes),
                        static_cast<C>(1 / problem.tau),
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
