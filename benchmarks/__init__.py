"""Benchmarks of lit_fast: measuring code in modules that need torch alone, thin pytest-benchmark tests on top."""

from lit_fast.openmp import sleep_when_idle

sleep_when_idle()  # of all variants alike
