// The IR loss of one section (paper eq. 3) and its gradient, over a range of elements.

// Sum of l(d) over n <= kBlock elements; writes scale * l'(d) if `grad` is not null. The sum is kept in T, in as many
// parts as a vector has: a block is short, and blocks are added in float64.
template <IrKind kind, typename T>
T ir_block(const T* student, const T* teacher, T* grad, T scale, int64_t n) {
  T sum = 0;
  if (grad == nullptr) {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) {
      sum += ir_element<kind>(student[i] - teacher[i]).loss;
    }
  } else {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) {
      const auto element = ir_element<kind>(student[i] - teacher[i]);
      grad[i] = scale * element.slope;
      sum += element.loss;
    }
  }
  return sum;
}

// Sum of l(d) over the elements begin .. end of a section, which all count.
template <typename T>
double ir_counted(const Section<T>& section, IrKind kind, int64_t begin, int64_t end) {
  T student_buffer[kBlock], teacher_buffer[kBlock], grad_buffer[kBlock];
  const auto block = kind == IrKind::l2   ? ir_block<IrKind::l2, T>
                     : kind == IrKind::l1 ? ir_block<IrKind::l1, T>
                                          : ir_block<IrKind::smooth_l1, T>;
  double sum = 0;
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t n = std::min(kBlock, end - i);
    const T* student = load(section.student, i, n, student_buffer);
    const T* teacher = load(section.teacher, i, n, teacher_buffer);
    if (section.grad.given()) {
      sum += block(student, teacher, place(section.grad, i, grad_buffer), section.slope_scale, n);
      store(section.grad, i, n, grad_buffer);
    } else {
      sum += block(student, teacher, nullptr, section.slope_scale, n);
    }
  }
  return sum;
}

// Sum of l(d) over those of the elements begin .. end of a section that count; the others' gradient is 0.
template <typename T>
double ir_range(const Section<T>& section, IrKind kind, int64_t begin, int64_t end) {
  if (section.rows == nullptr) {
    return ir_counted(section, kind, begin, end);
  }
  double sum = 0;
  while (begin < end) {  // rows that are alike, up to the first that is not
    int64_t row = begin / section.of_row;
    const bool counts = section.rows[row];
    int64_t stop = begin;
    while (stop < end && section.rows[row] == counts) {
      stop = ++row * section.of_row;
    }
    stop = std::min(stop, end);
    if (counts) {
      sum += ir_counted(section, kind, begin, stop);
    } else if (section.grad.given()) {
      clear(section.grad, begin, stop - begin);
    }
    begin = stop;
  }
  return sum;
}
