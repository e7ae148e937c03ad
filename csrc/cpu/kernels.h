// The CPU kernels, compiled for several instruction sets of which the processor's best is taken at run time.
#pragma once

#include "csrc/cpu/problem.h"

namespace lit_fast::cpu {

template <typename T>
struct Kernels {
  // Sum of l(d) over the elements begin .. end of a section; writes their gradient if there is one to write.
  double (*ir_range)(const Section<T>& section, IrKind kind, int64_t begin, int64_t end);
  // Sums over the rows begin .. end; writes their gradient if there is one to write.
  RowSums (*kd_range)(const Rows<T>& rows, int64_t begin, int64_t end);
};

template <typename T>
const Kernels<T>& kernels();  // T: float or double

const char* instruction_set();  // "avx512", "avx2" or "baseline"

}  // namespace lit_fast::cpu
