// A network without branches on its data, as a list of instructions on numbered registers: what a frozen teacher is
// lowered to (lit_fast/teacher/lowering.py), and what runs it without Python.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/custom_class.h>

#include <cstdint>
#include <functional>
#include <string>
#include <tuple>
#include <vector>

namespace lit_fast::teacher {

// (op, registers, numbers, floats, tensors) as lit_fast/teacher/lowering.py writes them; ops are listed in program.cpp.
using Spec =
    std::tuple<std::string, std::vector<int64_t>, std::vector<int64_t>, std::vector<double>, std::vector<at::Tensor>>;

constexpr int64_t kNone = -1;

// One step: registers[output] = op(registers[input], registers[other]).
struct Instruction {
  int64_t input;
  int64_t other;  // second operand, such as a residual, or kNone
  int64_t output;
  std::vector<int64_t> frees;  // registers that nothing after this step reads
  std::function<at::Tensor(const at::Tensor& input, const at::Tensor& other)> run;
};

class Program : public torch::CustomClassHolder {
 public:
  // Register 0 is the program's input; `output` is the register that it returns.
  Program(const std::vector<Spec>& specs, int64_t output);

  // No autograd graph is made; the results are ordinary tensors, which a student may save for its backward pass.
  at::Tensor run(const at::Tensor& input) const;

 private:
  std::vector<Instruction> instructions_;
  int64_t registers_ = 1;
  int64_t output_;
};

}  // namespace lit_fast::teacher
