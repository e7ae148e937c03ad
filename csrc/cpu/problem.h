// What the CPU kernels work on: plain pointers and numbers.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>

#include "kernels/math.h"

namespace lit_fast::cpu {

// Dense elements of any floating dtype to read from, or none.
struct Source {
  const void* data = nullptr;
  c10::ScalarType dtype = c10::ScalarType::Float;

  bool given() const { return data != nullptr; }
};

// The same to write to.
struct Target {
  void* data = nullptr;
  c10::ScalarType dtype = c10::ScalarType::Float;

  bool given() const { return data != nullptr; }
};

// One section (paper eq. 3): tensors of one memory layout, so that the order of the elements plays no role. T is the
// type that is computed in, float or double.
template <typename T>
struct Section {
  Source student;  // [numel]
  Source teacher;  // [numel]
  Target grad;     // [numel], or none
  int64_t numel;
  T slope_scale;     // d total / d element = slope_scale * l'(student - teacher)
  const bool* rows;  // which count, or null: all
  int64_t of_row;    // elements for each of them
};

// The logits (paper eq. 2).
template <typename T>
struct Rows {
  Source student;           // [batch, classes]
  Source teacher;           // [batch, classes], or none: no KL
  Target grad;              // [batch, classes], or none
  Source soft_labels;       // [batch, classes], or none
  const int64_t* labels;    // [batch], or null: no cross-entropy but with soft labels
  const T* class_weight;    // [classes], or null: 1 each
  double class_weight_sum;  // of all classes
  int64_t batch, classes;
  int64_t ignore_index;
  double label_smoothing;
  double inverse_tau;
  T ce_scale, kl_scale;  // d total / d logit = ce_scale * cross_entropy_slope + kl_scale * (q - p)
  const bool* counted;   // [batch]: which rows count, or null: all
};

// Sums over rows, before any mean.
struct RowSums {
  double ce = 0;
  double kl = 0;
};

}  // namespace lit_fast::cpu
