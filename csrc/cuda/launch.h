// Launches of the CUDA kernels, without torch: what stands between the host code and the one file that nvcc compiles.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "kernels/cuda/plan.h"

namespace lit_fast::cuda {

// How the current device runs the kernels. Asked once per device.
cudaError_t limits_of_loss(Kernel kernel, Limits* limits);
cudaError_t limits_of_rescaling(Limits* limits);

// Runs the launches of one call on `stream`, in order, without waiting for them. workspace: workspace_bytes(launches).
cudaError_t run(std::vector<Launch>& launches, Kernel kernel, void* workspace, cudaStream_t stream);
cudaError_t run(const std::vector<RescalingLaunch>& launches, cudaStream_t stream);

}  // namespace lit_fast::cuda
