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

}  // namespace lit_fast::cuda
