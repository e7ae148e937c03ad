// The Python module lit_fast._C. Importing it loads this library, which registers the ops; nothing else is bound.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <torch/version.h>

#include <cstddef>  // _GLIBCXX_USE_CXX11_ABI

#include "csrc/cpu/kernels.h"

#define LIT_TEXT_(x) #x
#define LIT_TEXT(x) LIT_TEXT_(x)

#if defined(__clang__)
#define LIT_COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define LIT_COMPILER "gcc " __VERSION__
#elif defined(_MSC_VER)
#define LIT_COMPILER "msvc " LIT_TEXT(_MSC_VER)
#else
#define LIT_COMPILER "unknown"
#endif

#if defined(_OPENMP)
#define LIT_OPENMP "1"
#else
#define LIT_OPENMP "0"
#endif

#if defined(_GLIBCXX_USE_CXX11_ABI)
#define LIT_CXX11_ABI LIT_TEXT(_GLIBCXX_USE_CXX11_ABI)
#else
#define LIT_CXX11_ABI "none"
#endif

// Set by the build where CUDA kernels are compiled in: the toolkit's version, and for what: "sm_80,sm_90,compute_90".
#if !defined(LIT_CUDA)
#define LIT_CUDA "none"
#define LIT_CUDA_ARCHS ""
#endif

// What this file was built with. lit_fast/extension.py finds it by its first word in the file BEFORE it loads it,
// because to load a library that was built for another torch is to crash.
static const char lit_fast_build[] =
    "lit_fast-build;torch=" TORCH_VERSION ";compiler=" LIT_COMPILER ";openmp=" LIT_OPENMP ";cxx11_abi=" LIT_CXX11_ABI
    ";cuda=" LIT_CUDA ";cuda_archs=" LIT_CUDA_ARCHS ";";

static PyModuleDef module = {PyModuleDef_HEAD_INIT, "lit_fast._C", "Ops of lit_fast.", -1, nullptr};

PyMODINIT_FUNC PyInit__C() {
  PyObject* self = PyModule_Create(&module);
  if (self != nullptr && (PyModule_AddStringConstant(self, "build", lit_fast_build) != 0 ||
                          PyModule_AddStringConstant(self, "instruction_set", lit_fast::cpu::instruction_set()) != 0)) {
    Py_DECREF(self);
    return nullptr;
  }
  return self;
}
