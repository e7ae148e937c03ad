// The checks of the loss, which all devices share.
#include <c10/util/accumulate.h>
#include <torch/library.h>

#include <algorithm>
#include <string>

#include "csrc/checks.h"
#include "csrc/lit_loss.h"
#include "kernels/math.h"

namespace lit_fast {
namespace {

// section: counted from 1; 0 for a tensor of no section.
void check_float(const at::Tensor& tensor, const char* what, size_t section = 0) {
  const auto dtype = tensor.scalar_type();
  if (dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16) {
    return;
  }
  const std::string where = section > 0 ? "section " + std::to_string(section) + ", " : "";
  TORCH_CHECK_TYPE(false, "lit_loss: ", where, what, ": expected float16, bfloat16, float32 or float64, got ", dtype);
}

void check_sections(const LitLossArgs& args) {
  const auto sections = args.student_irs.size();
  TORCH_CHECK_VALUE(args.teacher_irs.size() == sections, "lit_loss: expected as many teacher IRs as student IRs, got ",
                    sections, " from the student and ", args.teacher_irs.size(), " from the teacher");
  TORCH_CHECK_VALUE(args.section_weights.size() == sections, "lit_loss: expected one section weight for each of ",
                    sections, " sections, got ", args.section_weights.size());
  TORCH_CHECK_VALUE(args.beta == 1.0 || sections > 0, "lit_loss: beta = ", args.beta, " needs IRs, got none");
  TORCH_CHECK_VALUE(args.ir_kind >= 0 && args.ir_kind <= static_cast<int64_t>(IrKind::smooth_l1),
                    "lit_loss: ir_kind: expected 0 (l2), 1 (l1) or 2 (smooth_l1), got ", args.ir_kind);
  for (size_t i = 0; i < sections; ++i) {
    const at::Tensor &student = args.student_irs[i], &teacher = args.teacher_irs[i];
    check_float(student, "student IR", i + 1);
    check_float(teacher, "teacher IR", i + 1);
    TORCH_CHECK_VALUE(student.sizes() == teacher.sizes(), "lit_loss: section ", i + 1, ": student gives ",
                      student.sizes(), ", teacher ", teacher.sizes(),
                      "; choose a student of the teacher's width or project its IRs to it");
  }
}

// Whether an IR lies in memory, or will when it is made dense, one of its rows after the other.
bool rows_in_order(const at::Tensor& ir, int64_t dims) {
  return ir.is_contiguous() || dims == 0 || (dims == 1 && ir.is_contiguous(ir.suggest_memory_format()));
}

void check_what_counts(const LitLossArgs& args) {
  const auto sections = args.student_irs.size();
  TORCH_CHECK_VALUE(args.ir_rows.empty() || args.ir_rows.size() == sections,
                    "lit_loss: ir_rows: expected one tensor for each of ", sections, " sections or none, got ",
                    args.ir_rows.size());
  for (size_t i = 0; i < args.ir_rows.size(); ++i) {
    const at::Tensor &rows = args.ir_rows[i], &ir = args.student_irs[i];
    TORCH_CHECK_TYPE(rows.scalar_type() == at::kBool, "lit_loss: ir_rows: section ", i + 1, ": expected bool, got ",
                     rows.scalar_type());
    TORCH_CHECK_VALUE(rows.dim() <= ir.dim() && rows.sizes() == ir.sizes().slice(0, rows.dim()),
                      "lit_loss: ir_rows: section ", i + 1, ": expected the first dimensions of ", ir.sizes(), ", got ",
                      rows.sizes());
    TORCH_CHECK_VALUE(rows_in_order(ir, rows.dim()), "lit_loss: section ", i + 1,
                      ": an IR with rows that do not count: expected contiguous memory, got strides ", ir.strides(),
                      " for ", ir.sizes());
  }
  if (args.rows) {
    TORCH_CHECK_TYPE(args.rows->scalar_type() == at::kBool, "lit_loss: rows: expected bool, got ",
                     args.rows->scalar_type());
    TORCH_CHECK_VALUE(
        args.student_logits && args.rows->dim() == 1 && args.rows->size(0) == args.student_logits->size(0),
        "lit_loss: rows: expected one for each row of the logits, got ", args.rows->sizes());
  }
  TORCH_CHECK_VALUE(args.counts || (!args.rows && args.ir_rows.empty()),
                    "lit_loss: rows that do not count need counts, got None");
  if (args.counts) {
    TORCH_CHECK_TYPE(args.counts->scalar_type() == at::kDouble, "lit_loss: counts: expected float64, got ",
                     args.counts->scalar_type());
    TORCH_CHECK_VALUE(args.counts->is_contiguous() && args.counts->numel() == 2 + static_cast<int64_t>(sections),
                      "lit_loss: counts: expected [", 2 + sections, "], contiguous, got ", args.counts->sizes());
  }
}

void check_rows(const LitLossArgs& args) {
  if (!args.student_logits) {
    TORCH_CHECK_VALUE(args.beta == 0.0, "lit_loss: beta = ", args.beta, " needs student_logits, got None");
    return;
  }
  const at::Tensor& logits = *args.student_logits;
  check_float(logits, "student_logits");
  TORCH_CHECK_VALUE(logits.dim() == 2 && logits.size(1) > 0,
                    "lit_loss: student_logits: expected [batch, classes], got ", logits.sizes());
  TORCH_CHECK_VALUE(args.tau > 0, "lit_loss: tau: expected a temperature > 0, got ", args.tau);
  TORCH_CHECK_VALUE(args.teacher_logits || args.alpha == 1.0, "lit_loss: alpha = ", args.alpha,
                    " needs teacher_logits, got None");
  TORCH_CHECK_VALUE(args.labels || args.alpha == 0.0, "lit_loss: alpha = ", args.alpha, " needs labels, got None");
  if (args.teacher_logits) {
    check_float(*args.teacher_logits, "teacher_logits");
    TORCH_CHECK_VALUE(args.teacher_logits->sizes() == logits.sizes(),
                      "lit_loss: teacher_logits: expected the student's ", logits.sizes(), ", got ",
                      args.teacher_logits->sizes());
  }
  if (has_soft_labels(args)) {
    check_float(*args.labels, "labels");
    TORCH_CHECK_VALUE(args.labels->sizes() == logits.sizes(), "lit_loss: labels: expected the student's ",
                      logits.sizes(), ", got ", args.labels->sizes());
  } else if (args.labels) {
    TORCH_CHECK_TYPE(at::isIntegralType(args.labels->scalar_type(), /*includeBool=*/false),
                     "lit_loss: labels: expected class numbers (int64), got ", args.labels->scalar_type());
    TORCH_CHECK_VALUE(args.labels->dim() == 1 && args.labels->size(0) == logits.size(0),
                      "lit_loss: labels: expected one class number per row, [", logits.size(0), "], got ",
                      args.labels->sizes());
  }
  if (args.class_weight) {
    check_float(*args.class_weight, "class_weight");
    TORCH_CHECK_VALUE(args.class_weight->dim() == 1 && args.class_weight->size(0) == logits.size(1),
                      "lit_loss: class_weight: expected one weight per class, [", logits.size(1), "], got ",
                      args.class_weight->sizes());
  }
}

void check_devices(const LitLossArgs& args) {
  const at::Device device = device_of(args);
  for (size_t i = 0; i < args.student_irs.size(); ++i) {
    check_device(args.student_irs[i], device, "lit_loss: section ", i + 1, ", student IR");
    check_device(args.teacher_irs[i], device, "lit_loss: section ", i + 1, ", teacher IR");
  }
  const auto check_given = [&device](const char* what, Optional tensor) {
    if (tensor) {
      check_device(*tensor, device, "lit_loss: ", what);
    }
  };
  check_given("teacher_logits", args.teacher_logits);
  check_given("labels", args.labels);
  check_given("class_weight", args.class_weight);
  check_given("grad_scale", args.grad_scale);
  check_given("rows", args.rows);
  check_given("counts", args.counts);
  for (size_t i = 0; i < args.ir_rows.size(); ++i) {
    check_device(args.ir_rows[i], device, "lit_loss: ir_rows: section ", i + 1);
  }
}

void check_label_values(const LitLossArgs& args) {
  const at::Tensor labels = args.labels->to(at::kLong).contiguous();
  const int64_t* data = labels.const_data_ptr<int64_t>();
  const int64_t classes = args.student_logits->size(1);
  for (int64_t row = 0; row < labels.numel(); ++row) {
    TORCH_CHECK_INDEX((data[row] >= 0 && data[row] < classes) || data[row] == args.ignore_index,
                      "lit_loss: labels: label ", data[row], " of row ", row, " is out of range; expected 0 to ",
                      classes - 1, ", or ignore_index = ", args.ignore_index);
  }
}

}  // namespace

void check(const LitLossArgs& args) {
  TORCH_CHECK_VALUE(args.student_logits || !args.student_irs.empty(),
                    "lit_loss: expected IRs or student_logits, got neither");
  check_sections(args);
  check_rows(args);
  TORCH_CHECK_VALUE(!args.grad_scale || args.grad_scale->numel() == 1,
                    "lit_loss: grad_scale: expected one number, got ", args.grad_scale->sizes());
  check_what_counts(args);
  check_devices(args);
  if (args.student_logits && args.labels && args.labels->is_cpu() && !has_soft_labels(args)) {
    check_label_values(args);
  }
}

bool has_soft_labels(const LitLossArgs& args) {
  return args.labels && args.labels->is_floating_point() && args.labels->dim() == 2;
}

int64_t elements_of_row(const LitLossArgs& args, size_t i) {
  return c10::multiply_integers(args.student_irs[i].sizes().slice(args.ir_rows[i].dim()));
}

at::Device device_of(const LitLossArgs& args) {
  return args.student_logits ? args.student_logits->device() : args.student_irs[0].device();
}

at::ScalarType compute_dtype(const LitLossArgs& args) {
  const auto is_double = [](const at::Tensor& tensor) { return tensor.scalar_type() == at::kDouble; };
  const auto any_double = [&](at::TensorList list) { return std::any_of(list.begin(), list.end(), is_double); };
  const bool logits_double = (args.student_logits && is_double(*args.student_logits)) ||
                             (args.teacher_logits && is_double(*args.teacher_logits));
  return logits_double || any_double(args.student_irs) || any_double(args.teacher_irs) ? at::kDouble : at::kFloat;
}

}  // namespace lit_fast

// The schemas of the loss's ops are in lit_fast/loss/backends/ops.py; of this one see lit_fast/data/gather.py.
TORCH_LIBRARY(lit_fast, m) {
  m.def(
      "gather_batch(Tensor position, Tensor plan, Tensor images, Tensor? levels, int pad, int first, Tensor(a!) out, "
      "Tensor(b!) labels) -> ()",
      {at::Tag::pt2_compliant_tag});
}
