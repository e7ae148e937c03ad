// Memory layouts: what lets a kernel walk several tensors as flat arrays.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

namespace lit_fast {

// Whether the elements of two tensors of one shape lie in memory in the same order.
inline bool same_layout(const at::Tensor& a, const at::Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) {  // strides of dimensions of size 1 play no role
      return false;
    }
  }
  return true;
}

// `tensor` itself if its elements lie in memory as those of `model`, else a copy in which they do.
inline at::Tensor laid_out_as(const at::Tensor& model, const at::Tensor& tensor) {
  return same_layout(model, tensor) ? tensor : at::empty_like(model, tensor.options()).copy_(tensor);
}

}  // namespace lit_fast
