// The whole LIT loss, forward and gradient, in one launch.
//
// Every block belongs to one section or to the logits and walks its share of them, however large they are. It writes
// the gradients and one partial sum; the block that finishes last adds up the partial sums in a fixed order, in
// float64: the result is the same in every run on the same device. Nothing is added atomically but a count.
#pragma once

#include "kernels/cuda/ir.cuh"
#include "kernels/cuda/kd.cuh"

namespace lit_fast::cuda {

// Blocks that a multiprocessor must be able to hold, which bounds the registers of a thread: 96 where float32 is
// computed in, 128 for float64 and where the compiler needs more. Loads in flight, not warps, keep the memory busy.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
template <typename C>
constexpr int kBlocksOfSm = 4;
#else
template <typename C>
constexpr int kBlocksOfSm = sizeof(C) == sizeof(double) ? 4 : 5;
#endif

// How many blocks of a launch have finished. The last block's increment wraps around to 0, so that the counter is ready
// for the next launch. Zero when the module is loaded.
static __device__ unsigned counters[kCounters];

__device__ __forceinline__ double written_by_another_block(const double* number) {
  return *static_cast<const volatile double*>(number);
}

// The block's part of the work; its partial sums are the same in all threads.
template <typename S, typename C>
__device__ __forceinline__ void block_sums(const Problem& problem, Scratch& scratch, double (&sums)[2]) {
  const int block = static_cast<int>(blockIdx.x);
  const double grad_scale = number_or(problem.grad_scale, problem.grad_scale_dtype, 1.0);
  if (block < problem.rows.blocks) {
    const RowSums rows = kd_loss<S, C>(problem, grad_scale, scratch);
    sums[0] = rows.ce;
    sums[1] = rows.kl;
  } else if (block < problem.blocks) {
    int number = 0;
    while (number + 1 < problem.section_count && block >= problem.sections[number + 1].first_block) {
      ++number;
    }
    const int end = number + 1 < problem.section_count ? problem.sections[number + 1].first_block : problem.blocks;
    const Section& section = problem.sections[number];
    const Index threads = static_cast<Index>(end - section.first_block) * blockDim.x;
    const Place place{static_cast<Index>(block - section.first_block) * blockDim.x + threadIdx.x, threads};
    CountedRows rows{nullptr, 1};  // a copy: who takes the address of an argument has all arguments in local memory
    if (problem.has_ir_rows) {
      rows = problem.counted.rows[number];
    }
    const double slope = over_count(problem, section.slope * grad_scale, 2 + problem.first_section + number);
    sums[0] = ir_section<S>(section, rows, problem.ir_kind, static_cast<C>(slope), place);
  }
  reduce_block(sums, Add(), scratch);
}

// Whether this block is the last one to have written its partial sums, which it then sees all of: the first thread's
// fence and the barrier put the others' reads behind all writes.
__device__ __forceinline__ bool is_last_block(const Problem& problem, const double (&sums)[2], Scratch& scratch) {
  if (threadIdx.x == 0) {
    problem.partials[2 * blockIdx.x] = sums[0];
    problem.partials[2 * blockIdx.x + 1] = sums[1];
    __threadfence();
    scratch.finishes = atomicInc(&counters[problem.counter], gridDim.x - 1) == gridDim.x - 1;
    if (scratch.finishes) {
      __threadfence();
    }
  }
  __syncthreads();
  return scratch.finishes;
}

constexpr int kPartialsAtOnce = 4;  // pairs that a thread loads before it adds any

// One warp: the partial sums of the blocks first .. end - 1.
__device__ __forceinline__ void add_partials(const Problem& problem, int first, int end, double (&sums)[2]) {
  sums[0] = sums[1] = 0;
  for (int block = first + lane_of_thread(); block < end; block += kPartialsAtOnce * kWarp) {
    double found[kPartialsAtOnce][2];
#pragma unroll
    for (int i = 0; i < kPartialsAtOnce; ++i) {
      const bool exists = block + i * kWarp < end;
      const double* pair = &problem.partials[2 * (block + i * kWarp)];
      found[i][0] = exists ? written_by_another_block(pair) : 0.0;
      found[i][1] = exists ? written_by_another_block(pair + 1) : 0.0;
    }
#pragma unroll
    for (int i = 0; i < kPartialsAtOnce; ++i) {
      sums[0] += found[i][0];
      sums[1] += found[i][1];
    }
  }
  reduce_warp(sums, Add());
}

// The last block: means into the scratch, a warp for every section and one for the logits.
__device__ __forceinline__ void take_means(const Problem& problem, Scratch& scratch) {
  for (int number = warp_of_thread(); number <= problem.section_count; number += warps_of_block()) {
    double sums[2];
    if (number == problem.section_count) {
      add_partials(problem, 0, problem.rows.blocks, sums);
      // A mean over nothing is 0 / 0 = NaN, as in torch.
      const double labels_weight =
          problem.rows.blocks > 0 ? written_by_another_block(&problem.carried->labels_weight) : 0.0;
      const double kl_scale = problem.tau_squared ? problem.tau * problem.tau : 1.0;
      if (lane_of_thread() == 0) {
        const bool hard = problem.rows.has_labels || problem.rows.has_soft_labels;
        scratch.rows[0] = hard ? sums[0] / labels_weight : 0.0;
        scratch.rows[1] =
            problem.rows.has_teacher ? sums[1] / count_or(problem, 1, problem.rows.batch) * kl_scale : 0.0;
      }
    } else {
      const int end = number + 1 < problem.section_count ? problem.sections[number + 1].first_block : problem.blocks;
      add_partials(problem, problem.sections[number].first_block, end, sums);
      if (lane_of_thread() == 0) {
        const int term = 2 + problem.first_section + number;
        scratch.means[number] = sums[0] / count_or(problem, term, problem.sections[number].numel);
      }
    }
  }
  __syncthreads();
}

// The last block: the parts of the loss, or what the next launch must know.
template <typename C>
__device__ __forceinline__ void finish(const Problem& problem, Scratch& scratch) {
  take_means(problem, scratch);
  if (threadIdx.x != 0) {
    return;
  }
  C* parts = static_cast<C*>(problem.parts);
  double ir_total = problem.first_section == 0 ? 0.0 : problem.carried->ir_total;
  for (int number = 0; number < problem.section_count; ++number) {
    ir_total += problem.sections[number].weight * scratch.means[number];
    parts[3 + problem.first_section + number] = static_cast<C>(scratch.means[number]);
  }
  problem.carried->ir_total = ir_total;
  if (problem.is_last) {
    const double alpha = problem.alpha, beta = problem.beta;
    const double ce = scratch.rows[0], kl = scratch.rows[1];
    parts[0] = static_cast<C>(beta * (alpha * ce + (1 - alpha) * kl) + (1 - beta) * ir_total);
    parts[1] = static_cast<C>(ce);
    parts[2] = static_cast<C>(kl);
  }
}

// S: the type of all IRs and logits, or Any. C: the type that is computed in, float, or double if any of them is
// float64.
//
// A kernel for each type, though one could tell the types apart: a small launch takes as long as it takes to fetch the
// instructions.
template <typename S, typename C>
__global__ void __launch_bounds__(kThreads, kBlocksOfSm<C>) lit_loss(const Problem problem) {
  LIT_SHARED(Scratch, scratch);
  double sums[2] = {0, 0};
  block_sums<S, C>(problem, scratch, sums);
  if (is_last_block(problem, sums, scratch)) {
    finish<C>(problem, scratch);
  }
}

#if !defined(__CUDACC_RTC__)
using LossKernel = void (*)(const Problem);

inline LossKernel kernel_for(Kernel kernel) {
  switch (kernel) {
    case Kernel::f16:
      return lit_loss<Half, float>;
    case Kernel::bf16:
      return lit_loss<BFloat16, float>;
    case Kernel::f32:
      return lit_loss<float, float>;
    case Kernel::mixed:
      return lit_loss<Any, float>;
    default:
      return lit_loss<Any, double>;
  }
}
#endif

}  // namespace lit_fast::cuda
