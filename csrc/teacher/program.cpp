#include "csrc/teacher/program.h"

#include <ATen/Functions.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <map>

#include "csrc/teacher/convolution.h"

namespace lit_fast::teacher {
namespace {

using Run = decltype(Instruction::run);
using Numbers = std::vector<int64_t>;
using Floats = std::vector<double>;
using Tensors = std::vector<at::Tensor>;

// The next `count` of `numbers`.
Numbers take(const Numbers& numbers, size_t& at, size_t count) {
  TORCH_CHECK_VALUE(at + count <= numbers.size(), "teacher program: an instruction has too few numbers");
  Numbers taken(numbers.begin() + at, numbers.begin() + at + count);
  at += count;
  return taken;
}

// numbers: relu, overwrite, transposed, groups, fused, then stride, padding, dilation and output padding of each
// dimension.
Run convolution(const Numbers& numbers, const Tensors& tensors) {
  Convolution c;
  c.weight = tensors.at(0);
  c.bias = tensors.size() > 1 ? std::optional(tensors[1]) : std::nullopt;
  c.relu = numbers.at(0) != 0;
  c.overwrite = numbers.at(1) != 0;
  c.transposed = numbers.at(2) != 0;
  c.groups = numbers.at(3);
  c.fused = numbers.at(4) != 0;
  const size_t dims = c.weight.dim() - 2;
  size_t at = 5;
  c.stride = take(numbers, at, dims);
  c.padding = take(numbers, at, dims);
  c.dilation = take(numbers, at, dims);
  c.output_padding = take(numbers, at, dims);
  prepare(c);
  return [c](const at::Tensor& input, const at::Tensor& other) { return c(input, other); };
}

at::Tensor max_pool(const at::Tensor& x,
                    const Numbers& n) {  // kernel, stride, padding, dilation of each dimension, ceil
  const size_t dims = (n.size() - 1) / 4;
  size_t at = 0;
  const Numbers kernel = take(n, at, dims), stride = take(n, at, dims), padding = take(n, at, dims),
                dilation = take(n, at, dims);
  return dims == 1 ? at::max_pool1d(x, kernel, stride, padding, dilation, n.back() != 0)
                   : at::max_pool2d(x, kernel, stride, padding, dilation, n.back() != 0);
}

at::Tensor avg_pool(const at::Tensor& x, const Numbers& n) {  // kernel, stride, padding of each dimension; ceil, count
  const size_t dims = (n.size() - 2) / 3;
  size_t at = 0;
  const Numbers kernel = take(n, at, dims), stride = take(n, at, dims), padding = take(n, at, dims);
  const bool ceil = n[n.size() - 2] != 0, count_padding = n.back() != 0;
  return dims == 1 ? at::avg_pool1d(x, kernel, stride, padding, ceil, count_padding)
                   : at::avg_pool2d(x, kernel, stride, padding, ceil, count_padding);
}

// What each op makes of its numbers, floats and tensors.
const std::map<std::string, Run (*)(const Numbers&, const Floats&, const Tensors&)>& ops() {
  using X = const at::Tensor&;
  static const std::map<std::string, Run (*)(const Numbers&, const Floats&, const Tensors&)> table{
      {"convolution", [](const Numbers& n, const Floats&, const Tensors& t) { return convolution(n, t); }},
      {"linear",
       [](const Numbers& n, const Floats&, const Tensors& t) -> Run {  // relu
         const auto bias = t.size() > 1 ? std::optional(t[1]) : std::nullopt;
         return [weight = t.at(0), bias, relu = n.at(0) != 0](X x, X) {
           at::Tensor y = at::linear(x, weight, bias);
           return relu ? y.relu_() : y;
         };
       }},
      {"scale_shift",
       [](const Numbers& n, const Floats&, const Tensors& t) -> Run {  // relu; a BatchNorm that follows no convolution
         return [scale = t.at(0), shift = t.at(1), relu = n.at(0) != 0](X x, X) {
           at::Tensor y = at::addcmul(shift, x, scale);
           return relu ? y.relu_() : y;
         };
       }},
      {"instance_norm",
       [](const Numbers& n, const Floats& f, const Tensors& t) -> Run {  // relu; eps; weight, bias or nothing
         const auto weight = t.empty() ? std::nullopt : std::optional(t[0]);
         const auto bias = t.empty() ? std::nullopt : std::optional(t[1]);
         return [weight, bias, eps = f.at(0), relu = n.at(0) != 0](X x, X) {
           at::Tensor y = at::instance_norm(x, weight, bias, {}, {}, /*use_input_stats=*/true, 0.0, eps,
                                            at::globalContext().userEnabledCuDNN());
           return relu ? y.relu_() : y;
         };
       }},
      {"add",
       [](const Numbers& n, const Floats&, const Tensors&) -> Run {  // relu
         return [relu = n.at(0) != 0](X x, X y) {
           at::Tensor sum = at::add(x, y);
           return relu ? sum.relu_() : sum;
         };
       }},
      {"relu", [](const Numbers&, const Floats&, const Tensors&) -> Run { return [](X x, X) { return at::relu(x); }; }},
      {"leaky_relu",
       [](const Numbers&, const Floats& f, const Tensors&) -> Run {
         return [slope = f.at(0)](X x, X) { return at::leaky_relu(x, slope); };
       }},
      {"tanh", [](const Numbers&, const Floats&, const Tensors&) -> Run { return [](X x, X) { return at::tanh(x); }; }},
      {"sigmoid",
       [](const Numbers&, const Floats&, const Tensors&) -> Run { return [](X x, X) { return at::sigmoid(x); }; }},
      {"max_pool",
       [](const Numbers& n, const Floats&, const Tensors&) -> Run { return [n](X x, X) { return max_pool(x, n); }; }},
      {"avg_pool",
       [](const Numbers& n, const Floats&, const Tensors&) -> Run { return [n](X x, X) { return avg_pool(x, n); }; }},
      {"mean",
       [](const Numbers& n, const Floats&, const Tensors&) -> Run {  // keepdim, dimensions...
         return
             [dims = Numbers(n.begin() + 1, n.end()), keep = n.at(0) != 0](X x, X) { return at::mean(x, dims, keep); };
       }},
      {"flatten",
       [](const Numbers& n, const Floats&, const Tensors&) -> Run {  // first dimension
         return [start = n.at(0)](X x, X) { return at::flatten(x, start); };
       }},
      {"slice",
       [](const Numbers& n, const Floats&, const Tensors&) -> Run {  // dimension, start, end, step
         return [n](X x, X) { return at::slice(x, n.at(0), n.at(1), n.at(2), n.at(3)); };
       }},
      {"pad",
       [](const Numbers& n, const Floats& f, const Tensors&) -> Run {  // torch's numbers; value
         return [n, value = f.at(0)](X x, X) { return at::constant_pad_nd(x, n, value); };
       }},
      {"transpose",
       [](const Numbers& n, const Floats&, const Tensors&) -> Run {
         return [n](X x, X) { return at::transpose(x, n.at(0), n.at(1)).contiguous(); };
       }},
      {"embedding",
       [](const Numbers&, const Floats&, const Tensors& t) -> Run {
         return [weight = t.at(0)](X x, X) { return at::embedding(weight, x); };
       }},
      {"topk",
       [](const Numbers& n, const Floats&, const Tensors&) -> Run {  // k, dimension, largest, sorted, indices
         return [n](X x, X) {
           auto [values, indices] = at::topk(x, n.at(0), n.at(1), n.at(2) != 0, n.at(3) != 0);
           return n.at(4) != 0 ? indices : values;
         };
       }},
      {"sort",
       [](const Numbers& n, const Floats&, const Tensors&) -> Run {  // stable, dimension, descending, indices
         return [n](X x, X) {
           auto [values, indices] = at::sort(x, /*stable=*/n.at(0) != 0, n.at(1), n.at(2) != 0);
           return n.at(3) != 0 ? indices : values;
         };
       }},
      {"gather",
       [](const Numbers& n, const Floats&, const Tensors&) -> Run {  // dimension
         return [dim = n.at(0)](X x, X index) { return at::gather(x, dim, index); };
       }},
  };
  return table;
}

Instruction instruction(const Spec& spec) {
  const auto& [op, registers, numbers, floats, tensors] = spec;
  const auto found = ops().find(op);
  TORCH_CHECK_VALUE(found != ops().end(), "teacher program: unknown op '", op, "'");
  TORCH_CHECK_VALUE(registers.size() == 3, "teacher program: ", op, ": expected registers input, other, output, got ",
                    registers.size());
  return {registers[0], registers[1], registers[2], {}, found->second(numbers, floats, tensors)};
}

}  // namespace

Program::Program(const std::vector<Spec>& specs, int64_t output) : output_(output) {
  for (const Spec& spec : specs) {
    instructions_.push_back(instruction(spec));
    const Instruction& last = instructions_.back();
    const bool known = last.input >= 0 && last.input < registers_ && last.other >= kNone && last.other < registers_;
    TORCH_CHECK_VALUE(known, "teacher program: step ", instructions_.size(),
                      " reads a register that is not written yet");
    TORCH_CHECK_VALUE(last.output == registers_, "teacher program: expected register ", registers_, " next, got ",
                      last.output);
    ++registers_;
  }
  TORCH_CHECK_VALUE(output >= 0 && output < registers_, "teacher program: no register ", output);
  std::vector<bool> read_later(registers_, false);
  read_later[output] = true;
  for (auto it = instructions_.rbegin(); it != instructions_.rend(); ++it) {
    for (const int64_t read : {it->input, it->other}) {
      if (read != kNone && !read_later[read]) {
        read_later[read] = true;
        it->frees.push_back(read);
      }
    }
  }
}

at::Tensor Program::run(const at::Tensor& input) const {
  const at::NoGradGuard no_grad;
  const at::AutoDispatchBelowADInplaceOrView below;                                     // skips autograd's bookkeeping
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);  // dtypes are the program's own
  std::vector<at::Tensor> registers(registers_);
  registers[0] = input;
  const at::Tensor none;
  for (const Instruction& step : instructions_) {
    registers[step.output] = step.run(registers[step.input], step.other == kNone ? none : registers[step.other]);
    for (const int64_t unused : step.frees) {
      registers[unused].reset();
    }
  }
  return registers[output_];
}

}  // namespace lit_fast::teacher

TORCH_LIBRARY_FRAGMENT(lit_fast, m) {
  using lit_fast::teacher::Program;
  m.class_<Program>("Program")
      .def(torch::init<const std::vector<lit_fast::teacher::Spec>&, int64_t>())
      .def("run",
           [](const c10::intrusive_ptr<Program>& program, const at::Tensor& input) { return program->run(input); });
}
