// lit_fast::lit_loss on CUDA: one launch for all sections and the logits (kernels/cuda/lit_loss.cuh). Nothing here
// waits for the device, reads a number from it, or allocates by what tensors hold.
#include "csrc/lit_loss.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "csrc/cuda/launch.h"
#include "csrc/cuda/tensors.h"
#include "csrc/layout.h"

namespace lit_fast::cuda {
namespace {

// A thread counts the classes of a row in int, and steps beyond the last.
constexpr int64_t kMaxClasses = int64_t{1} << 30;

// The inputs made dense, and what the kernels need to know of them; keeps the tensors' memory until the launch, after
// which the stream's order does.
struct Inputs {
  std::vector<Section> sections;
  std::vector<CountedRows> ir_rows;  // one per section, or none
  Rows rows{};
  std::vector<at::Tensor> ir_grads;  // one per section, or none
  at::Tensor logits_grad;            // undefined without gradient or logits

  explicit Inputs(const LitLossArgs& args) {
    for (size_t i = 0; i < args.student_irs.size(); ++i) {
      add_section(args, i);
    }
    if (args.student_logits) {
      add_rows(args);
    }
  }

 private:
  std::vector<at::Tensor> kept_;

  const void* keep(at::Tensor tensor) {
    kept_.push_back(std::move(tensor));
    return kept_.back().const_data_ptr();
  }

  void add_section(const LitLossArgs& args, size_t i) {
    const at::Tensor& given = args.student_irs[i];
    // What student, teacher and gradient share is the layout of this tensor: the student's own if that is dense.
    const at::Tensor model = args.need_grad || !given.is_non_overlapping_and_dense() ? at::empty_like(given) : given;
    Section section{};
    section.student = keep(laid_out_as(model, given));
    section.teacher = keep(laid_out_as(model, args.teacher_irs[i]));
    section.student_dtype = dtype_of(given);
    section.teacher_dtype = dtype_of(args.teacher_irs[i]);
    section.numel = model.numel();
    section.weight = args.section_weights[i];
    if (args.need_grad) {
      section.grad = model.mutable_data_ptr();
      ir_grads.push_back(model);
    }
    sections.push_back(section);
    if (!args.ir_rows.empty()) {
      ir_rows.push_back({static_cast<const bool*>(keep(args.ir_rows[i].contiguous())), elements_of_row(args, i)});
    }
  }

  void add_rows(const LitLossArgs& args) {
    const at::Tensor& logits = *args.student_logits;
    TORCH_CHECK_VALUE(logits.size(1) <= kMaxClasses, "lit_loss: student_logits: expected up to ", kMaxClasses,
                      " classes, got ", logits.size(1));
    rows.student = keep(logits.contiguous());
    rows.student_dtype = dtype_of(logits);
    rows.batch = logits.size(0);
    rows.classes = static_cast<int>(logits.size(1));
    rows.has_teacher = args.teacher_logits.has_value();
    if (rows.has_teacher) {
      rows.teacher = keep(args.teacher_logits->contiguous());
      rows.teacher_dtype = dtype_of(*args.teacher_logits);
    }
    if (args.rows) {
      rows.counted = static_cast<const bool*>(keep(args.rows->contiguous()));
    }
    rows.has_soft_labels = has_soft_labels(args);
    rows.has_labels = args.labels && !rows.has_soft_labels;
    if (rows.has_soft_labels) {
      rows.soft_labels = keep(args.labels->contiguous());
      rows.soft_labels_dtype = dtype_of(*args.labels);
    }
    if (rows.has_labels) {
      rows.labels = static_cast<const Index*>(keep(args.labels->to(at::kLong).contiguous()));
    }
    if (args.labels) {
      rows.ignore_index = args.ignore_index;
      rows.label_smoothing = args.label_smoothing;
      if (args.class_weight) {
        rows.class_weight = keep(args.class_weight->contiguous());
        rows.class_weight_dtype = dtype_of(*args.class_weight);
      }
    }
    if (args.need_grad) {
      logits_grad = at::empty_like(logits, at::MemoryFormat::Contiguous);
      rows.grad = logits_grad.mutable_data_ptr();
    }
  }
};

LitLossResult lit_loss_on_cuda(const LitLossArgs& args) {
  const at::Device device = device_of(args);
  const c10::cuda::CUDAGuard guard(device);
  Inputs inputs(args);
  const Kernel kernel = kernel_of(inputs.sections, inputs.rows, compute_dtype(args) == at::kDouble);
  const auto options = at::dtype(compute_dtype(args)).device(device);
  const at::Tensor parts = at::empty({3 + static_cast<int64_t>(inputs.sections.size())}, options);

  Problem problem{};
  problem.rows = inputs.rows;
  if (args.grad_scale) {
    problem.grad_scale = args.grad_scale->const_data_ptr();
    problem.grad_scale_dtype = dtype_of(*args.grad_scale);
  }
  if (args.counts) {
    problem.counts = args.counts->const_data_ptr<double>();
  }
  problem.alpha = args.alpha;
  problem.beta = args.beta;
  problem.tau = args.tau;
  problem.tau_squared = args.tau_squared;
  problem.ir_kind = static_cast<IrKind>(args.ir_kind);
  problem.parts = parts.mutable_data_ptr();

  Limits limits{};
  C10_CUDA_CHECK(limits_of_loss(kernel, &limits));
  std::vector<Launch> launches = plan(inputs.sections, inputs.ir_rows, problem, limits);
  const at::Tensor workspace = at::empty({static_cast<int64_t>(workspace_bytes(launches))}, options.dtype(at::kByte));
  C10_CUDA_CHECK(run(launches, kernel, workspace.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream()));
  return {parts, std::move(inputs.ir_grads),
          inputs.logits_grad.defined() ? inputs.logits_grad : at::empty({0}, options)};
}

}  // namespace
}  // namespace lit_fast::cuda

TORCH_LIBRARY_IMPL(lit_fast, CUDA, m) { m.impl("lit_loss", lit_fast::lit_loss_op<lit_fast::cuda::lit_loss_on_cuda>); }
