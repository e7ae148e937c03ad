// Convolutions with what follows them (bias, residual, ReLU) in one call where a library offers that.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace lit_fast::teacher {

struct Convolution {
  at::Tensor weight;               // [out, in / groups, k...]; transposed: [in, out / groups, k...]
  std::optional<at::Tensor> bias;  // [out]
  std::vector<int64_t> stride, padding, dilation, output_padding;
  int64_t groups;
  bool transposed;
  bool relu;       // of the result, after the residual
  bool overwrite;  // the result may take the residual's memory
  bool fused;      // by oneDNN or cuDNN where they can; else bias, residual and ReLU are calls of their own

  // oneDNN's: the weight in the blocks that it wants, undefined where it cannot be used.
  at::Tensor packed;

  // `residual`: what is added to the result, or undefined.
  at::Tensor operator()(const at::Tensor& input, const at::Tensor& residual) const;
};

// Packs the weight where oneDNN will run this convolution.
void prepare(Convolution& convolution);

}  // namespace lit_fast::teacher
