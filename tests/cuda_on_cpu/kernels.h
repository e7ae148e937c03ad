// The project's kernels, launched on the CPU as csrc/cuda launches them on a device.
#pragma once

#include "tests/cuda_on_cpu/cuda_on_cpu.h"
//
#include "kernels/cuda/lit_loss.cuh"
#include "kernels/cuda/plan.h"
#include "kernels/cuda/rescale.cuh"

namespace cuda_on_cpu {

using lit_fast::cuda::Limits;
using lit_fast::cuda::Problem;
using lit_fast::cuda::Section;

inline void run_lit_loss(const std::vector<Section>& sections, const std::vector<lit_fast::cuda::CountedRows>& ir_rows,
                         const Problem& common, bool doubles, Limits limits, bool all_blocks_at_once) {
  const auto kernel = lit_fast::cuda::kernel_for(lit_fast::cuda::kernel_of(sections, common.rows, doubles));
  auto launches = lit_fast::cuda::plan(sections, ir_rows, common, limits);
  std::vector<double> workspace(lit_fast::cuda::workspace_bytes(launches) / sizeof(double), NAN);
  constexpr int counter = 1;
  lit_fast::cuda::use_workspace(launches, workspace.data(), counter);
  try {
    for (const auto& one : launches) {
      launch(one.blocks, limits.threads, all_blocks_at_once, [&] { kernel(one.problem); });
      if (lit_fast::cuda::counters[counter] != 0) {
        throw std::logic_error("the launch left its counter at another number than 0");
      }
    }
  } catch (const Trap&) {  // a device would be lost with all it holds
    lit_fast::cuda::counters[counter] = 0;
    throw;
  }
}

}  // namespace cuda_on_cpu
