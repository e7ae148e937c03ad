// The op lit_fast::lit_loss: its arguments as one struct, its checks, and how a device joins. The schema, which
// Triton's op shares, is in lit_fast/loss/backends/ops.py.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

namespace lit_fast {

using Optional = const std::optional<at::Tensor>&;

// The terms of the loss follow from which tensors are given: IRs, labels (cross-entropy), teacher logits (KL).
struct LitLossArgs {
  at::TensorList student_irs;            // k of any shape
  at::TensorList teacher_irs;            // k of the same shapes
  Optional student_logits;               // [B, C]
  Optional teacher_logits;               // [B, C]
  Optional labels;                       // [B], integers, ignored in rows that do not count; or soft ones, [B, C]
  Optional class_weight;                 // [C]
  Optional grad_scale;                   // one number: multiplies every gradient before it is rounded
  Optional rows;                         // [B], bool: which rows count
  Optional counts;                       // [2 + k], float64: what the sums of ce, kl and each section are divided by
  at::TensorList ir_rows;                // k or none, bool, of the IRs' first dimensions: which elements count
  at::ArrayRef<double> section_weights;  // k
  int64_t ir_kind;                       // IrKind of kernels/math.h
  double alpha;
  double beta;
  double tau;
  bool tau_squared;
  int64_t ignore_index;
  double label_smoothing;
  bool need_grad = false;
};

struct LitLossResult {
  at::Tensor parts;                  // [3 + k] float32 or float64: total, ce, kl, ir_1 .. ir_k
  std::vector<at::Tensor> ir_grads;  // k, as student_irs; none without need_grad
  at::Tensor logits_grad;            // [B, C], as student_logits; [0] without need_grad or logits
};

// Throws ValueError, TypeError, IndexError: what is wrong, where, what was expected and what was got. After it nothing
// is read out of bounds, but by labels on another device than the CPU: these the kernels look at.
void check(const LitLossArgs& args);

// Whether the labels are probabilities.
bool has_soft_labels(const LitLossArgs& args);

// The elements of section i for each of its rows, which are its memory in this order.
int64_t elements_of_row(const LitLossArgs& args, size_t i);

// The device of checked tensors.
at::Device device_of(const LitLossArgs& args);

// The dtype that the loss is computed and returned in: float64 if any IR or logit is, else float32.
at::ScalarType compute_dtype(const LitLossArgs& args);

// A function of the op's arguments, in the order of LitLossArgs.
template <typename Result, typename... More>
using LitLossFunction = Result(at::TensorList, at::TensorList, Optional, Optional, Optional, Optional, Optional,
                               Optional, Optional, at::TensorList, at::ArrayRef<double>, int64_t, double, double,
                               double, bool, int64_t, double, More...);
using LitLoss = LitLossFunction<std::tuple<at::Tensor, std::vector<at::Tensor>, at::Tensor>, bool>;
using LitLossTotal = LitLossFunction<std::tuple<at::Tensor, at::Tensor>>;

template <LitLossResult (*implementation)(const LitLossArgs&), typename... Arguments>
std::tuple<at::Tensor, std::vector<at::Tensor>, at::Tensor> checked_lit_loss(Arguments... arguments) {
  const LitLossArgs args{arguments...};
  check(args);
  LitLossResult result = implementation(args);
  return {std::move(result.parts), std::move(result.ir_grads), std::move(result.logits_grad)};
}

// The function to register for a device: `m.impl("lit_loss", lit_loss_op<implementation>)`.
template <LitLossResult (*implementation)(const LitLossArgs&)>
constexpr LitLoss* lit_loss_op = &checked_lit_loss<implementation>;

}  // namespace lit_fast
