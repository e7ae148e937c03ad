// Sums and maxima over the threads of a warp or a block, in an order that depends on the number of threads alone.
#pragma once

#include "kernels/cuda/numbers.cuh"

// A block's shared memory; where the kernels run on a CPU, there is a definition that comes before this one.
#if !defined(LIT_SHARED)
#define LIT_SHARED(type, name) __shared__ type name
#endif

namespace lit_fast::cuda {

constexpr int kMaxReduced = 5;  // values at a time

struct Scratch {  // what the threads of a block share
  double of_warp[kMaxReduced][kThreads / kWarp];
  double means[kMaxSections];  // of the sections, in the block that finishes last
  double rows[2];              // ce and kl, there
  bool finishes;               // whether this block is that one
};

struct Add {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Max {  // NaN is passed over: it shows in the sums
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return b > a ? b : a;
  }
};

__device__ __forceinline__ int warp_of_thread() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ __forceinline__ int lane_of_thread() { return static_cast<int>(threadIdx.x) % kWarp; }

// Of the `lanes` threads that share a row of logits: a power of two up to a warp, or all of the block.
__device__ __forceinline__ int lane_of_row(int lanes) {
  return lanes > kWarp ? static_cast<int>(threadIdx.x) : static_cast<int>(threadIdx.x) & (lanes - 1);
}

__device__ __forceinline__ int warps_of_block() { return static_cast<int>(blockDim.x) / kWarp; }

// Each of the values, over `lanes` threads beside each other (a power of two, up to a warp); each of them gets the
// same. All threads of the warp must come here.
template <typename T, typename Operation, int n>
__device__ __forceinline__ void reduce_lanes(T (&values)[n], int lanes, Operation operation) {
#pragma unroll 1  // instructions that run once take longer to fetch than to run
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      values[i] = operation(values[i], __shfl_xor_sync(0xffffffffu, values[i], distance));
    }
  }
}

// The same over all threads of the warp.
template <typename T, typename Operation, int n>
__device__ __forceinline__ void reduce_warp(T (&values)[n], Operation operation) {
  reduce_lanes(values, kWarp, operation);
}

// The same over all threads of the block, which must all come here.
template <typename T, typename Operation, int n>
__device__ __forceinline__ void reduce_block(T (&values)[n], Operation operation, Scratch& scratch) {
  static_assert(n <= kMaxReduced, "room in the scratch");
  reduce_warp(values, operation);
  if (lane_of_thread() == 0) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      scratch.of_warp[i][warp_of_thread()] = values[i];
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < n; ++i) {
    values[i] = static_cast<T>(scratch.of_warp[i][0]);
  }
#pragma unroll 1
  for (int warp = 1; warp < warps_of_block(); ++warp) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      values[i] = operation(values[i], static_cast<T>(scratch.of_warp[i][warp]));
    }
  }
  __syncthreads();  // the scratch is free again
}

}  // namespace lit_fast::cuda
