// lit_fast::rescale_ on the CPU.
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

namespace lit_fast::cpu {
namespace {

void rescale_(at::TensorList grads, const at::Tensor& factor) {
  TORCH_CHECK_VALUE(factor.numel() == 1, "rescale_: factor: expected one number, got ", factor.sizes());
  const double number = factor.item().toDouble();
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
