// The op lit_fast::lit_loss: its arguments as one struct, its checks, and how a device joins.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

namespace lit_fast {

// The terms of the loss follow from which tensors are given: IRs, labels (cross-entropy), teacher logits (KL).
struct LitLossArgs {
  at::TensorList student_irs;                       // k of any shape
  at::TensorList teacher_irs;                       // k of the same shapes
  const std::optional<at::Tensor>& student_logits;  // [B, C]
  const std::optional<at::Tensor>& teacher_logits;  // [B, C]
  const std::optional<at::Tensor>& labels;          // [B], integers
  const std::optional<at::Tensor>& class_weight;    // [C]
  const std::optional<at::Tensor>& grad_scale;      // one number: multiplies every gradient before it is rounded
  at::ArrayRef<double> section_weights;             // k
  int64_t ir_kind;                                  // IrKind of kernels/math.h
  double alpha;
  double beta;
  double tau;
  bool tau_squared;
  int64_t ignore_index;
  double label_smoothing;
  bool need_grad;
};

struct LitLossResult {
  at::Tensor parts;                  // [3 + k] float32 or float64: total, ce, kl, ir_1 .. ir_k
  std::vector<at::Tensor> ir_grads;  // k, as student_irs; none without need_grad
  at::Tensor logits_grad;            // [B, C], as student_logits; [0] without need_grad or logits
};

// Throws ValueError, TypeError: what is wrong, where, what was expected and what was got.
void check(const LitLossArgs& args);

// The dtype that the loss is computed and returned in: float64 if any IR or logit is, else float32.
at::ScalarType compute_dtype(const LitLossArgs& args);

// The function to register for a device: `m.impl("lit_loss", &lit_loss_op<implementation>)`.
template <LitLossResult (*implementation)(const LitLossArgs&)>
std::tuple<at::Tensor, std::vector<at::Tensor>, at::Tensor> lit_loss_op(
    at::TensorList student_irs, at::TensorList teacher_irs, const std::optional<at::Tensor>& student_logits,
    const std::optional<at::Tensor>& teacher_logits, const std::optional<at::Tensor>& labels,
    const std::optional<at::Tensor>& class_weight, const std::optional<at::Tensor>& grad_scale,
    at::ArrayRef<double> section_weights, int64_t ir_kind, double alpha, double beta, double tau, bool tau_squared,
    int64_t ignore_index, double label_smoothing, bool need_grad) {
  const LitLossArgs args{student_irs, teacher_irs,     student_logits,  teacher_logits, labels, class_weight,
                         grad_scale,  section_weights, ir_kind,         alpha,          beta,   tau,
                         tau_squared, ignore_index,    label_smoothing, need_grad};
  check(args);
  LitLossResult result = implementation(args);
  return {std::move(result.parts), std::move(result.ir_grads), std::move(result.logits_grad)};
}

}  // namespace lit_fast
