// Compiles csrc/cpu/simd once per instruction set and picks one.
//
// Only the code between the pragmas is compiled for a set that the processor may lack. Everything that it uses from
// headers is included before: an inline function of the standard library, compiled for AVX2 here and merged by the
// linker with the copies of other files, would otherwise end up in code that runs everywhere.
#include "csrc/cpu/kernels.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <type_traits>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LIT_X86_SETS
#include <immintrin.h>
#endif

namespace lit_fast::cpu {

namespace baseline {
#include "csrc/cpu/simd/all.h"
}

#if defined(LIT_X86_SETS)
#define LIT_F16C  // conversions of half-precision numbers

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace avx2 {
#include "csrc/cpu/simd/all.h"
}
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
namespace avx512 {
#include "csrc/cpu/simd/all.h"
}
#pragma GCC pop_options
#endif

namespace {

// LIT_FAST_CPU=baseline|avx2 keeps to an older set, for tests and comparisons.
const char* best_set() {
#if defined(LIT_X86_SETS)
  const char* wanted = std::getenv("LIT_FAST_CPU");
  const std::string_view limit = wanted == nullptr ? "" : wanted;
  if (limit == "baseline") {
    return "baseline";
  }
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && limit != "avx2") {
    return "avx512";
  }
  if (has_avx2) {
    return "avx2";
  }
#endif
  return "baseline";
}

template <typename T>
Kernels<T> pick() {
#if defined(LIT_X86_SETS)
  const std::string_view set = instruction_set();
  if (set == "avx512") {
    return {avx512::ir_range<T>, avx512::kd_range<T>};
  }
  if (set == "avx2") {
    return {avx2::ir_range<T>, avx2::kd_range<T>};
  }
#endif
  return {baseline::ir_range<T>, baseline::kd_range<T>};
}

}  // namespace

const char* instruction_set() {
  static const char* set = best_set();
  return set;
}

template <typename T>
const Kernels<T>& kernels() {
  static const Kernels<T> picked = pick<T>();
  return picked;
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();

}  // namespace lit_fast::cpu
