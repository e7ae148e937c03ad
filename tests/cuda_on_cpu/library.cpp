// The kernels on the CPU as a shared library, for tests/test_cuda_on_cpu.py to call with the memory of CPU tensors.
#include "tests/cuda_on_cpu/kernels.h"
//
#include "csrc/cuda/counters.h"

using namespace lit_fast::cuda;

namespace {

struct Options {  // as the class of that name in tests/cuda_on_cpu/emulator.py
  double alpha, beta, tau;
  const void* grad_scale;
  const double* counts;
  int grad_scale_dtype, tau_squared, ir_kind, doubles;
  int threads, blocks, all_blocks_at_once;
};

template <typename F>
int trapped(F&& run) {
  try {
    run();
  } catch (const cuda_on_cpu::Trap&) {
    return 1;
  } catch (const std::logic_error& error) {
    std::puts(error.what());
    return 2;
  }
  return 0;
}

}  // namespace

extern "C" {

int size_of(int which) {
  return which == 0   ? sizeof(Section)
         : which == 1 ? sizeof(Rows)
         : which == 2 ? sizeof(Rescaling::Tensor)
         : which == 3 ? sizeof(Quotient)
         : which == 4 ? sizeof(Options)
                      : sizeof(CountedRows);
}

// 1 if a kernel trapped, 2 if it did what no kernel may, else 0.
int lit_loss_on_cpu(const Section* sections, const CountedRows* ir_rows, int count, int rows_count, const Rows* rows,
                    const Options* options, void* parts) {
  Problem problem{};
  problem.rows = *rows;
  problem.grad_scale = options->grad_scale;
  problem.grad_scale_dtype = static_cast<DType>(options->grad_scale_dtype);
  problem.counts = options->counts;
  problem.alpha = options->alpha;
  problem.beta = options->beta;
  problem.tau = options->tau;
  problem.tau_squared = options->tau_squared != 0;
  problem.ir_kind = static_cast<lit_fast::IrKind>(options->ir_kind);
  problem.parts = parts;
  return trapped([&] {
    cuda_on_cpu::run_lit_loss({sections, sections + count}, {ir_rows, ir_rows + rows_count}, problem,
                              options->doubles != 0, {options->threads, options->blocks},
                              options->all_blocks_at_once != 0);
  });
}

int rescale_on_cpu(const Rescaling::Tensor* tensors, int count, const Quotient* by, int threads, int blocks) {
  return trapped([&] {
    for (const auto& one : plan_rescaling({tensors, tensors + count}, *by, {threads, blocks})) {
      cuda_on_cpu::launch(one.blocks, threads, false, [&] { rescale(one.rescaling); });
    }
  });
}

void share_blocks_on_cpu(const Index* wanted, const double* work, int count, int blocks, int* shares) {
  const auto found = share_blocks({wanted, wanted + count}, {work, work + count}, blocks);
  std::copy(found.begin(), found.end(), shares);
}

// found: blocks of the rows, then of each section; threads that share a row.
void plan_on_cpu(const Section* sections, int count, const Rows* rows, int threads, int blocks, int* found,
                 int* lanes) {
  Problem common{};
  common.rows = *rows;
  const Problem problem = plan({sections, sections + count}, {}, common, {threads, blocks}).front().problem;
  *found++ = problem.rows.blocks;
  for (int i = 0; i < count; ++i) {
    const int end = i + 1 < count ? problem.sections[i + 1].first_block : problem.blocks;
    *found++ = end - problem.sections[i].first_block;
  }
  *lanes = lanes_of_row(rows->classes, threads);
}

// The counters of calls on streams of the given ids, or, for the id 0, of captured calls, in this order.
void counters_on_cpu(const int* devices, const int* ids, int count, int* found) {
  Counters counters;
  for (int i = 0; i < count; ++i) {
    found[i] = ids[i] == 0 ? counters.of_capture() : counters.of_stream(devices[i], ids[i]);
  }
}

// The conversions that stand in for the device's instructions.
float half_to_float(unsigned short half) { return cuda_on_cpu::half_to_float(half); }
unsigned short float_to_half(float number) { return cuda_on_cpu::float_to_half(number); }
}
