// The KD loss (paper eq. 2) and its gradient with respect to the student's logits, over a range of rows.
//
// Two passes over a row, block by block: the softmax states, then losses and gradient.
#pragma once

#include <cmath>

#include "csrc/cpu/blocks.h"
#include "csrc/cpu/exp.h"
#include "kernels/math.h"

namespace lit_fast::cpu {

template <typename T>
struct Rows {
  Source<T> student;        // [batch, classes]
  Source<T> teacher;        // [batch, classes], or nothing: no KL
  Target<T> grad;           // [batch, classes], or nothing
  const int64_t* labels;    // [batch], or null: no cross-entropy
  const T* class_weight;    // [classes], or null: 1 each
  double class_weight_sum;  // of all classes
  int64_t batch, classes;
  int64_t ignore_index;
  double label_smoothing;
  double inverse_tau;
  T ce_scale, kl_scale;  // d total / d logit = ce_scale * cross_entropy_slope + kl_scale * (q - p)
};

// Sums over rows, before any mean.
struct RowSums {
  double ce = 0;
  double kl = 0;
};

// What is known of a row of logits after the first pass: states at temperature 1 and at tau, of one maximum.
struct RowState {
  SoftmaxState<double> hard{-INFINITY, 0.0};
  SoftmaxState<double> soft{-INFINITY, 0.0};
};

template <typename T>
void add_block(RowState& row, const T* z, int64_t n, bool hard, bool soft, double inverse_tau) {
  T max = -INFINITY;
#pragma omp simd reduction(max : max)
  for (int64_t c = 0; c < n; ++c) {
    max = z[c] > max ? z[c] : max;
  }
  const T shift = is_masked(max) ? T(0) : max;
  if (hard) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < n; ++c) {
      sum += static_cast<double>(exp_nonpositive(z[c] - shift));
    }
    row.hard = merge(row.hard, {static_cast<double>(max), sum}, 1.0);
  }
  if (soft) {
    const T scale = static_cast<T>(inverse_tau);
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < n; ++c) {
      sum += static_cast<double>(exp_nonpositive((z[c] - shift) * scale));
    }
    row.soft = merge(row.soft, {static_cast<double>(max), sum}, inverse_tau);
  }
}

// grad = ce_scale * d CE / d z without the label's own share, which is one class of one block.
template <typename T>
void ce_grad_block(const T* z, const T* weight, T* grad, int64_t n, const SoftmaxState<double>& state, T mass,
                   T smoothing, T scale) {
  const T max = static_cast<T>(state.max), inverse_sum = static_cast<T>(1 / state.sum);
#pragma omp simd
  for (int64_t c = 0; c < n; ++c) {
    const T target = weight == nullptr ? smoothing : smoothing * weight[c];
    grad[c] = scale * cross_entropy_slope(exp_nonpositive(z[c] - max) * inverse_sum, mass, target);
  }
}

// Sum over a block's classes of weight * log p.
template <typename T>
double log_block(const T* z, const T* weight, int64_t n, double log_normaliser) {
  double sum = 0;
  for (int64_t c = 0; c < n; ++c) {
    sum += weighted_log(weight == nullptr ? 1.0 : static_cast<double>(weight[c]), z[c] - log_normaliser);
  }
  return sum;
}

// Sum of the block's shares of KL(teacher || student); adds scale * (q - p) to `grad` if it is not null.
template <typename T>
double kl_block(const T* student, const T* teacher, T* grad, int64_t n, const SoftmaxState<double>& s,
                const SoftmaxState<double>& t, double inverse_tau, T scale) {
  const T to_soft = static_cast<T>(inverse_tau);
  const T max_s = static_cast<T>(s.max), max_t = static_cast<T>(t.max);
  const T inverse_s = static_cast<T>(1 / s.sum), inverse_t = static_cast<T>(1 / t.sum);
  const T max_difference = max_s - max_t, log_ratio = static_cast<T>(std::log(s.sum / t.sum));
  const auto element = [=](T z_s, T z_t) {
    const T q = exp_nonpositive((z_s - max_s) * to_soft) * inverse_s;
    const T p = exp_nonpositive((z_t - max_t) * to_soft) * inverse_t;
    // The difference of near-equal logits is exact, that of two shifted ones is not: the difference is shifted.
    return kl_element(p, q, ((z_s - z_t) - max_difference) * to_soft - log_ratio);
  };
  double sum = 0;
  if (grad == nullptr) {
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < n; ++c) {
      sum += static_cast<double>(element(student[c], teacher[c]).loss);
    }
  } else {
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < n; ++c) {
      const auto share = element(student[c], teacher[c]);
      grad[c] += scale * share.slope;
      sum += static_cast<double>(share.loss);
    }
  }
  return sum;
}

template <typename T>
void kd_row(const Rows<T>& rows, int64_t row, RowSums& sums) {
  T student_buffer[kBlock], teacher_buffer[kBlock], grad_buffer[kBlock];
  const int64_t start = row * rows.classes, end = start + rows.classes;
  const bool soft = rows.teacher.given();
  const bool hard = rows.labels != nullptr && rows.labels[row] != rows.ignore_index;

  RowState student_row, teacher_row;
  for (int64_t i = start; i < end; i += kBlock) {
    const int64_t n = std::min(kBlock, end - i);
    add_block(student_row, rows.student.block(i, n, student_buffer), n, hard, soft, rows.inverse_tau);
    if (soft) {
      add_block(teacher_row, rows.teacher.block(i, n, teacher_buffer), n, false, true, rows.inverse_tau);
    }
  }

  // Targets of the cross-entropy: (1 - smoothing) * weight at the label, smoothing / classes * weight at every class.
  const int64_t label = hard ? rows.labels[row] : -1;
  const double smoothing = rows.label_smoothing / static_cast<double>(rows.classes);
  double label_target = 0;
  if (hard) {
    label_target = (1 - rows.label_smoothing) * (rows.class_weight == nullptr ? 1.0 : rows.class_weight[label]);
  }
  const T mass = static_cast<T>(label_target + smoothing * rows.class_weight_sum);
  const double log_normaliser = student_row.hard.max + std::log(student_row.hard.sum);

  for (int64_t i = start; i < end; i += kBlock) {
    const int64_t n = std::min(kBlock, end - i), first = i - start;
    const T* z = rows.student.block(i, n, student_buffer);
    const T* weight = rows.class_weight == nullptr ? nullptr : rows.class_weight + first;
    const bool has_label = hard && label >= first && label < first + n;
    T* grad = rows.grad.given() ? rows.grad.block(i, grad_buffer) : nullptr;
    if (has_label) {
      sums.ce -= weighted_log(label_target, z[label - first] - log_normaliser);
    }
    if (hard && smoothing > 0) {
      sums.ce -= smoothing * log_block(z, weight, n, log_normaliser);
    }
    if (grad != nullptr) {
      if (hard) {
        ce_grad_block(z, weight, grad, n, student_row.hard, mass, static_cast<T>(smoothing), rows.ce_scale);
      } else {
        std::fill_n(grad, n, T(0));
      }
      if (has_label) {
        grad[label - first] -= rows.ce_scale * static_cast<T>(label_target);
      }
    }
    if (soft) {
      const T* teacher = rows.teacher.block(i, n, teacher_buffer);
      sums.kl += kl_block(z, teacher, grad, n, student_row.soft, teacher_row.soft, rows.inverse_tau, rows.kl_scale);
    }
    if (grad != nullptr) {
      rows.grad.store(i, n, grad_buffer);
    }
  }
}

template <typename T>
RowSums kd_range(const Rows<T>& rows, int64_t begin, int64_t end) {
  RowSums sums;
  for (int64_t row = begin; row < end; ++row) {
    kd_row(rows, row, sums);
  }
  return sums;
}

}  // namespace lit_fast::cpu
