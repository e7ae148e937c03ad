// lit_fast::rescale_ on CUDA: one launch for up to 64 gradients. The device decides whether there is anything to do.
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <vector>

#include "csrc/checks.h"
#include "csrc/cuda/launch.h"
#include "csrc/cuda/tensors.h"

namespace lit_fast::cuda {
namespace {

void check_number(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK_VALUE(tensor.numel() == 1, "rescale_: ", name, ": expected one number, got ", tensor.sizes());
}

void rescale_(at::TensorList grads, const at::Tensor& factor, const std::optional<at::Tensor>& scale) {
  check_number(factor, "factor");
  if (grads.empty()) {
    return;
  }
  const at::Device device = factor.device();
  TORCH_CHECK_VALUE(device.is_cuda(), "rescale_: factor: expected a CUDA device, got ", device, "; move it there");
  Quotient by{factor.const_data_ptr(), nullptr, dtype_of(factor), dtype_of(factor)};
  if (scale) {
    check_number(*scale, "scale");
    check_device(*scale, device, "rescale_: scale");
    by.scale = scale->const_data_ptr();
    by.scale_dtype = dtype_of(*scale);
  }
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
  const auto launches = plan_rescaling(tensors, by, limits);
  C10_CUDA_CHECK(run(launches, c10::cuda::getCurrentCUDAStream()));
}

}  // namespace
}  // namespace lit_fast::cuda

TORCH_LIBRARY_IMPL(lit_fast, CUDA, m) { m.impl("rescale_", &lit_fast::cuda::rescale_); }
