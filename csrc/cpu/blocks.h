// Tensors of any floating dtype, read and written in blocks of the type that is computed in.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <type_traits>

namespace lit_fast::cpu {

constexpr int64_t kBlock = 512;  // elements: three float64 buffers of a block fit the first-level cache

// Calls f with a value of the C++ type of `dtype`.
template <typename F>
void with_type(at::ScalarType dtype, F&& f) {
  switch (dtype) {
    case at::kHalf:
      return f(c10::Half());
    case at::kBFloat16:
      return f(c10::BFloat16());
    case at::kFloat:
      return f(float());
    default:
      return f(double());
  }
}

// A dense tensor to read from; T is float or double.
template <typename T>
class Source {
 public:
  Source() = default;
  explicit Source(const at::Tensor& tensor) : data_(tensor.const_data_ptr()), dtype_(tensor.scalar_type()) {}

  bool given() const { return data_ != nullptr; }

  // Elements begin .. begin + n: those of the tensor itself where its dtype is T, else `buffer` filled with them.
  const T* block(int64_t begin, int64_t n, T* buffer) const {
    if (dtype_ == c10::CppTypeToScalarType<T>::value) {
      return static_cast<const T*>(data_) + begin;
    }
    with_type(dtype_, [&](auto type) {
      using S = decltype(type);
      const S* source = static_cast<const S*>(data_) + begin;
      for (int64_t i = 0; i < n; ++i) {
        buffer[i] = static_cast<T>(source[i]);
      }
    });
    return buffer;
  }

 private:
  const void* data_ = nullptr;
  at::ScalarType dtype_ = at::kFloat;
};

// A dense tensor to write to, or nothing.
template <typename T>
class Target {
 public:
  Target() = default;
  explicit Target(const at::Tensor& tensor) : data_(tensor.mutable_data_ptr()), dtype_(tensor.scalar_type()) {}

  bool given() const { return data_ != nullptr; }

  // Where to write the elements from `begin` on: the tensor itself where its dtype is T, else `buffer`.
  T* block(int64_t begin, T* buffer) const { return is_direct() ? static_cast<T*>(data_) + begin : buffer; }

  // Rounds n elements written to `buffer` into the tensor, where they are not there yet.
  void store(int64_t begin, int64_t n, const T* buffer) const {
    if (is_direct()) {
      return;
    }
    with_type(dtype_, [&](auto type) {
      using S = decltype(type);
      S* target = static_cast<S*>(data_) + begin;
      for (int64_t i = 0; i < n; ++i) {
        target[i] = static_cast<S>(buffer[i]);
      }
    });
  }

 private:
  bool is_direct() const { return dtype_ == c10::CppTypeToScalarType<T>::value; }

  void* data_ = nullptr;
  at::ScalarType dtype_ = at::kFloat;
};

}  // namespace lit_fast::cpu
