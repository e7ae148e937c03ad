// The KD loss of rows whose threads hold all logits, n classes each: one reading, and sums in the type that is computed
// in. What a row takes is latency, of loads and of instructions that run once: no branches, and little code.
#pragma once

#include "kernels/cuda/kd_context.cuh"

namespace lit_fast::cuda {

template <typename C, int n>
struct Held {
  C student[n], teacher[n];  // the classes lane, lane + lanes, ...; -inf where there is none
  Index label;               // ignore_index if there is none
};

template <typename C, int n, typename Array>
__device__ __forceinline__ Held<C, n> hold(const Rows& rows, const Logits<Array>& logits, int lanes, Index number) {
  const bool is_row = number < rows.batch && counts(rows, number);
  const Logits<Array> row = logits.from(number * rows.classes);
  const int lane = lane_of_row(lanes), classes = is_row ? rows.classes : 0;
  Held<C, n> held;
  load_strip(row.student, lane, lanes, classes, held.student);
  load_strip(row.teacher, lane, lanes, rows.has_teacher ? classes : 0, held.teacher);
  held.label = is_row && rows.has_labels ? rows.labels[number] : rows.ignore_index;
  return held;
}

// Of a row, or of one thread's classes. `hard` is without the 1 that each largest logit adds, so that a confident row's
// loss is not rounded away; `difference`, of the sums at tau, is not that of two rounded ones.
enum HeldSum { kHard, kLargest, kStudent, kTeacher, kDifference, kHeldSums };

// exp(z - max) of a thread's classes.
template <typename C, int n>
struct Exponentials {
  C student[n], teacher[n];  // at tau
};

template <typename C, int n>
__device__ __forceinline__ Exponentials<C, n> exponentials(const Held<C, n>& held, const C (&max)[2], C inverse_tau,
                                                           C (&sums)[kHeldSums]) {
  Exponentials<C, n> e;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    // Where all classes are masked, -inf - -inf makes the row NaN.
    const C below_s = held.student[i] - max[0], below_t = held.teacher[i] - max[1];
    e.student[i] = exp(below_s * inverse_tau);
    e.teacher[i] = exp(below_t * inverse_tau);
    const C largest = held.student[i] == max[0] ? C(1) : C(0);
    sums[kHard] += exp(below_s) - largest;
    sums[kLargest] += largest;
    sums[kStudent] += e.student[i];
    sums[kTeacher] += e.teacher[i];
    sums[kDifference] += e.student[i] - e.teacher[i];
  }
  return e;
}

// Over the group, which is part of a warp where it holds one strip each.
template <int n, typename C, int m, typename Operation>
__device__ __forceinline__ void reduce_held(const KdContext<C>& kd, C (&values)[m], Operation operation) {
  if constexpr (n == kStrip) {
    reduce_lanes(values, kd.lanes, operation);
  } else {
    kd.reduce(values, operation);
  }
}

// The group's row.
template <typename C, int n, typename Array>
__device__ __forceinline__ void kd_held_row(const KdContext<C>& kd, const Held<C, n>& held, const C (&weights)[n],
                                            Array grad, Index number, RowSums& row_sums) {
  const Rows& rows = kd.rows;
  C max[2] = {held.student[0], held.teacher[0]};
#pragma unroll
  for (int i = 1; i < n; ++i) {
    max[0] = Max()(max[0], held.student[i]);
    max[1] = Max()(max[1], held.teacher[i]);
  }
  reduce_held<n>(kd, max, Max());
  C sums[kHeldSums] = {};
  const Exponentials<C, n> e = exponentials(held, max, kd.inverse_tau, sums);
  reduce_held<n>(kd, sums, Add());

  const HardTargets<C> targets = hard_targets(kd, held.label);
  const C inverse_hard = C(1) / (sums[kLargest] + sums[kHard]);
  const C log_hard = log1p(sums[kHard] + (sums[kLargest] - C(1)));
  const C inverse_s = C(1) / sums[kStudent], inverse_t = C(1) / sums[kTeacher];
  const C log_ratio = log_of_ratio(sums[kDifference], inverse_s, inverse_t);
  // Looked up again: kept since the row was loaded, it would be a register too many. Else the row's gradient is 0.
  const bool soft = rows.has_teacher && number < rows.batch && counts(rows, number);
  const bool hard = targets.label >= 0;
  C ce = 0, every_log = 0, kl = 0;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const int c = kd.lane() + i * kd.lanes;
    const bool inside = c < rows.classes && number < rows.batch;
    const C log_p = (held.student[i] - max[0]) - log_hard, at_label = c == targets.label ? targets.label_target : C(0);
    const C of_class = targets.every * weights[i];
    const C hard_slope = cross_entropy_slope(exp(held.student[i] - max[0]) * inverse_hard, targets.mass, of_class);
    C slope = hard ? kd.ce_scale * hard_slope - kd.ce_scale * at_label : C(0);
    ce += inside && c == targets.label ? weighted_log(at_label, log_p) : C(0);
    every_log += inside && hard && targets.every > 0 ? weighted_log(weights[i], log_p) : C(0);
    // The difference of near-equal logits is exact, that of two shifted ones is not: the difference is shifted.
    const C delta = ((held.student[i] - held.teacher[i]) - (max[0] - max[1])) * kd.inverse_tau - log_ratio;
    const auto share = kl_element(e.teacher[i] * inverse_t, e.student[i] * inverse_s, delta);
    slope += soft ? kd.kl_scale * share.slope : C(0);
    kl += inside && soft ? share.loss : C(0);
    if (inside && grad.data != nullptr) {
      grad.write(c, slope);
    }
  }
  row_sums.ce -= ce + targets.every * every_log;
  row_sums.kl += kl;
}

// The rows of the thread's group. Those of the first turn are on their way while the labels are added up.
template <typename C, int n, typename Array>
__device__ __forceinline__ RowSums kd_held(const Problem& problem, double grad_scale, const Logits<Array>& logits,
                                           int lanes, Scratch& scratch) {
  const Rows& rows = problem.rows;
  Turns turns = turns_of(rows, lanes);
  Held<C, n> held = hold<C, n>(rows, logits, lanes, turns.number);
  C weights[n];
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const int c = lane_of_row(lanes) + i * lanes;
    weights[i] = n == kStrip && c < rows.classes ? class_weight_of<C>(rows, c) : C(1);
  }
  const KdContext<C> kd = kd_context<C>(problem, grad_scale, lanes, scratch);
  RowSums sums{0, 0};
  while (turns.first < rows.batch) {
    kd_held_row(kd, held, weights, logits.grad.from(turns.number * rows.classes), turns.number, sums);
    turns.next();
    held = hold<C, n>(rows, logits, lanes, turns.number);
  }
  return sums;
}

}  // namespace lit_fast::cuda
