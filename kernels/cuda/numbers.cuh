// What tensors hold: stored numbers, the type that is computed in, and 16 bytes of them at a time. Neither CUDA nor
// torch headers, so that every compiler of CUDA, NVRTC among them, takes this file.
#pragma once

#include "kernels/cuda/problem.h"
#include "kernels/math.h"

namespace lit_fast::cuda {

struct Half {  // IEEE binary16
  unsigned short bits;
};

struct BFloat16 {  // the upper half of a float32
  unsigned short bits;
};

template <typename C>
__device__ __forceinline__ C minus_infinity() {
  return static_cast<C>(__uint_as_float(0xff800000u));
}

// --- one number: `widen` to the type C (float or double) that is computed in, `narrow` to the type S that is stored

template <typename C>
__device__ __forceinline__ C widen(float number) {
  return static_cast<C>(number);
}

template <typename C>
__device__ __forceinline__ C widen(double number) {
  return static_cast<C>(number);
}

template <typename C>
__device__ __forceinline__ C widen(BFloat16 number) {
  return static_cast<C>(__uint_as_float(static_cast<unsigned>(number.bits) << 16));
}

template <typename C>
__device__ __forceinline__ C widen(Half number) {
#if defined(LIT_CUDA_ON_CPU)
  return static_cast<C>(cuda_on_cpu::half_to_float(number.bits));
#else
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(number.bits));
  return static_cast<C>(result);
#endif
}

__device__ __forceinline__ void narrow(float number, float& stored) { stored = number; }
__device__ __forceinline__ void narrow(double number, float& stored) { stored = static_cast<float>(number); }
__device__ __forceinline__ void narrow(double number, double& stored) { stored = number; }

__device__ __forceinline__ void narrow(float number, Half& stored) {
#if defined(LIT_CUDA_ON_CPU)
  stored.bits = cuda_on_cpu::float_to_half(number);
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(stored.bits) : "f"(number));
#endif
}

__device__ __forceinline__ void narrow(float number, BFloat16& stored) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(stored.bits) : "f"(number));
#else
  const unsigned bits = __float_as_uint(number);
  const unsigned nearest_even = bits + 0x7fffu + (bits >> 16 & 1u);
  stored.bits = static_cast<unsigned short>(number != number ? 0x7fc0u : nearest_even >> 16);
#endif
}

__device__ __forceinline__ void narrow(double number, Half& stored) { narrow(static_cast<float>(number), stored); }
__device__ __forceinline__ void narrow(double number, BFloat16& stored) { narrow(static_cast<float>(number), stored); }

// --- 16 bytes, loaded and stored by one instruction

struct alignas(16) Words {
  unsigned word[4];
};

__device__ __forceinline__ bool is_aligned(const void* data) {
  return reinterpret_cast<unsigned long long>(data) % sizeof(Words) == 0;
}

// The i-th number of type S in a row of words. Loops over i must be unrolled, so that the words stay in registers.
template <typename S>
__device__ __forceinline__ S get(const Words* words, int i) {
  if constexpr (sizeof(S) == 2) {
    const unsigned pair = words[i / 8].word[i / 2 % 4];
    return S{static_cast<unsigned short>(i % 2 == 0 ? pair : pair >> 16)};
  } else if constexpr (sizeof(S) == 4) {
    return __uint_as_float(words[i / 4].word[i % 4]);
  } else {
    const unsigned* pair = &words[i / 2].word[i % 2 * 2];
    return __hiloint2double(static_cast<int>(pair[1]), static_cast<int>(pair[0]));
  }
}

// Sets the i-th number; an even one of 2 bytes before the odd one beside it.
template <typename S>
__device__ __forceinline__ void set(Words* words, int i, S number) {
  if constexpr (sizeof(S) == 2) {
    unsigned& pair = words[i / 8].word[i / 2 % 4];
    pair = i % 2 == 0 ? number.bits : pair | static_cast<unsigned>(number.bits) << 16;
  } else if constexpr (sizeof(S) == 4) {
    words[i / 4].word[i % 4] = __float_as_uint(number);
  } else {
    unsigned* pair = &words[i / 2].word[i % 2 * 2];
    pair[0] = static_cast<unsigned>(__double2loint(number));
    pair[1] = static_cast<unsigned>(__double2hiint(number));
  }
}

// --- arrays

struct Any {};  // in place of a type, where every tensor has its own

template <typename S>
constexpr bool is_any = false;
template <>
constexpr bool is_any<Any> = true;

template <typename S>
struct Typed {  // numbers of a type that is known when compiling
  S* data;

  __device__ __forceinline__ Typed from(Index i) const { return {data == nullptr ? nullptr : data + i}; }

  template <typename C>
  __device__ __forceinline__ C read(Index i) const {
    return widen<C>(data[i]);
  }

  template <typename C>
  __device__ __forceinline__ void write(Index i, C number) const {
    narrow(number, data[i]);
  }
};

struct Untyped {  // numbers of a type that is looked up at every access: for what is rare or small
  void* data;
  DType dtype;

  __device__ __forceinline__ Untyped from(Index i) const {
    return {data == nullptr ? nullptr : static_cast<char*>(data) + i * bytes_of(dtype), dtype};
  }

  template <typename C>
  __device__ __forceinline__ C read(Index i) const {
    switch (dtype) {
      case DType::f16:
        return widen<C>(static_cast<const Half*>(data)[i]);
      case DType::bf16:
        return widen<C>(static_cast<const BFloat16*>(data)[i]);
      case DType::f32:
        return widen<C>(static_cast<const float*>(data)[i]);
      default:
        return widen<C>(static_cast<const double*>(data)[i]);
    }
  }

  template <typename C>
  __device__ __forceinline__ void write(Index i, C number) const {
    switch (dtype) {
      case DType::f16:
        return narrow(number, static_cast<Half*>(data)[i]);
      case DType::bf16:
        return narrow(number, static_cast<BFloat16*>(data)[i]);
      case DType::f32:
        return narrow(number, static_cast<float*>(data)[i]);
      default:
        return narrow(static_cast<double>(number), static_cast<double*>(data)[i]);
    }
  }
};

// The one number that `data` points to, or `otherwise` if it points to nothing.
__device__ __forceinline__ double number_or(const void* data, DType dtype, double otherwise) {
  return data == nullptr ? otherwise : Untyped{const_cast<void*>(data), dtype}.read<double>(0);
}

}  // namespace lit_fast::cuda
