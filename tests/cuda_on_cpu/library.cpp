// The kernels on the CPU as a shared library, for tests/test_cuda_on_cpu.py to call with the memory of CPU tensors.
#include "tests/cuda_on_cpu/kernels.h"

using namespace lit_fast::cuda;

namespace {

struct Options {  // as the class of that name in tests/cuda_on_cpu/emulator.py
  double alpha, beta, tau;
  const void* grad_scale;
  int grad_scale_dtype, tau_squared, ir_kind, doubles;
  int threads, blocks, all_blocks_at_once;
};

template <typename F>
int trapped(F&& run) {
  try {
    run();
  } catch (const cuda_on_cpu::Trap&) {
    return 1;
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
                      : sizeof(Options);
}

// 1 if a kernel trapped, else 0.
int lit_loss_on_cpu(const Section* sections, int count, const Rows* rows, const Options* options, void* parts) {
  Problem problem{};
  problem.rows = *rows;
  problem.grad_scale = options->grad_scale;
  problem.grad_scale_dtype = static_cast<DType>(options->grad_scale_dtype);
  problem.alpha = options->alpha;
  problem.beta = options->beta;
  problem.tau = options->tau;
  problem.tau_squared = options->tau_squared != 0;
  problem.ir_kind = static_cast<lit_fast::IrKind>(options->ir_kind);
  problem.parts = parts;
  return trapped([&] {
    cuda_on_cpu::run_lit_loss({sections, sections + count}, problem, options->doubles != 0,
                              {options->threads, options->blocks}, options->all_blocks_at_once != 0);
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

// The conversions that stand in for the device's instructions.
float half_to_float(unsigned short half) { return cuda_on_cpu::half_to_float(half); }
unsigned short float_to_half(float number) { return cuda_on_cpu::float_to_half(number); }
}
