// Gradients times a quotient of two numbers, in place, in one launch; if it is 1, which only the device knows, nothing
// is done.
#pragma once

#include "kernels/cuda/numbers.cuh"

namespace lit_fast::cuda {

template <typename S, typename C>
__device__ __forceinline__ void rescale_typed(const Rescaling::Tensor& tensor, C factor, Index thread, Index threads) {
  constexpr int width = sizeof(Words) / sizeof(S);
  const Index pieces = is_aligned(tensor.data) ? tensor.numel / width : 0;
  Words* words = static_cast<Words*>(tensor.data);
  for (Index piece = thread; piece < pieces; piece += threads) {
    const Words old = words[piece];
    Words scaled;
#pragma unroll
    for (int i = 0; i < width; ++i) {
      S number;
      narrow(widen<C>(get<S>(&old, i)) * factor, number);
      set(&scaled, i, number);
    }
    words[piece] = scaled;
  }
  const Typed<S> rest{static_cast<S*>(tensor.data)};
  for (Index i = pieces * width + thread; i < tensor.numel; i += threads) {
    rest.write(i, rest.template read<C>(i) * factor);
  }
}

__device__ __forceinline__ double value_of(const Quotient& by) {
  const double factor = number_or(by.factor, by.factor_dtype, 1.0);
  return by.scale == nullptr ? factor : factor / number_or(by.scale, by.scale_dtype, 1.0);
}

__global__ void __launch_bounds__(kThreads, 8) rescale(const Rescaling rescaling) {
  const double factor = value_of(rescaling.by);
  if (factor == 1 || blockIdx.x >= rescaling.blocks) {
    return;
  }
  const int block = static_cast<int>(blockIdx.x);
  int number = 0;
  while (number + 1 < rescaling.tensor_count && block >= rescaling.tensors[number + 1].first_block) {
    ++number;
  }
  const int end = number + 1 < rescaling.tensor_count ? rescaling.tensors[number + 1].first_block : rescaling.blocks;
  const Rescaling::Tensor& tensor = rescaling.tensors[number];
  const Index threads = static_cast<Index>(end - tensor.first_block) * blockDim.x;
  const Index thread = static_cast<Index>(block - tensor.first_block) * blockDim.x + threadIdx.x;
  switch (tensor.dtype) {
    case DType::f16:
      return rescale_typed<Half>(tensor, static_cast<float>(factor), thread, threads);
    case DType::bf16:
      return rescale_typed<BFloat16>(tensor, static_cast<float>(factor), thread, threads);
    case DType::f32:
      return rescale_typed<float>(tensor, static_cast<float>(factor), thread, threads);
    default:
      return rescale_typed<double>(tensor, factor, thread, threads);
  }
}

}  // namespace lit_fast::cuda
