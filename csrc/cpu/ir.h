// The IR loss of one section (paper eq. 3) and its gradient, over a range of elements.
#pragma once

#include "csrc/cpu/blocks.h"
#include "kernels/math.h"

namespace lit_fast::cpu {

// One section: dense tensors of one memory layout, so that the order of the elements plays no role.
template <typename T>
struct Section {
  Source<T> student;  // [numel]
  Source<T> teacher;  // [numel]
  Target<T> grad;     // [numel], or nothing
  int64_t numel;
  T slope_scale;  // d total / d element = slope_scale * l'(student - teacher)
};

// Sum of l(d) over n elements; writes scale * l'(d) if `grad` is not null.
template <IrKind kind, typename T>
double ir_block(const T* student, const T* teacher, T* grad, T scale, int64_t n) {
  double sum = 0;
  if (grad == nullptr) {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) {
      sum += static_cast<double>(ir_element<kind>(student[i] - teacher[i]).loss);
    }
  } else {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) {
      const auto element = ir_element<kind>(student[i] - teacher[i]);
      grad[i] = scale * element.slope;
      sum += static_cast<double>(element.loss);
    }
  }
  return sum;
}

// Sum of l(d) over the elements begin .. end of a section.
template <typename T>
double ir_range(const Section<T>& section, IrKind kind, int64_t begin, int64_t end) {
  T student_buffer[kBlock], teacher_buffer[kBlock], grad_buffer[kBlock];
  const auto block = kind == IrKind::l2   ? ir_block<IrKind::l2, T>
                     : kind == IrKind::l1 ? ir_block<IrKind::l1, T>
                                          : ir_block<IrKind::smooth_l1, T>;
  double sum = 0;
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t n = std::min(kBlock, end - i);
    const T* student = section.student.block(i, n, student_buffer);
    const T* teacher = section.teacher.block(i, n, teacher_buffer);
    if (section.grad.given()) {
      sum += block(student, teacher, section.grad.block(i, grad_buffer), section.slope_scale, n);
      section.grad.store(i, n, grad_buffer);
    } else {
      sum += block(student, teacher, nullptr, section.slope_scale, n);
    }
  }
  return sum;
}

}  // namespace lit_fast::cpu
