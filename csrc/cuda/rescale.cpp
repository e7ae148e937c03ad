// lit_fast::rescale_ on CUDA: one launch for up to 64 gradients. The device decides whether there is anything to do.
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "csrc/cuda/launch.h"
#include "csrc/cuda/tensors.h"

namespace lit_fast::cuda {
namespace {

void rescale_(at::TensorList grads, const at::Tensor& factor) {
  TORCH_CHECK_VALUE(factor.numel() == 1, "rescale_: factor: expected one number, got ", factor.sizes());
  if (grads.empty()) {
    return;
  }
  const at::Device device = factor.device();
  TORCH_CHECK_VALUE(device.is_cuda(), "rescale_: factor: expected a CUDA device, got ", device, "; move it there");
  const c10::cuda::CUDAGuard guard(device);
  std::vector<Rescaling::Tensor> tensors;
  for (const at::Tensor& grad : grads) {
    check_device(grad, device, "rescale_: gradient");
    TORCH_CHECK_VALUE(grad.is_non_overlapping_and_dense(), "rescale_: gradient: expected dense memory, got strides ",
                      grad.strides(), " for ", grad.sizes());
    tensors.push_back({grad.mutable_data_ptr(), grad.numel(), 0, dtype_of(grad)});
  }
  Limits limits{};
  C10_CUDA_CHECK(limits_of_rescaling(&limits));
  const auto launches = plan_rescaling(tensors, factor.const_data_ptr(), dtype_of(factor), limits);
  C10_CUDA_CHECK(run(launches, c10::cuda::getCurrentCUDAStream()));
}

}  // namespace
}  // namespace lit_fast::cuda

TORCH_LIBRARY_IMPL(lit_fast, CUDA, m) { m.impl("rescale_", &lit_fast::cuda::rescale_); }
