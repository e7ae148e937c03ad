"""Benchmarks of lit_fast: measuring code in modules that need torch alone, thin pytest-benchmark tests on top."""

from lit_fast.openmp import share_cores

share_cores()  # of all variants alike
