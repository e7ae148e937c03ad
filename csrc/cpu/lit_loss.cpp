// lit_fast::lit_loss on the CPU: loss and gradients in one pass over the inputs.
//
// The work is cut into chunks whose size depends on the inputs alone; each gives its own partial sums, which are added
// in order: the result is the same for any number of threads. Sums are kept in float64.
#include "csrc/lit_loss.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <numeric>

#include "csrc/cpu/kernels.h"
#include "csrc/cpu/pool.h"
#include "csrc/layout.h"

namespace lit_fast::cpu {
namespace {

constexpr int64_t kChunk = 1 << 15;         // elements of IRs: some microseconds of work
constexpr int64_t kRowsChunk = kChunk / 8;  // elements of logits, which cost more; every row costs kRow besides
constexpr int64_t kRow = 100;

// --- the inputs, made dense; the structs keep the tensors' memory alive

Source source(const at::Tensor& tensor) { return {tensor.const_data_ptr(), tensor.scalar_type()}; }
Target target(const at::Tensor& tensor) { return {tensor.mutable_data_ptr(), tensor.scalar_type()}; }

double count_of(const LitLossArgs& args, size_t term) { return args.counts->const_data_ptr<double>()[term]; }

template <typename T>
struct IrProblem {
  std::vector<Section<T>> sections;
  std::vector<double> count;      // what each section's sum is divided by
  std::vector<at::Tensor> grads;  // one per section, or none
  std::vector<at::Tensor> inputs;

  IrProblem(const LitLossArgs& args, double grad_scale) {
    for (size_t i = 0; i < args.student_irs.size(); ++i) {
      const at::Tensor& given = args.student_irs[i];
      // What student, teacher and gradient share is the layout of this tensor: the student's own if that is dense.
      const at::Tensor model = args.need_grad || !given.is_non_overlapping_and_dense() ? gradient_like(given) : given;
      inputs.push_back(laid_out_as(model, given));
      const Source student = source(inputs.back());
      inputs.push_back(laid_out_as(model, args.teacher_irs[i]));
      const Source teacher = source(inputs.back());
      count.push_back(args.counts ? count_of(args, 2 + i) : static_cast<double>(model.numel()));
      const double slope = (1 - args.beta) * args.section_weights[i] * grad_scale / count[i];
      sections.push_back({student, teacher, Target(), model.numel(), static_cast<T>(slope), nullptr, 1});
      if (!args.ir_rows.empty()) {
        inputs.push_back(args.ir_rows[i].contiguous());
        sections.back().rows = inputs.back().const_data_ptr<bool>();
        sections.back().of_row = elements_of_row(args, i);
      }
      if (args.need_grad) {
        grads.push_back(model);
        sections.back().grad = target(model);
      }
    }
  }
};

template <typename T>
struct KdProblem {
  Rows<T> rows{};
  double labels_weight = 0;  // sum of the class weights of all labels that count: what the cross-entropy is divided by
  double count = 0;          // of rows: what the KL is divided by
  at::Tensor student, teacher, labels, class_weight, counted, grad;  // undefined where not given

  KdProblem(const LitLossArgs& args, double grad_scale) {
    if (!args.student_logits) {
      return;
    }
    student = args.student_logits->contiguous();
    rows.student = source(student);
    rows.batch = student.size(0);
    rows.classes = student.size(1);
    rows.inverse_tau = 1 / args.tau;
    if (args.rows) {
      counted = args.rows->contiguous();
      rows.counted = counted.const_data_ptr<bool>();
    }
    if (args.labels) {
      add_labels(args);
    }
    count = args.counts ? count_of(args, 1) : static_cast<double>(rows.batch);
    if (args.teacher_logits) {
      teacher = args.teacher_logits->contiguous();
      rows.teacher = source(teacher);
    }
    if (args.need_grad) {
      grad = at::empty_like(student, at::MemoryFormat::Contiguous);
      rows.grad = target(grad);
    }
    const double soft = args.tau_squared ? args.tau : 1 / args.tau;  // tau^2 of eq. 2 times d(z / tau) / d z
    rows.ce_scale = static_cast<T>(args.beta * args.alpha * grad_scale / labels_weight);
    rows.kl_scale = static_cast<T>(args.beta * (1 - args.alpha) * soft * grad_scale / count);
  }

 private:
  void add_labels(const LitLossArgs& args) {
    if (has_soft_labels(args)) {
      labels = args.labels->contiguous();
      rows.soft_labels = source(labels);
    } else {
      labels = args.labels->to(at::kLong).contiguous();
      rows.labels = labels.const_data_ptr<int64_t>();
    }
    rows.ignore_index = args.ignore_index;
    rows.label_smoothing = args.label_smoothing;
    rows.class_weight_sum = static_cast<double>(rows.classes);
    if (args.class_weight) {
      class_weight = args.class_weight->to(c10::CppTypeToScalarType<T>::value).contiguous();
      rows.class_weight = class_weight.const_data_ptr<T>();
      rows.class_weight_sum = std::accumulate(rows.class_weight, rows.class_weight + rows.classes, 0.0);
    }
    if (args.counts) {
      labels_weight = count_of(args, 0);
      return;
    }
    if (rows.labels == nullptr) {
      labels_weight = static_cast<double>(rows.batch);
      return;
    }
    for (int64_t row = 0; row < rows.batch; ++row) {
      if (rows.labels[row] != args.ignore_index) {
        labels_weight += rows.class_weight == nullptr ? 1.0 : rows.class_weight[rows.labels[row]];
      }
    }
  }
};

// --- sums

struct Sums {
  std::vector<double> ir;  // per section, over its elements
  RowSums rows;
};

// A range of elements of a section, or of rows of the logits.
struct Chunk {
  static constexpr int64_t kRows = -1;
  int64_t section;  // or kRows
  int64_t begin, end;
};

void add_chunks(std::vector<Chunk>& chunks, int64_t section, int64_t count, int64_t step) {
  for (int64_t begin = 0; begin < count; begin += step) {
    chunks.push_back({section, begin, std::min(begin + step, count)});
  }
}

// Does all the work: writes the gradients, returns the sums.
template <typename T>
Sums compute_sums(const IrProblem<T>& ir, const KdProblem<T>& kd, IrKind kind) {
  std::vector<Chunk> chunks;
  int64_t work = kd.rows.batch * (kd.rows.classes + kRow) * (kChunk / kRowsChunk);
  for (size_t i = 0; i < ir.sections.size(); ++i) {
    add_chunks(chunks, static_cast<int64_t>(i), ir.sections[i].numel, kChunk);
    work += ir.sections[i].numel;
  }
  add_chunks(chunks, Chunk::kRows, kd.rows.batch, kRowsChunk / (kd.rows.classes + kRow) + 1);

  std::vector<double> ir_partials(chunks.size());
  std::vector<RowSums> row_partials(chunks.size());
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const Chunk& chunk = chunks[c];
      if (chunk.section == Chunk::kRows) {
        row_partials[c] = kernels<T>().kd_range(kd.rows, chunk.begin, chunk.end);
      } else {
        ir_partials[c] = kernels<T>().ir_range(ir.sections[chunk.section], kind, chunk.begin, chunk.end);
      }
    }
  };
  const int64_t count = static_cast<int64_t>(chunks.size());
  at::parallel_for(0, count, /*grain_size=*/work < kChunk ? count : 1, run);  // to wake a thread costs microseconds

  Sums sums{std::vector<double>(ir.sections.size()), {}};
  for (int64_t c = 0; c < count; ++c) {
    if (chunks[c].section == Chunk::kRows) {
      sums.rows.ce += row_partials[c].ce;
      sums.rows.kl += row_partials[c].kl;
    } else {
      sums.ir[chunks[c].section] += ir_partials[c];
    }
  }
  return sums;
}

// --- the loss

template <typename T>
LitLossResult compute(const LitLossArgs& args) {
  const double grad_scale = args.grad_scale ? args.grad_scale->item().toDouble() : 1.0;
  const IrProblem<T> ir(args, grad_scale);
  const KdProblem<T> kd(args, grad_scale);
  const Sums sums = compute_sums(ir, kd, static_cast<IrKind>(args.ir_kind));

  const auto options = at::dtype(c10::CppTypeToScalarType<T>::value);
  const int64_t sections = static_cast<int64_t>(ir.sections.size());
  at::Tensor parts_tensor = at::empty({3 + sections}, options);
  T* parts = parts_tensor.template mutable_data_ptr<T>();
  // A mean over nothing is 0 / 0 = NaN, as in torch.
  const double ce = kd.labels.defined() ? sums.rows.ce / kd.labels_weight : 0.0;
  const double kl_mean = kd.teacher.defined() ? sums.rows.kl / kd.count : 0.0;
  const double kl = kl_mean * (args.tau_squared ? args.tau * args.tau : 1.0);
  double ir_total = 0;
  for (int64_t i = 0; i < sections; ++i) {
    const double mean = sums.ir[i] / ir.count[i];
    ir_total += args.section_weights[i] * mean;
    parts[3 + i] = static_cast<T>(mean);
  }
  const double total = args.beta * (args.alpha * ce + (1 - args.alpha) * kl) + (1 - args.beta) * ir_total;
  parts[0] = static_cast<T>(total);
  parts[1] = static_cast<T>(ce);
  parts[2] = static_cast<T>(kl);
  return {parts_tensor, ir.grads, kd.grad.defined() ? kd.grad : at::empty({0}, options)};
}

LitLossResult lit_loss(const LitLossArgs& args) {
  return compute_dtype(args) == at::kDouble ? compute<double>(args) : compute<float>(args);
}

}  // namespace
}  // namespace lit_fast::cpu

TORCH_LIBRARY_IMPL(lit_fast, CPU, m) { m.impl("lit_loss", lit_fast::lit_loss_op<lit_fast::cpu::lit_loss>); }
