// The labels of the logits and the weights of their classes.
#pragma once

#include "kernels/cuda/sums.cuh"

#if defined(__CUDACC_RTC__)
extern "C" __device__ int printf(const char*, ...);
#else
#include <cstdio>
#endif

namespace lit_fast::cuda {

constexpr int kLabelsAtOnce = 8;  // that a thread loads before it looks at any

template <typename C>
__device__ __forceinline__ C class_weight_of(const Rows& rows, Index c) {
  return rows.class_weight == nullptr
             ? C(1)
             : Untyped{const_cast<void*>(rows.class_weight), rows.class_weight_dtype}.read<C>(c);
}

// Stops the kernel, and with it all work on the device: a failed assertion, where there is one to call.
[[noreturn]] __device__ __forceinline__ void fail() {
#if defined(__CUDA_ARCH__) && defined(__GNUC__) && !defined(__CUDACC_RTC__)
  __assert_fail("labels are in range", __FILE__, __LINE__, "lit_loss");
#else
  __trap();
#endif
#if defined(__CUDA_ARCH__)
  __builtin_unreachable();
#endif
}

__device__ __forceinline__ bool is_class(const Rows& rows, Index label) { return label >= 0 && label < rows.classes; }

// For a thread that has met a wrong label: names the first of those that it looks at, and stops. It does not return, so
// that what a thread holds need not outlive the message.
[[noreturn]] __device__ __forceinline__ void name_wrong_label(const Rows& rows) {
  Index row = threadIdx.x, label = rows.labels[row];
  while (label == rows.ignore_index || is_class(rows, label)) {
    row += blockDim.x;
    label = rows.labels[row];
  }
  printf("lit_loss: labels: label %lld of row %lld is out of range; expected 0 to %d, or ignore_index = %lld\n", label,
         row, rows.classes - 1, rows.ignore_index);
  fail();
}

// How many of the thread's labels count; stops at one that is no class. The thread loads several before it looks at the
// first.
__device__ __forceinline__ Index count_labels(const Rows& rows) {
  Index count = 0;
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
      const bool counts = labels[i] != rows.ignore_index;
      wrong = wrong || (counts && !is_class(rows, labels[i]));
      count += counts ? 1 : 0;
    }
  }
  if (wrong) {
    name_wrong_label(rows);
  }
  return count;
}

// Sum of the class weights of the labels that count. Every block of the logits adds up all labels by itself, in the
// same order: no block waits for another.
__device__ __forceinline__ double labels_weight(const Rows& rows, Scratch& scratch) {
  double weight[1] = {static_cast<double>(count_labels(rows))};
  if (rows.class_weight != nullptr) {
    weight[0] = 0;
#pragma unroll 1
    for (Index row = threadIdx.x; row < rows.batch; row += blockDim.x) {
      const Index label = rows.labels[row];
      weight[0] += label == rows.ignore_index ? 0.0 : class_weight_of<double>(rows, label);
    }
  }
  reduce_block(weight, Add(), scratch);
  return weight[0];
}

// Sum of the class weights of all classes.
__device__ __forceinline__ double classes_weight(const Rows& rows, Scratch& scratch) {
  if (rows.class_weight == nullptr) {
    return rows.classes;
  }
  double weight[1] = {0};
#pragma unroll 1
  for (Index c = threadIdx.x; c < rows.classes; c += blockDim.x) {
    weight[0] += class_weight_of<double>(rows, c);
  }
  reduce_block(weight, Add(), scratch);
  return weight[0];
}

}  // namespace lit_fast::cuda
