// A selection of problems on the CPU, each against plain loops in float64: the program that sanitizers watch.
//
//   selection all | some | one        checks all problems, some of them, or the first; exit status 0 if all are right
//   selection wrong                   changes the loss a little; exit status 1, as the result is not what is expected
//   selection overrun WHAT            says that WHAT (student, teacher, gradient, labels) is longer than it is
//   selection label LABEL             puts LABEL into row 2 of a problem of 5 classes; exit status 3 if the kernel
//   trapped
#include <algorithm>
#include <random>
#include <string>

#include "tests/cuda_on_cpu/kernels.h"

using namespace lit_fast::cuda;
using lit_fast::IrKind;

namespace {

struct Case {
  std::vector<Index> numels;
  Index batch;
  int classes;
  DType student, teacher;
  IrKind kind = IrKind::l2;
  int offset = 0;  // elements that the student's tensors start behind an aligned address
  bool grads = true, weights = false;
  int threads = 64, blocks = 4;
  bool counted = false;  // some rows of the logits do not count, nor of the IRs, of kOfRow elements

  bool counts(Index row) const { return !counted || row % 3 != 1; }
};

constexpr Index kOfRow = 4;

// Which rows count, in memory that ends with them.
std::unique_ptr<bool[]> counted_rows(const Case& one, Index rows) {
  std::unique_ptr<bool[]> counted(new bool[rows]);
  for (Index row = 0; row < rows; ++row) {
    counted[row] = one.counts(row);
  }
  return counted;
}

std::mt19937 generator(1);

double stored(DType dtype, void* data, Index i, double number) {
  const Untyped tensor{data, dtype};
  tensor.write(i, number);
  return tensor.read<double>(i);
}

// Random numbers: as they are stored, in memory that ends where the tensor ends, and in float64.
struct Tensor {
  std::vector<double> numbers;
  std::unique_ptr<char[]> memory;
  DType dtype;
  int offset;

  Tensor(Index numel, DType of_dtype, int of_offset = 0, double scale = 1)
      : numbers(numel), memory(new char[(numel + of_offset) * bytes_of(of_dtype)]), dtype(of_dtype), offset(of_offset) {
    std::normal_distribution<double> normal(0, scale);
    for (Index i = 0; i < numel; ++i) {
      numbers[i] = stored(dtype, data(), i, normal(generator));
    }
  }

  void* data() { return memory.get() + offset * bytes_of(dtype); }
  double read(Index i) { return Untyped{data(), dtype}.read<double>(i); }
};

constexpr double kAlpha = 0.7, kBeta = 0.4, kTau = 3, kSmoothing = 0.1, kScale = 8;
constexpr Index kIgnored = -100;

struct Expected {
  std::vector<double> parts;
  std::vector<std::vector<double>> ir_grads;
  std::vector<double> logits_grad;
  std::vector<double> counts;
};

double ir_loss(IrKind kind, double d) {
  const double magnitude = std::fabs(d);
  return kind == IrKind::l2 ? d * d : kind == IrKind::l1 ? magnitude : magnitude < 1 ? d * d / 2 : magnitude - 0.5;
}

double ir_slope(IrKind kind, double d) {
  const double sign = (d > 0) - (d < 0);
  return kind == IrKind::l2 ? 2 * d : kind == IrKind::smooth_l1 && std::fabs(d) < 1 ? d : sign;
}

std::vector<double> softmax(const double* z, int classes, double tau) {
  const double max = *std::max_element(z, z + classes);
  std::vector<double> p(classes);
  double sum = 0;
  for (int c = 0; c < classes; ++c) {
    sum += p[c] = std::exp((z[c] - max) / tau);
  }
  for (double& x : p) {
    x /= sum;
  }
  return p;
}

void expect_rows(const Case& one, Tensor& student, Tensor& teacher, Tensor& weight, const std::vector<Index>& labels,
                 Expected& expected) {
  double ce = 0, kl = 0, labels_weight = 0, count = 0;
  for (Index row = 0; row < one.batch; ++row) {
    count += one.counts(row);
  }
  for (const Index label : labels) {
    labels_weight += label == kIgnored ? 0 : one.weights ? weight.numbers[label] : 1;
  }
  for (Index row = 0; row < one.batch; ++row) {
    const double *z = &student.numbers[row * one.classes], *z_t = &teacher.numbers[row * one.classes];
    const auto p = softmax(z, one.classes, 1), q = softmax(z, one.classes, kTau), t = softmax(z_t, one.classes, kTau);
    std::vector<double> target(one.classes);
    double mass = 0;
    for (int c = 0; c < one.classes && labels[row] != kIgnored; ++c) {
      target[c] =
          (kSmoothing / one.classes + (c == labels[row] ? 1 - kSmoothing : 0)) * (one.weights ? weight.numbers[c] : 1);
      mass += target[c];
    }
    for (int c = 0; c < one.classes; ++c) {
      ce -= target[c] * std::log(p[c]);
      kl += one.counts(row) ? t[c] * std::log(t[c] / q[c]) : 0;
      const double hard = kAlpha * (p[c] * mass - target[c]) / labels_weight;
      const double slope = hard + (1 - kAlpha) * kTau * (q[c] - t[c]) / count;
      expected.logits_grad.push_back(one.counts(row) ? kScale * kBeta * slope : 0);
    }
  }
  expected.parts[1] = ce / labels_weight;
  expected.parts[2] = kTau * kTau * kl / count;
  expected.counts[0] = labels_weight;
  expected.counts[1] = count;
}

bool near(const char* what, double ours, double right, double scale, double relative) {
  const bool good = std::fabs(ours - right) <= relative * scale;
  if (!good) {
    std::printf("%s: %.9g, expected %.9g\n", what, ours, right);
  }
  return good;
}

double largest(const std::vector<double>& numbers) {
  double max = 0;
  for (const double x : numbers) {
    max = std::max(max, std::fabs(x));
  }
  return max;
}

bool check(const Case& one, bool at_once, const std::string& planted = "", Index label = 0) {
  std::vector<Tensor> tensors;
  tensors.reserve(3 * one.numels.size());
  std::vector<Section> sections;
  Expected expected{std::vector<double>(3), {}, {}, std::vector<double>(2)};
  std::vector<std::unique_ptr<bool[]>> counted;
  std::vector<CountedRows> ir_rows;
  double ir_total = 0;
  for (const Index numel : one.numels) {
    Tensor& student = tensors.emplace_back(numel, one.student, one.offset);
    Tensor& teacher = tensors.emplace_back(numel, one.teacher);
    Tensor& grad = tensors.emplace_back(numel, one.student);
    const double weight = 1 + 0.5 * static_cast<double>(sections.size());
    sections.push_back({student.data(), teacher.data(), one.grads ? grad.data() : nullptr, numel, weight, 0,
                        one.student, one.teacher});
    double mean = 0, count = 0;
    for (Index i = 0; i < numel; ++i) {
      count += one.counts(i / kOfRow);
    }
    auto& slopes = expected.ir_grads.emplace_back();
    for (Index i = 0; i < numel; ++i) {
      const double d = student.numbers[i] - teacher.numbers[i], of_mean = one.counts(i / kOfRow) / count;
      mean += ir_loss(one.kind, d) * of_mean;
      slopes.push_back(kScale * (1 - kBeta) * weight * ir_slope(one.kind, d) * of_mean);
    }
    expected.counts.push_back(count);
    if (one.counted) {
      counted.push_back(counted_rows(one, (numel + kOfRow - 1) / kOfRow));
      ir_rows.push_back({counted.back().get(), kOfRow});
    }
    expected.parts.push_back(mean);
    ir_total += weight * mean;
  }

  Tensor student(one.batch * one.classes, one.student, one.offset, 3),
      teacher(one.batch * one.classes, one.teacher, 0, 3);
  Tensor grad(one.batch * one.classes, one.student), weight(one.classes, DType::f32);
  for (int c = 0; c < one.classes; ++c) {
    weight.numbers[c] = stored(DType::f32, weight.data(), c, std::fabs(weight.numbers[c]));
  }
  std::vector<Index> labels(one.batch);
  for (Index row = 0; row < one.batch; ++row) {
    labels[row] = row % 5 == 3 || !one.counts(row) ? kIgnored : static_cast<Index>(generator() % one.classes);
  }
  expect_rows(one, student, teacher, weight, labels, expected);
  expected.parts[0] = kBeta * (kAlpha * expected.parts[1] + (1 - kAlpha) * expected.parts[2]) + (1 - kBeta) * ir_total;

  if (label != 0) {
    labels[2] = label;
  }
  if (planted == "student" || planted == "teacher") {
    (planted == "student" ? tensors[0] : tensors[1]).memory.reset(new char[one.numels[0] * 2 - 2]);
    sections[0].student = tensors[0].data();
    sections[0].teacher = tensors[1].data();
  } else if (planted == "gradient") {
    grad.memory.reset(new char[one.batch * one.classes * 2 - 2]);
  } else if (planted == "labels") {
    labels.pop_back();
    labels.shrink_to_fit();
  }

  const float scale = kScale;
  const bool doubles = one.student == DType::f64 || one.teacher == DType::f64;
  std::vector<char> parts((3 + sections.size()) * 8);
  Problem problem{};
  Rows& rows = problem.rows;
  rows.student = student.data();
  rows.teacher = teacher.data();
  rows.grad = one.grads ? grad.data() : nullptr;
  rows.labels = labels.data();
  rows.class_weight = one.weights ? weight.data() : nullptr;
  rows.batch = one.batch;
  rows.ignore_index = kIgnored;
  rows.label_smoothing = kSmoothing;
  rows.classes = one.classes;
  rows.student_dtype = one.student;
  rows.teacher_dtype = one.teacher;
  rows.class_weight_dtype = DType::f32;
  rows.has_labels = rows.has_teacher = true;
  if (one.counted) {
    counted.push_back(counted_rows(one, one.batch));
    rows.counted = counted.back().get();
    problem.counts = expected.counts.data();
  }
  problem.grad_scale = &scale;
  problem.grad_scale_dtype = DType::f32;
  problem.alpha = planted == "alpha" ? kAlpha + 1e-4 : kAlpha;
  problem.beta = kBeta;
  problem.tau = kTau;
  problem.tau_squared = true;
  problem.ir_kind = one.kind;
  problem.parts = parts.data();
  cuda_on_cpu::run_lit_loss(sections, ir_rows, problem, doubles, {one.threads, one.blocks}, at_once);

  bool good = true;
  const Untyped found{parts.data(), doubles ? DType::f64 : DType::f32};
  for (std::size_t i = 0; i < expected.parts.size(); ++i) {
    good =
        near("part", found.read<double>(i), expected.parts[i], std::fabs(expected.parts[i]), doubles ? 1e-12 : 2e-6) &&
        good;
  }
  const double rounding = one.student == DType::f64   ? 1e-12
                          : one.student == DType::f32 ? 2e-6
                          : one.student == DType::f16 ? 1e-3
                                                      : 8e-3;
  for (std::size_t s = 0; s < sections.size() && one.grads; ++s) {
    const double most = largest(expected.ir_grads[s]);
    for (Index i = 0; i < one.numels[s]; ++i) {
      good = near("IR gradient", tensors[3 * s + 2].read(i), expected.ir_grads[s][i], most, rounding) && good;
    }
  }
  const double most = largest(expected.logits_grad);
  for (std::size_t i = 0; i < expected.logits_grad.size() && one.grads; ++i) {
    good = near("logits gradient", grad.read(i), expected.logits_grad[i], most, rounding) && good;
  }
  return good;
}

#if defined(CUDA_ON_CPU_THREADS)  // for races between blocks
constexpr bool kBlocksAtOnce = true;
#else
constexpr bool kBlocksAtOnce = false;
#endif

constexpr DType F16 = DType::f16, BF16 = DType::bf16, F32 = DType::f32, F64 = DType::f64;

// The first is for races: several blocks for each section and for the rows.
std::vector<Case> cases() {
  std::vector<Case> all{{{1500, 700}, 9, 11, F32, F32, IrKind::l2, 0, true, true, 32, 5},
                        {{600}, 3, 1100, F16, F16, IrKind::smooth_l1, 0, true, false, 64, 3},
                        {{64, 3}, 2, 5, F64, F32, IrKind::l1, 0, true, false, 32, 3}};
  for (const DType student : {F16, BF16, F32, F64}) {
    for (const DType teacher : {F16, BF16, F32, F64}) {
      for (const IrKind kind : {IrKind::l2, IrKind::l1, IrKind::smooth_l1}) {
        all.push_back({{1, 4099, 263}, 7, 10, student, teacher, kind, 0, true, true});
      }
      all.push_back({{1030, 15}, 5, 1025, student, teacher, IrKind::l2, 1, true, false, 64, 5});
      all.push_back({{513}, 5, 3, student, teacher, IrKind::l2, 0, false, true, 32, 2});
      all.push_back({{1024, 36, 520}, 37, 10, student, teacher, IrKind::l1, 0, true, true, 64, 4, true});
    }
  }
  all.push_back({{}, 40, 6, F32, F32});
  all.push_back({std::vector<Index>(40, 8), 7, 300, F32, F32, IrKind::l2, 1, true, false, 64, 4, true});
  all.push_back({std::vector<Index>(70, 9), 3, 4, F32, F32, IrKind::l2, 0, true, false, 32});
  return all;
}

}  // namespace

int main(int count, char** words) {
  const std::string mode = count > 1 ? words[1] : "all";
  const Case plain{{333}, 8, 5, F16, F16};
  try {
    if (mode == "wrong") {
      return check({{333}, 8, 5, F32, F32}, false, "alpha") ? 0 : 1;
    }
    if (mode == "overrun") {
      return check(plain, false, words[2]) ? 0 : 1;
    }
    if (mode == "label") {
      return check(plain, false, "", std::stoll(words[2])) ? 0 : 1;
    }
    const auto all = cases();
    // Some: every seventh, which takes the six kinds of all dtypes in turn, and the one of many sections.
    const std::size_t step = mode == "all" ? 1 : mode == "some" ? 7 : all.size();
    const std::size_t last = mode == "some" ? all.size() - 1 : all.size();
    std::size_t checked = 0;
    bool good = true;
    for (std::size_t i = 0; i < all.size(); i = i < last ? std::min(i + step, last) : i + 1, ++checked) {
      good = check(all[i], kBlocksAtOnce) && good;
    }
    std::printf("%zu problems %s\n", checked, good ? "right" : "tried");
    return good ? 0 : 1;
  } catch (const cuda_on_cpu::Trap&) {
    return 3;
  }
}
