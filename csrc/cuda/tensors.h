// Torch's tensors as the CUDA kernels take them.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/cuda/problem.h"

namespace lit_fast::cuda {

inline DType dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kHalf:
      return DType::f16;
    case at::kBFloat16:
      return DType::bf16;
    case at::kFloat:
      return DType::f32;
    case at::kDouble:
      return DType::f64;
    default:
      TORCH_CHECK_TYPE(false, "expected float16, bfloat16, float32 or float64, got ", tensor.scalar_type());
  }
}

// name: what to call the tensor, in pieces.
template <typename... Name>
void check_device(const at::Tensor& tensor, const at::Device& device, const Name&... name) {
  TORCH_CHECK_VALUE(tensor.device() == device, name..., ": expected device ", device, ", got ", tensor.device(),
                    "; move it there");
}

}  // namespace lit_fast::cuda
