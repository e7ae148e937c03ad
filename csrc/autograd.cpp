// lit_fast::lit_loss_total: the loss as a node of the autograd graph, without Python. As
// lit_fast/loss/backends/fused.py, which does the same for compiled graphs and for Triton.
#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/FunctionRef.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/library.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "csrc/lit_loss.h"

namespace lit_fast {
namespace {

using Tensors = std::vector<at::Tensor>;
using Rescale = void(at::TensorList, const at::Tensor&, Optional);

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// parts[0] as a tensor of its own, which may be changed in place: the same memory, yet no view that autograd knows of.
at::Tensor total_of(const at::Tensor& parts) {
  const at::AutoDispatchBelowADInplaceOrView below;
  return parts.select(0, 0);
}

// Multiplies the gradients that there are by grad_total / grad_scale, in place.
void rescale_(const Tensors& grads, const at::Tensor& grad_total, const at::Tensor& grad_scale) {
  static const auto op = find_op<Rescale>("lit_fast::rescale_");
  Tensors defined;
  std::copy_if(grads.begin(), grads.end(), std::back_inserter(defined),
               [](const auto& grad) { return grad.defined(); });
  op.call(defined, grad_total, grad_scale.defined() ? std::optional(grad_scale) : std::nullopt);
}

// Replaces them by new tensors, multiplied so.
void rescale(Tensors& grads, const at::Tensor& grad_total, const at::Tensor& grad_scale) {
  const at::Tensor factor = grad_scale.defined() ? grad_total / grad_scale : grad_total;
  for (at::Tensor& grad : grads) {
    if (grad.defined()) {  // A 0-d factor would be rounded to the gradient's dtype: 65536 is infinite in float16.
      grad = (grad.to(factor.scalar_type()) * factor).to(grad.scalar_type());
    }
  }
}

}  // namespace

struct Call {
  const LitLossArgs& args;
  c10::function_ref<LitLossResult(bool need_grad)> compute;
  at::Tensor parts;  // [3 + k]: what forward gives beside the total; no output of the node, as it has no gradient
};

// The total, 0-d. Forward stores the finished gradients, backward hands them out.
struct LitLossBackward : torch::autograd::Function<LitLossBackward> {
  using Context = torch::autograd::AutogradContext;

  // student_irs, student_logits: those of the call, as arguments of their own for autograd to find.
  static at::Tensor forward(Context* ctx, at::TensorList, Optional student_logits, Call* call) {
    LitLossResult result = call->compute(/*need_grad=*/true);
    Tensors saved = std::move(result.ir_grads);
    saved.push_back(student_logits ? result.logits_grad : at::Tensor());
    saved.push_back(call->args.grad_scale.value_or(at::Tensor()));
    ctx->save_for_backward(std::move(saved));
    call->parts = std::move(result.parts);
    return total_of(call->parts);
  }

  static Tensors backward(Context* ctx, const Tensors& grad_outputs) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "lit_loss does not support double backward: its gradient is computed once and keeps no graph; "
                "call backward() without create_graph=True, and keep a gradient penalty in a loss of its own");
    Tensors grads = ctx->get_saved_variables();
    const at::Tensor grad_scale = std::exchange(grads.back(), at::Tensor());  // leaves what `call` gets: no gradient
    for (size_t i = 0; i < grads.size(); ++i) {
      if (grads[i].defined() && !ctx->needs_input_grad(i)) {
        grads[i].reset();
      }
    }
    const at::AutoDispatchBelowADInplaceOrView below;
    if (torch::autograd::get_current_graph_task_keep_graph()) {  // what is saved may be needed once more
      rescale(grads, grad_outputs[0], grad_scale);
    } else if (!grad_outputs[0].is_same(grad_scale)) {  // the very tensor: the gradients are right as they are
      rescale_(grads, grad_outputs[0], grad_scale);
    }
    return grads;
  }
};

namespace {

bool needs_gradient(const LitLossArgs& args) {
  const auto requires_grad = [](const at::Tensor& tensor) { return tensor.requires_grad(); };
  return at::GradMode::is_enabled() && ((args.student_logits && requires_grad(*args.student_logits)) ||
                                        std::any_of(args.student_irs.begin(), args.student_irs.end(), requires_grad));
}

template <typename... Arguments>
std::tuple<at::Tensor, at::Tensor> lit_loss_total(Arguments... arguments) {
  const LitLossArgs args{arguments...};
  const auto compute = [&](bool need_grad) -> LitLossResult {
    static const auto op = find_op<LitLoss>("lit_fast::lit_loss");
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [parts, ir_grads, logits_grad] = op.call(arguments..., need_grad);
    return {std::move(parts), std::move(ir_grads), std::move(logits_grad)};
  };
  if (needs_gradient(args)) {
    Call call{args, compute, {}};
    at::Tensor total = LitLossBackward::apply(args.student_irs, args.student_logits, &call);
    return {std::move(total), std::move(call.parts)};
  }
  const at::Tensor parts = compute(/*need_grad=*/false).parts;
  return {total_of(parts), parts};
}

}  // namespace
}  // namespace lit_fast

TORCH_LIBRARY_IMPL(lit_fast, CompositeImplicitAutograd, m) {
  m.impl("lit_loss_total", static_cast<lit_fast::LitLossTotal*>(&lit_fast::lit_loss_total));
}
