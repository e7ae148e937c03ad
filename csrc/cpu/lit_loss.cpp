// lit_fast::lit_loss on the CPU: loss and gradients in one pass over the inputs.
//
// The work is cut into chunks whose size depends on the inputs alone; each gives its own partial sum and the partial
// sums are added in order, so the result is the same for any number of threads. Sums are kept in float64.
#include "csrc/lit_loss.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones.h>
#include <torch/library.h>

#include "csrc/cpu/ir.h"
#include "csrc/cpu/kd.h"

namespace lit_fast::cpu {
namespace {

constexpr int64_t kChunk = 64 * kBlock;  // elements: tens of microseconds of work

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

// Strides of dimensions of size 1 play no role.
bool same_layout(const at::Tensor& a, const at::Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) {
      return false;
    }
  }
  return true;
}

// `tensor` itself if its elements lie in memory as those of `model`, else a copy in which they do.
at::Tensor laid_out_as(const at::Tensor& model, const at::Tensor& tensor) {
  return same_layout(model, tensor) ? tensor
                                    : at::empty_like(model, model.options().dtype(tensor.dtype())).copy_(tensor);
}

void check_labels(const at::Tensor& labels, int64_t classes, int64_t ignore_index) {
  const int64_t* data = labels.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < labels.numel(); ++row) {
    TORCH_CHECK_INDEX((data[row] >= 0 && data[row] < classes) || data[row] == ignore_index, "lit_loss: labels: label ",
                      data[row], " of row ", row, " is out of range; expected 0 to ", classes - 1,
                      ", or ignore_index = ", ignore_index);
  }
}

// The rows of the KD loss and the tensors that keep their memory alive.
template <typename T>
struct KdProblem {
  Rows<T> rows{};
  double labels_weight = 0;  // sum of the class weights of all labels that count: what the cross-entropy is divided by
  at::Tensor student, teacher, labels, class_weight, grad;

  KdProblem(const LitLossArgs& args, double grad_scale) {
    if (!args.student_logits) {
      return;
    }
    student = args.student_logits->contiguous();
    rows.student = Source<T>(student);
    rows.batch = student.size(0);
    rows.classes = student.size(1);
    rows.inverse_tau = 1 / args.tau;
    if (args.labels) {
      add_labels(args);
    }
    if (args.teacher_logits) {
      teacher = args.teacher_logits->contiguous();
      rows.teacher = Source<T>(teacher);
    }
    if (args.need_grad) {
      grad = at::empty_like(student, at::MemoryFormat::Contiguous);
      rows.grad = Target<T>(grad);
    }
    const double soft = args.tau_squared ? args.tau : 1 / args.tau;  // tau^2 of eq. 2 times d(z / tau) / d z
    rows.ce_scale = static_cast<T>(args.beta * args.alpha * grad_scale / labels_weight);
    rows.kl_scale = static_cast<T>(args.beta * (1 - args.alpha) * soft * grad_scale / static_cast<double>(rows.batch));
  }

 private:
  void add_labels(const LitLossArgs& args) {
    labels = args.labels->to(at::kLong).contiguous();
    check_labels(labels, rows.classes, args.ignore_index);
    rows.labels = labels.const_data_ptr<int64_t>();
    rows.ignore_index = args.ignore_index;
    rows.label_smoothing = args.label_smoothing;
    rows.class_weight_sum = static_cast<double>(rows.classes);
    if (args.class_weight) {
      class_weight = args.class_weight->to(c10::CppTypeToScalarType<T>::value).contiguous();
      rows.class_weight = class_weight.const_data_ptr<T>();
      rows.class_weight_sum = std::accumulate(rows.class_weight, rows.class_weight + rows.classes, 0.0);
    }
    for (int64_t row = 0; row < rows.batch; ++row) {
      if (rows.labels[row] != args.ignore_index) {
        labels_weight += rows.class_weight == nullptr ? 1.0 : rows.class_weight[rows.labels[row]];
      }
    }
  }
};

template <typename T>
LitLossResult compute(const LitLossArgs& args) {
  const double grad_scale = args.grad_scale ? args.grad_scale->item().toDouble() : 1.0;
  const int64_t sections = static_cast<int64_t>(args.student_irs.size());
  LitLossResult result;

  std::vector<Section<T>> irs(sections);
  std::vector<at::Tensor> alive;  // copies of inputs that did not lie in memory as their partner
  std::vector<Chunk> chunks;
  int64_t work = 0;
  for (int64_t i = 0; i < sections; ++i) {
    // empty_like keeps the strides of a dense tensor and gives dense ones to any other.
    const at::Tensor model = at::empty_like(args.student_irs[i]);
    const at::Tensor student = laid_out_as(model, args.student_irs[i]);
    const at::Tensor teacher = laid_out_as(model, args.teacher_irs[i]);
    const int64_t numel = student.numel();
    const double slope = (1 - args.beta) * args.section_weights[i] * grad_scale / static_cast<double>(numel);
    irs[i] = {Source<T>(student), Source<T>(teacher), Target<T>(), numel, static_cast<T>(slope)};
    if (args.need_grad) {
      irs[i].grad = Target<T>(model);
      result.ir_grads.push_back(model);
    }
    alive.insert(alive.end(), {student, teacher});
    add_chunks(chunks, i, numel, kChunk);
    work += numel;
  }

  const KdProblem<T> kd(args, grad_scale);
  if (kd.student.defined()) {
    add_chunks(chunks, Chunk::kRows, kd.rows.batch, std::max<int64_t>(1, kChunk / 8 / kd.rows.classes));
    work += kd.student.numel();
  }
  result.logits_grad = kd.grad.defined() ? kd.grad : at::empty({0}, at::dtype(compute_dtype(args)));

  const auto kind = static_cast<IrKind>(args.ir_kind);
  std::vector<RowSums> row_partials(chunks.size());
  std::vector<double> ir_partials(chunks.size());
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const Chunk& chunk = chunks[c];
      if (chunk.section == Chunk::kRows) {
        row_partials[c] = kd_range(kd.rows, chunk.begin, chunk.end);
      } else {
        ir_partials[c] = ir_range(irs[chunk.section], kind, chunk.begin, chunk.end);
      }
    }
  };
  const int64_t count = static_cast<int64_t>(chunks.size());
  at::parallel_for(0, count, /*grain_size=*/work < kChunk ? count : 1, run);

  std::vector<double> ir(sections, 0.0);
  RowSums sums;
  for (int64_t c = 0; c < count; ++c) {
    if (chunks[c].section == Chunk::kRows) {
      sums.ce += row_partials[c].ce;
      sums.kl += row_partials[c].kl;
    } else {
      ir[chunks[c].section] += ir_partials[c];
    }
  }

  result.parts = at::empty({3 + sections}, at::dtype(compute_dtype(args)));
  T* parts = result.parts.template mutable_data_ptr<T>();
  // A mean over nothing is 0 / 0 = NaN, as in torch.
  const double ce = kd.labels.defined() ? sums.ce / kd.labels_weight : 0.0;
  double kl = kd.teacher.defined() ? sums.kl / static_cast<double>(kd.rows.batch) : 0.0;
  kl *= args.tau_squared ? args.tau * args.tau : 1.0;
  double ir_total = 0;
  for (int64_t i = 0; i < sections; ++i) {
    ir[i] /= static_cast<double>(irs[i].numel);
    ir_total += args.section_weights[i] * ir[i];
    parts[3 + i] = static_cast<T>(ir[i]);
  }
  // A part of weight 0 may be infinite: it does not count.
  const auto weighted = [](double weight, double value) { return weight == 0 ? 0.0 : weight * value; };
  parts[0] = static_cast<T>(weighted(args.beta * args.alpha, ce) + weighted(args.beta * (1 - args.alpha), kl) +
                            weighted(1 - args.beta, ir_total));
  parts[1] = static_cast<T>(ce);
  parts[2] = static_cast<T>(kl);
  return result;
}

LitLossResult lit_loss(const LitLossArgs& args) {
  return compute_dtype(args) == at::kDouble ? compute<double>(args) : compute<float>(args);
}

}  // namespace
}  // namespace lit_fast::cpu

TORCH_LIBRARY_IMPL(lit_fast, CPU, m) { m.impl("lit_loss", &lit_fast::lit_loss_op<lit_fast::cpu::lit_loss>); }
