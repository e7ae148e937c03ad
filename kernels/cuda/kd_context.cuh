// What the threads of the blocks of the logits need besides the logits: targets, scales, softmaxes.
#pragma once

#include "kernels/cuda/labels.cuh"

#if !defined(__CUDACC_RTC__)
#include <cmath>
#endif

namespace lit_fast::cuda {

#if !defined(__CUDACC_RTC__)
using std::log1p;
#endif

// Array: Typed or Untyped.
template <typename Array>
struct Logits {
  Array student, teacher, grad;  // [batch, classes]

  __device__ __forceinline__ Logits from(Index i) const { return {student.from(i), teacher.from(i), grad.from(i)}; }
};

struct RowSums {  // over rows, before any mean; one thread's share
  double ce;
  double kl;
};

template <typename C>
struct KdContext {
  const Rows& rows;
  Scratch& scratch;
  int lanes;           // threads that share a row: a power of two up to a warp, or all of the block
  C class_weight_sum;  // only with label smoothing
  C inverse_tau;
  C ce_scale, kl_scale;  // d total / d logit = ce_scale * cross_entropy_slope + kl_scale * (q - p)
  C at_label, at_all;    // shares of its class's weight that the label, and every class, is a target with

  __device__ __forceinline__ bool shared_by_block() const { return lanes > kWarp; }
  __device__ __forceinline__ int lane() const { return lane_of_row(lanes); }

  template <typename T, typename Operation, int n>
  __device__ __forceinline__ void reduce(T (&values)[n], Operation operation) const {
    if (shared_by_block()) {
      reduce_block(values, operation, scratch);
    } else {
      reduce_lanes(values, lanes, operation);
    }
  }
};

// What a term's sum is divided by: the count that is given for it, or its own.
__device__ __forceinline__ double count_or(const Problem& problem, int term, Index own) {
  return problem.counts == nullptr ? static_cast<double>(own) : problem.counts[term];
}

// The same of a slope, from which its own count is divided already.
__device__ __forceinline__ double over_count(const Problem& problem, double slope, int term) {
  return problem.counts == nullptr ? slope : slope / problem.counts[term];
}

// All threads of the block come here. Also notes the sum of the labels' weights for whoever takes the mean.
template <typename C>
__device__ __forceinline__ KdContext<C> kd_context(const Problem& problem, double grad_scale, int lanes,
                                                   Scratch& scratch) {
  const Rows& rows = problem.rows;
  double labels = 1, classes = 0;
  if (rows.has_labels || rows.has_soft_labels) {
    labels = rows.has_labels ? labels_weight(rows, scratch) : static_cast<double>(rows.batch);
    if (rows.label_smoothing > 0) {
      classes = classes_weight(rows, scratch);
    }
    if (problem.counts != nullptr) {
      labels = problem.counts[0];
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      problem.carried->labels_weight = labels;
    }
  }
  return {rows,
          scratch,
          lanes,
          static_cast<C>(classes),
          static_cast<C>(rows.inverse_tau),
          static_cast<C>(rows.ce_slope * grad_scale / labels),
          static_cast<C>(over_count(problem, rows.kl_slope * grad_scale, 1)),
          static_cast<C>(1 - rows.label_smoothing),
          static_cast<C>(rows.at_all)};
}

// Which rows the thread's group takes. All threads of a warp (of a block, where that shares a row) go through the same
// number of turns, since they add up together; a group whose row is beyond the last has nothing to add.
struct Turns {
  Index first;   // row, of the groups that are together
  Index number;  // the group's own row
  Index step;    // to the next turn's

  __device__ __forceinline__ void next() {
    first += step;
    number += step;
  }
};

__device__ __forceinline__ Turns turns_of(const Rows& rows, int lanes) {
  const int together = lanes > kWarp ? lanes : kWarp;  // threads
  const int groups = static_cast<int>(blockDim.x) / lanes;
  const int group = static_cast<int>(threadIdx.x) / lanes;
  const int first_group = static_cast<int>(threadIdx.x) / together * together / lanes;
  const Index first = static_cast<Index>(blockIdx.x) * groups + first_group;
  return {first, first + (group - first_group), static_cast<Index>(rows.blocks) * groups};
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

// label: ignore_index where there is none.
template <typename C>
__device__ __forceinline__ HardTargets<C> hard_targets(const KdContext<C>& kd, Index label) {
  if (!kd.rows.has_labels || label == kd.rows.ignore_index) {
    return {-1, 0, 0, 0};
  }
  const C label_target = kd.at_label * class_weight_of<C>(kd.rows, label);
  return {static_cast<int>(label), label_target, kd.at_all, label_target + kd.at_all * kd.class_weight_sum};
}

// Whether a row, from 0 to the last, counts.
__device__ __forceinline__ bool counts(const Rows& rows, Index row) {
  return rows.counted == nullptr || rows.counted[row];
}

// The classes first, first + lanes, ... of a row; -inf, which counts for nothing, beyond its end.
template <typename C, typename Array, int n>
__device__ __forceinline__ void load_strip(Array logits, int first, int lanes, int classes, C (&z)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const int c = first + i * lanes;
    z[i] = c < classes ? logits.template read<C>(c) : minus_infinity<C>();
  }
}

// log(a / b), of two sums whose difference is known better than themselves: a row's softmaxes may nearly agree.
template <typename C>
__device__ __forceinline__ C log_of_ratio(C difference, C inverse_a, C inverse_b) {
  const bool greater = difference >= 0;
  const C log = log1p(greater ? difference * inverse_b : -difference * inverse_a);
  return greater ? log : -log;
}

}  // namespace lit_fast::cuda
