// A check that several ops make.
#pragma once

#include <ATen/core/Tensor.h>

namespace lit_fast {

// name: what to call the tensor, in pieces.
template <typename... Name>
void check_device(const at::Tensor& tensor, const at::Device& device, const Name&... name) {
  TORCH_CHECK_VALUE(tensor.device() == device, name..., ": expected device ", device, ", got ", tensor.device(),
                    "; move it there");
}

}  // namespace lit_fast
