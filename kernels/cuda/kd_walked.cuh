// The KD loss of rows that are too long to be held in registers: two walks over their classes, a strip at a time.
// Numbers of a class are of the type C that is computed in; sums over classes are float64, but within a strip.
#pragma once

#include "kernels/cuda/kd_context.cuh"

namespace lit_fast::cuda {

template <typename Array>
struct Row {
  Logits<Array> logits;  // from the row's first class on
  Untyped soft_labels;   // likewise, or none
  int classes;           // 0: the group has no row, and only takes part in what the warp does together
};

// Classes that a thread loads before it looks at any: a strip, or half of one in float64, which takes twice the
// registers.
template <typename C>
constexpr int kAtOnce = sizeof(C) == sizeof(double) ? kStrip / 2 : kStrip;

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
  C sum_hard = 0, sum_soft = 0;  // of the strip: float64, and conversions to it, are slow
#pragma unroll
  for (int i = 0; i < kAtOnce<C>; ++i) {
    sum_hard += hard ? exp(z[i] - shift) : C(0);
    sum_soft += soft ? exp((z[i] - shift) * inverse_tau) : C(0);
  }
  state.hard += sum_hard;
  state.soft += sum_soft;
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

template <typename C, typename Array>
__device__ __forceinline__ Softmaxes<C> softmaxes(const KdContext<C>& kd, const Row<Array>& row, bool hard) {
  const bool soft = kd.rows.has_teacher;
  RowState<C> s{minus_infinity<C>(), 0, 0}, t = s;
  for (int first = kd.lane(); first < row.classes; first += kAtOnce<C> * kd.lanes) {
    C z_s[kAtOnce<C>], z_t[kAtOnce<C>];
    load_strip(row.logits.student, first, kd.lanes, row.classes, z_s);
    load_strip(row.logits.teacher, first, kd.lanes, soft ? row.classes : 0, z_t);
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
  const C log_ratio = log_of_ratio(static_cast<C>(excess), static_cast<C>(inverse_s), static_cast<C>(inverse_t));
  return {s.max,
          t.max,
          static_cast<C>(inverse_of<C>(totals[0])),
          log1p(static_cast<C>(totals[0] - 1)),
          static_cast<C>(inverse_s),
          static_cast<C>(inverse_t),
          log_ratio,
          kd.inverse_tau};
}

// --- soft labels

// The target of a class of a row with soft labels.
template <typename C, typename Array>
__device__ __forceinline__ C soft_target(const KdContext<C>& kd, const Row<Array>& row, int c) {
  return class_weight_of<C>(kd.rows, c) * (kd.at_label * row.soft_labels.template read<C>(c) + kd.at_all);
}

// The targets of a row with soft labels: none at a label.
template <typename C, typename Array>
__device__ __forceinline__ HardTargets<C> soft_targets(const KdContext<C>& kd, const Row<Array>& row) {
  double mass[1] = {0};
#pragma unroll 1
  for (int c = kd.lane(); c < row.classes; c += kd.lanes) {
    mass[0] += soft_target(kd, row, c);
  }
  kd.reduce(mass, Add());
  return {kd.rows.classes, 0, 0, static_cast<C>(mass[0])};
}

// --- second reading: losses and gradient

// One row, by the threads of its group.
template <typename C, typename Array>
__device__ __forceinline__ void kd_row(const KdContext<C>& kd, const Row<Array>& row, const HardTargets<C>& targets,
                                       RowSums& sums) {
  const Rows& rows = kd.rows;
  const bool hard = targets.label >= 0, soft = rows.has_teacher;
  const Softmaxes<C> softmax = softmaxes(kd, row, hard);
  const C label_slope = kd.ce_scale * targets.label_target;
  C ce = 0, every_log = 0, kl = 0;
  for (int first = kd.lane(); first < row.classes; first += kAtOnce<C> * kd.lanes) {
    C z_s[kAtOnce<C>], z_t[kAtOnce<C>];
    load_strip(row.logits.student, first, kd.lanes, row.classes, z_s);
    load_strip(row.logits.teacher, first, kd.lanes, soft ? row.classes : 0, z_t);
#pragma unroll
    for (int i = 0; i < kAtOnce<C>; ++i) {
      const int c = first + i * kd.lanes;
      if (c >= row.classes) {
        break;
      }
      C slope = 0;
      if (hard) {
        const C weight = class_weight_of<C>(rows, c);
        C target = targets.every * weight;
        if (rows.has_soft_labels) {
          target = soft_target(kd, row, c);
          ce += weighted_log(target, softmax.log_probability(z_s[i]));
        }
        slope = kd.ce_scale * cross_entropy_slope(softmax.probability(z_s[i]), targets.mass, target);
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
      if (row.logits.grad.data != nullptr) {
        row.logits.grad.write(c, slope);
      }
    }
  }
  sums.ce -= ce + targets.every * every_log;
  sums.kl += kl;
}

// The rows of the thread's group.
template <typename C, typename Array>
__device__ __forceinline__ RowSums kd_walked(const KdContext<C>& kd, const Logits<Array>& logits) {
  RowSums sums{0, 0};
  for (Turns turns = turns_of(kd.rows, kd.lanes); turns.first < kd.rows.batch; turns.next()) {
    const Rows& rows = kd.rows;
    const Index start = turns.number * rows.classes;
    const bool exists = turns.number < rows.batch, is_row = exists && counts(rows, turns.number);
    const Untyped soft_labels{const_cast<void*>(rows.soft_labels), rows.soft_labels_dtype};
    const Row<Array> row{logits.from(start), soft_labels.from(start), is_row ? rows.classes : 0};
    const Index label = is_row && rows.has_labels ? rows.labels[turns.number] : rows.ignore_index;
    kd_row(kd, row, rows.has_soft_labels ? soft_targets(kd, row) : hard_targets(kd, label), sums);
    if (exists && !is_row && row.logits.grad.data != nullptr) {
#pragma unroll 1
      for (int c = kd.lane(); c < rows.classes; c += kd.lanes) {
        row.logits.grad.write(c, C(0));
      }
    }
  }
  return sums;
}

}  // namespace lit_fast::cuda
