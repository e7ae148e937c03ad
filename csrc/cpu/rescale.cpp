// lit_fast::rescale_ on the CPU.
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <optional>

namespace lit_fast::cpu {
namespace {

double one_number(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK_VALUE(tensor.numel() == 1, "rescale_: ", name, ": expected one number, got ", tensor.sizes());
  return tensor.item().toDouble();
}

void rescale_(at::TensorList grads, const at::Tensor& factor, const std::optional<at::Tensor>& scale) {
  const double number = one_number(factor, "factor") / (scale ? one_number(*scale, "scale") : 1.0);
  if (number == 1) {
    return;
  }
  for (const at::Tensor& grad : grads) {
    if (grad.scalar_type() == at::kHalf || grad.scalar_type() == at::kBFloat16) {
      grad.copy_(grad.to(at::kFloat).mul_(number));  // 65536 is infinite in float16
    } else {
      grad.mul_(number);
    }
  }
}

}  // namespace
}  // namespace lit_fast::cpu

TORCH_LIBRARY_IMPL(lit_fast, CPU, m) { m.impl("rescale_", &lit_fast::cpu::rescale_); }
