// The KD loss (paper eq. 2) and its gradient with respect to the student's logits, over a range of rows.
//
// Two passes over a row, block by block: the softmax states, then losses and gradient.

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

// The targets of a row's cross-entropy, -sum_c target_c log softmax(z)_c: `every` times the class's weight at every
// class, and `label_target` more at the label.
struct HardTargets {
  int64_t label;  // -1: the row has none, and no cross-entropy
  double label_target;
  double every;
  double mass;  // sum of all targets

  bool given() const { return label >= 0; }
};

template <typename T>
HardTargets hard_targets(const Rows<T>& rows, int64_t row) {
  if (rows.labels == nullptr || rows.labels[row] == rows.ignore_index) {
    return {-1, 0, 0, 0};
  }
  const int64_t label = rows.labels[row];
  const double weight = rows.class_weight == nullptr ? 1.0 : rows.class_weight[label];
  const double label_target = (1 - rows.label_smoothing) * weight;
  const double every = rows.label_smoothing / static_cast<double>(rows.classes);
  return {label, label_target, every, label_target + every * rows.class_weight_sum};
}

// Share of the classes first .. first + n in the row's cross-entropy; writes ce_scale * its slope if `grad` is not
// null.
template <typename T>
double ce_block(const Rows<T>& rows, const HardTargets& targets, const SoftmaxState<double>& state, const T* z, T* grad,
                int64_t first, int64_t n) {
  const T* weight = rows.class_weight == nullptr ? nullptr : rows.class_weight + first;
  const int64_t label = targets.label - first;  // within the block, if it is there
  const bool has_label = label >= 0 && label < n;
  const double log_normaliser = state.max + std::log(state.sum);
  double log_sum = has_label ? weighted_log(targets.label_target, z[label] - log_normaliser) : 0.0;
  if (targets.every > 0) {
    for (int64_t c = 0; c < n; ++c) {
      const double target = targets.every * (weight == nullptr ? 1.0 : weight[c]);
      log_sum += weighted_log(target, z[c] - log_normaliser);
    }
  }
  if (grad != nullptr) {
    const T max = static_cast<T>(state.max), inverse_sum = static_cast<T>(1 / state.sum);
    const T every = static_cast<T>(targets.every), mass = static_cast<T>(targets.mass), scale = rows.ce_scale;
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) {
      const T target = weight == nullptr ? every : every * weight[c];
      grad[c] = scale * cross_entropy_slope(exp_nonpositive(z[c] - max) * inverse_sum, mass, target);
    }
    if (has_label) {
      grad[label] -= scale * static_cast<T>(targets.label_target);
    }
  }
  return -log_sum;
}

// The targets of a block of a row with soft labels: elements begin .. begin + n of all rows, classes first .. first +
// n. Returns their sum.
template <typename T>
double soft_targets(const Rows<T>& rows, int64_t begin, int64_t first, int64_t n, T* target) {
  T buffer[kBlock];
  const T* label = load(rows.soft_labels, begin, n, buffer);
  const T at_label = static_cast<T>(1 - rows.label_smoothing);
  const T every = static_cast<T>(rows.label_smoothing / static_cast<double>(rows.classes));
  double sum = 0;
  for (int64_t c = 0; c < n; ++c) {
    target[c] = (at_label * label[c] + every) * (rows.class_weight == nullptr ? T(1) : rows.class_weight[first + c]);
    sum += static_cast<double>(target[c]);
  }
  return sum;
}

// As ce_block, of a row with soft labels. mass: the sum of all targets of the row.
template <typename T>
double soft_ce_block(const T* target, double mass, const SoftmaxState<double>& state, const T* z, T* grad, T scale,
                     int64_t n) {
  const double log_normaliser = state.max + std::log(state.sum);
  double log_sum = 0;
  for (int64_t c = 0; c < n; ++c) {
    log_sum += weighted_log(static_cast<double>(target[c]), z[c] - log_normaliser);
  }
  if (grad != nullptr) {
    const T max = static_cast<T>(state.max), inverse_sum = static_cast<T>(1 / state.sum), all = static_cast<T>(mass);
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) {
      grad[c] = scale * cross_entropy_slope(exp_nonpositive(z[c] - max) * inverse_sum, all, target[c]);
    }
  }
  return -log_sum;
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
  if (rows.counted != nullptr && !rows.counted[row]) {
    if (rows.grad.given()) {
      clear(rows.grad, start, rows.classes);
    }
    return;
  }
  const bool soft = rows.teacher.given(), soft_labels = rows.soft_labels.given();
  const HardTargets targets = hard_targets(rows, row);
  const bool hard = targets.given() || soft_labels;

  RowState student_row, teacher_row;
  T target_buffer[kBlock];
  double soft_mass = 0;
  for (int64_t i = start; i < end; i += kBlock) {
    const int64_t n = std::min(kBlock, end - i);
    add_block(student_row, load(rows.student, i, n, student_buffer), n, hard, soft, rows.inverse_tau);
    if (soft) {
      add_block(teacher_row, load(rows.teacher, i, n, teacher_buffer), n, false, true, rows.inverse_tau);
    }
    if (soft_labels) {
      soft_mass += soft_targets(rows, i, i - start, n, target_buffer);
    }
  }

  for (int64_t i = start; i < end; i += kBlock) {
    const int64_t n = std::min(kBlock, end - i);
    const T* z = load(rows.student, i, n, student_buffer);
    T* grad = rows.grad.given() ? place(rows.grad, i, grad_buffer) : nullptr;
    if (targets.given()) {
      sums.ce += ce_block(rows, targets, student_row.hard, z, grad, i - start, n);
    } else if (soft_labels) {
      soft_targets(rows, i, i - start, n, target_buffer);
      sums.ce += soft_ce_block(target_buffer, soft_mass, student_row.hard, z, grad, rows.ce_scale, n);
    } else if (grad != nullptr) {
      std::fill_n(grad, n, T(0));
    }
    if (soft) {
      const T* teacher = load(rows.teacher, i, n, teacher_buffer);
      sums.kl += kl_block(z, teacher, grad, n, student_row.soft, teacher_row.soft, rows.inverse_tau, rows.kl_scale);
    }
    if (grad != nullptr) {
      store(rows.grad, i, n, grad_buffer);
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
