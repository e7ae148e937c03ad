// The maths of the LIT loss, element by element and row by row: what every implementation, on the host or on a device,
// computes. No torch headers, no memory access, no parallelism: plain functions of numbers.
//
//   L_IR = sum_i w_i mean(l(student_i - teacher_i))                                       paper eq. 3
//   L_KD = alpha CE(z_s, y) + (1 - alpha) tau^2 KL(softmax(z_t/tau) || softmax(z_s/tau))  paper eq. 2
#pragma once

#if !defined(__CUDACC_RTC__)  // NVRTC knows exp, and has no headers
#include <cmath>
#endif

#if defined(__CUDACC__)
#define LIT_HD __host__ __device__ __forceinline__
#else
#define LIT_HD inline
#endif

namespace lit_fast {

#if !defined(__CUDACC_RTC__)
using std::exp;
#endif

// --- eq. 3: one element of an IR

enum class IrKind : int { l2 = 0, l1 = 1, smooth_l1 = 2 };

// A loss and its derivative.
template <typename T>
struct LossSlope {
  T loss;
  T slope;
};

// -1, 0 or 1; NaN stays NaN, so that a diverged section shows in its gradient.
template <typename T>
LIT_HD T sign(T d) {
  return d > T(0) ? T(1) : (d < T(0) ? T(-1) : d);
}

// l(d) and l'(d) for d = student - teacher.
template <IrKind kind, typename T>
LIT_HD LossSlope<T> ir_element(T d) {
  if constexpr (kind == IrKind::l2) {
    return {d * d, T(2) * d};
  } else {
    const T magnitude = d < T(0) ? -d : d;
    if constexpr (kind == IrKind::l1) {
      return {magnitude, sign(d)};
    } else {  // threshold 1
      const bool inside = magnitude < T(1);
      return {inside ? T(0.5) * d * d : magnitude - T(0.5), inside ? d : sign(d)};
    }
  }
}

// --- softmax over a row in one pass, part by part

// Whether a logit is -inf, which takes its class out of the softmax: less than the lowest finite number.
template <typename T>
LIT_HD bool is_masked(T logit) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return logit < -1.7976931348623157e308;
  } else {
    return logit < -3.4028234664e38f;
  }
}

// What is known of softmax(z * scale) over some classes: their largest z and the sum of exp((z - max) * scale).
template <typename T>
struct SoftmaxState {
  T max;
  T sum;
};

// The state of two groups of classes together.
template <typename T>
LIT_HD SoftmaxState<T> merge(SoftmaxState<T> a, SoftmaxState<T> b, T scale) {
  const T max = a.max > b.max ? a.max : b.max;
  if (is_masked(max)) {  // only masked classes so far: there is nothing to shift (and NaN sums stay NaN)
    return {max, a.sum + b.sum};
  }
  return {max, a.sum * exp((a.max - max) * scale) + b.sum * exp((b.max - max) * scale)};
}

// --- eq. 2: one class of a row

// e^x - 1 - x for |x| < 1 by its series x^2/2 (1 + x/3 (1 + x/4 (...))), to the last bits of T.
template <typename T>
LIT_HD T exp_minus_tangent(T x) {
  constexpr int last = sizeof(T) == sizeof(double) ? 18 : 11;
  T series = T(1);
  for (int n = last; n > 2; --n) {
    series = T(1) + x * series * (T(1) / T(n));
  }
  return T(0.5) * x * x * series;
}

// One class's share of KL(p || q), and q - p, from p (teacher), q (student) and delta = log q - log p.
//
// KL = sum p (e^delta - 1 - delta), because sum q = sum p = 1. Every share is >= 0 and of second order in delta, so
// rows that nearly agree cancel nothing (sum -p delta loses 11 % of a KL of 4e-7 in float32), and an error common to
// all deltas, that of the normalisers, is of second order too. Where p = 0, delta plays no role: 0 * inf := 0.
template <typename T>
LIT_HD LossSlope<T> kl_element(T p, T q, T delta) {
  const bool near = delta > T(-1) && delta < T(1);
  const T x = near ? delta : T(0);
  const T curve = exp_minus_tangent(x);
  const T far_loss = q - p - (p == T(0) ? T(0) : p * delta);
  return {near ? p * curve : far_loss, near ? p * (x + curve) : q - p};
}

// Derivative of a row's cross-entropy with respect to the logit of one class. `probability` is softmax(z), `target` the
// weight of log softmax(z) in the loss, `mass` the sum of all targets of the row.
template <typename T>
LIT_HD T cross_entropy_slope(T probability, T mass, T target) {
  return probability * mass - target;
}

// weight * log p, where a weight of 0 silences a masked class (log p = -inf); NaN stays NaN.
template <typename T>
LIT_HD T weighted_log(T weight, T log_p) {
  return weight == T(0) && is_masked(log_p) ? T(0) : weight * log_p;
}

}  // namespace lit_fast
