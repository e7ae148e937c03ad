// The kernels for one instruction set: included by csrc/cpu/kernels.cpp once per set, each time in another namespace.
// Like the files that it includes it has no include guard and includes no header.
#include "csrc/cpu/simd/blocks.h"
#include "csrc/cpu/simd/exp.h"
#include "csrc/cpu/simd/ir.h"
#include "csrc/cpu/simd/kd.h"
