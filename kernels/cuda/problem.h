// What the kernels are told, by value: one table per launch. Plain structs for host and device, without any header.
#pragma once

#include "kernels/math.h"

namespace lit_fast::cuda {

using Index = long long;  // int64_t, for which there would have to be a header

constexpr int kWarp = 32;
constexpr int kThreads = 128;  // of a block; the kernels work with any multiple of a warp up to this
constexpr int kMaxSections = 64;
constexpr int kMaxCountedSections = 32;  // of a launch where rows of the IRs count or do not
constexpr int kMaxTensors = 64;          // of a rescaling
constexpr int kMaxArgumentBytes = 4096;  // what a kernel takes before compute capability 7.0
constexpr int kClassesOfAWarp = 256;     // longer rows of logits are shared by a block
constexpr int kStreamCounters = 1024;    // of the device's counters, those of launches that are not captured
constexpr int kCounters = 16384;
constexpr int kStrip = 4;           // classes that a thread looks at together
constexpr int kBytesInFlight = 64;  // of each tensor, that a thread loads before it uses any

enum class DType : unsigned char { f16, bf16, f32, f64 };

// The kernels of the loss: for tensors that all have one type, or for any, computing in float32 or, with float64 among
// the tensors, in float64.
enum class Kernel { f16, bf16, f32, mixed, f64 };
constexpr int kKernels = 5;

LIT_HD constexpr int bytes_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// Threads that share a row of logits: as many lanes of a warp as have a strip each, so that a warp takes several rows
// of few classes; all threads of the block for many classes.
LIT_HD constexpr int lanes_of_row(int classes, int threads) {
  if (classes > kClassesOfAWarp) {
    return threads;
  }
  int lanes = 1;
  while (lanes < kWarp && lanes * kStrip < classes) {
    lanes *= 2;
  }
  return lanes;
}

// One section: tensors of one memory layout, so that the order of the elements plays no role. The section works with
// the blocks from first_block to the next section's.
struct Section {
  const void* student;  // [numel]
  const void* teacher;  // [numel]
  void* grad;           // [numel] of student_dtype, or null
  Index numel;
  double weight;
  int first_block;
  DType student_dtype, teacher_dtype;
  double slope;  // d total / d l of one element, before the gradients' scale and a given count
};

// Which rows of a section's IR count: its memory is one row after the other.
struct CountedRows {
  const bool* counted;  // [numel / of_row]
  Index of_row;         // elements for each
};

struct SectionsAndRows {
  Section sections[kMaxCountedSections];
  CountedRows rows[kMaxCountedSections];
};

// The logits, worked on by the first `blocks` blocks.
struct Rows {
  const void* student;       // [batch, classes]
  const void* teacher;       // [batch, classes]
  void* grad;                // [batch, classes] of student_dtype, or null
  const Index* labels;       // [batch]
  const void* class_weight;  // [classes], or null: 1 each
  const void* soft_labels;   // [batch, classes]
  const bool* counted;       // [batch]: which rows count, or null: all
  Index batch, ignore_index;
  double label_smoothing;
  int classes;
  int blocks;
  DType student_dtype, teacher_dtype, class_weight_dtype, soft_labels_dtype;
  bool has_labels, has_teacher, has_soft_labels;  // an empty tensor has no pointer to tell by
  double inverse_tau;
  double ce_slope, kl_slope;  // d total / d row's loss, before the gradients' scale and, of ce, the labels' weight; of
                              // both before the count, where counts are given
  double at_all;              // the share of its weight that every class is a target with
};

// What the launches of one call hand on, in the workspace.
struct Carried {
  double ir_total;       // sum of weight * mean over the sections of all launches so far
  double labels_weight;  // sum of the class weights of all labels that count: what the cross-entropy is divided by
};

// One launch: up to kMaxSections sections, and the logits in the last launch of a call.
struct Problem {
  union {  // a kernel's arguments have no room for both
    Section sections[kMaxSections];
    SectionsAndRows counted;  // if has_ir_rows
  };
  Rows rows;
  const void* grad_scale;  // one number that multiplies every gradient before it is rounded, or null
  const double* counts;    // [2 + k] what the sums of ce, kl and each section are divided by, or null: their own counts
  double alpha, beta, tau;
  void* parts;        // [3 + k] float32 or float64: total, ce, kl, ir_1 .. ir_k
  Carried* carried;   // one
  double* partials;   // [blocks, 2]: sums of IR losses, or of ce and kl
  int counter;        // of finished blocks: which of the device's, no other running launch's
  int section_count;  // in this launch
  int first_section;  // how many sections the launches before had
  int blocks;         // that have work; the grid has at least one
  IrKind ir_kind;
  DType grad_scale_dtype;
  bool tau_squared;
  bool is_last;  // launch of the call
  bool has_ir_rows;
};

static_assert(sizeof(Problem) < kMaxArgumentBytes, "kernel arguments");

// *factor / *scale in float64, each one number on the device.
struct Quotient {
  const void* factor;
  const void* scale;  // or null: 1
  DType factor_dtype, scale_dtype;
};

// One launch of a rescaling: data[i] *= quotient in place, unless the quotient is 1.
struct Rescaling {
  struct Tensor {
    void* data;  // [numel]
    Index numel;
    int first_block;  // to the next tensor's
    DType dtype;
  };
  Tensor tensors[kMaxTensors];
  Quotient by;
  int tensor_count;
  int blocks;
};

static_assert(sizeof(Rescaling) < kMaxArgumentBytes, "kernel arguments");

}  // namespace lit_fast::cuda
