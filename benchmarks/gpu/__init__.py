"""Everything that needs a GPU, in one run: build, tests, memory checkers, benchmarks, bars. Started by run.sh."""
