#include "csrc/teacher/convolution.h"

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/cudnn_convolution_add_relu.h>
#include <ATen/ops/cudnn_convolution_relu.h>

#include <string_view>

namespace lit_fast::teacher {
namespace {

using Sizes = at::IntArrayRef;
using Scalars = c10::List<std::optional<at::Scalar>>;
using Bias = std::optional<at::Tensor>;
using Text = std::string_view;

// oneDNN's fused convolutions, which torch's own compiler calls, have no C++ header: they are looked up by name.
template <typename Signature>
c10::TypedOperatorHandle<Signature> find(const char* name, const char* overload) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).typed<Signature>();
}

at::Tensor mkldnn_pack(const Convolution& c) {
  static const auto op =
      find<at::Tensor(const at::Tensor&, Sizes, Sizes, Sizes, int64_t, c10::OptionalArrayRef<int64_t>)>(
          "mkldnn::_reorder_convolution_weight", "");
  return op.call(c.weight, c.padding, c.stride, c.dilation, c.groups, std::nullopt);
}

at::Tensor mkldnn_convolution(const Convolution& c, const at::Tensor& input) {
  static const auto op =
      find<at::Tensor(const at::Tensor&, const at::Tensor&, const Bias&, Sizes, Sizes, Sizes, int64_t, Text, Scalars,
                      std::optional<Text>)>("mkldnn::_convolution_pointwise", "");
  return op.call(input, c.packed, c.bias, c.padding, c.stride, c.dilation, c.groups, c.relu ? "relu" : "none",
                 Scalars(), "");
}

at::Tensor mkldnn_convolution_add(const Convolution& c, const at::Tensor& input, const at::Tensor& residual) {
  static const auto op =
      find<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const Bias&, Sizes, Sizes, Sizes,
                      int64_t, Text, std::optional<at::Scalar>, std::optional<Text>, Scalars, std::optional<Text>)>(
          "mkldnn::_convolution_pointwise", "binary");
  static const auto op_ =
      find<at::Tensor&(at::Tensor&, const at::Tensor&, const at::Tensor&, const Bias&, Sizes, Sizes, Sizes, int64_t,
                       Text, std::optional<at::Scalar>, std::optional<Text>, Scalars, std::optional<Text>)>(
          "mkldnn::_convolution_pointwise_", "binary");
  const std::optional<Text> relu = c.relu ? std::optional<Text>("relu") : std::nullopt;
  if (c.overwrite) {
    at::Tensor result = residual;
    op_.call(result, input, c.packed, c.bias, c.padding, c.stride, c.dilation, c.groups, "add", 1.0, relu, Scalars(),
             "");
    return result;
  }
  return op.call(input, residual, c.packed, c.bias, c.padding, c.stride, c.dilation, c.groups, "add", 1.0, relu,
                 Scalars(), "");
}

bool cudnn_fuses(const Convolution& c, const at::Tensor& input) {
  return c.fused && c.relu && !c.transposed && input.is_cuda() && input.dim() == 4 &&
         input.scalar_type() != at::kDouble && at::globalContext().userEnabledCuDNN();
}

}  // namespace

void prepare(Convolution& c) {
  const bool plain = !c.transposed && c.weight.dim() == 4 && c.weight.is_cpu() && c.weight.scalar_type() == at::kFloat;
  if (c.fused && plain && at::globalContext().userEnabledMkldnn() && at::hasMKLDNN()) {
    c.packed = mkldnn_pack(c);
  }
}

at::Tensor Convolution::operator()(const at::Tensor& input, const at::Tensor& residual) const {
  if (packed.defined()) {
    return residual.defined() ? mkldnn_convolution_add(*this, input, residual) : mkldnn_convolution(*this, input);
  }
  if (cudnn_fuses(*this, input)) {
    return residual.defined()
               ? at::cudnn_convolution_add_relu(input, weight, residual, 1.0, bias, stride, padding, dilation, groups)
               : at::cudnn_convolution_relu(input, weight, bias, stride, padding, dilation, groups);
  }
  at::Tensor result =
      at::convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups);
  if (residual.defined()) {
    result.add_(residual);
  }
  return relu ? result.relu_() : result;
}

}  // namespace lit_fast::teacher
