// Memory for the gradients of large IRs.
#pragma once

#include <ATen/core/Tensor.h>

namespace lit_fast::cpu {

// As at::empty_like. Large tensors take memory that earlier ones gave back: the pages of fresh memory must first be
// mapped and zeroed by the system, which takes longer than to compute the gradient.
at::Tensor gradient_like(const at::Tensor& tensor);

}  // namespace lit_fast::cpu
