"""Benchmarks of lit_fast: measuring code in modules that need torch alone, thin pytest-benchmark tests on top."""
