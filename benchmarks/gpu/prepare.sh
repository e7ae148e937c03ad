#!/usr/bin/env bash
# Makes, on a machine without a GPU, what a machine with one would have to compile or download: one folder to take there.
#   benchmarks/gpu/prepare.sh [FOLDER]
# FOLDER (default: gpu-carry) gets the extension, Triton's compiled kernels, and wheels of the packages that `lit-fast
# distill` needs beside those of a usual PyTorch image; at most 40 MB. benchmarks/gpu/carry.py puts them to use.
# Environment variables:
#   PYTHON    an interpreter of the version that runs there (default: python3.12). With the torch that is asked for, and
#             setuptools >= 77 and ninja, it is used as it is; else for an environment of its own, which downloads them.
#   TORCH     the torch there (default: torch==2.11.0)
#   ARCH      the GPU's capability (default: 9.0)
#   BUILD     what is kept to be quicker next time (default: build/gpu-carry)
#   MAX_JOBS  how many files are compiled at once
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
mkdir -p "${1:-$root/gpu-carry}" "${BUILD:-$root/build/gpu-carry}"
folder=$(cd "${1:-$root/gpu-carry}" && pwd)
build=$(cd "${BUILD:-$root/build/gpu-carry}" && pwd)
tree=$build/tree
torch=${TORCH:-torch==2.11.0} arch=${ARCH:-9.0} limit=40000000
packages='pydantic|pydantic-core|annotated-types|typing-inspection|typing-extensions'

# What must be there to build: exit 0 if it is.
fitting='
import sys
from importlib.metadata import PackageNotFoundError, version
try:
    found, ninja, setuptools = version("torch"), version("ninja"), version("setuptools")
except PackageNotFoundError:
    sys.exit(1)
wanted = sys.argv[1].partition("==")[2]
sys.exit(wanted not in (found, found.partition("+")[0]) or int(setuptools.partition(".")[0]) < 77)'

choose_python() {
  python=${PYTHON:-python3.12}
  if "$python" -c "$fitting" "$torch"; then return; fi
  echo "$python: no $torch with ninja and setuptools >= 77; using an environment in $build/venv"
  "$python" -c 'import sys; print(sys.version)' >"$build/wanted"
  if ! cmp -s "$build/wanted" "$build/venv/made-for"; then
    rm -rf "$build/venv"
    "$python" -m venv "$build/venv"
    cp "$build/wanted" "$build/venv/made-for"
  fi
  python=$build/venv/bin/python
  if "$python" -c "$fitting" "$torch"; then return; fi
  "$python" -m pip install --quiet "$torch" 'setuptools>=77' ninja numpy
}

# In a copy, so that the checkout keeps the extension that it has; times are kept, and with them what need not be
# compiled again.
build_extension() {
  mkdir -p "$tree"
  for name in lit_fast benchmarks tests csrc kernels build_backend setup.py pyproject.toml README.md LICENSE; do
    rm -rf "${tree:?}/$name"
    cp -a "$root/$name" "$tree/$name"
  done
  rm -f "$tree"/lit_fast/_C*.so
  (cd "$tree" && TORCH_CUDA_ARCH_LIST=$arch FORCE_CUDA=1 "$python" setup.py --quiet build_ext --inplace) \
    >"$build/log.txt" 2>&1 || {
    tail -40 "$build/log.txt" >&2
    echo "prepare.sh: the extension could not be built; all that the compilers said is in $build/log.txt" >&2
    exit 1
  }
  strip --strip-unneeded "$tree"/lit_fast/_C*.so
  mkdir "$folder/lit_fast"
  cp "$tree"/lit_fast/_C*.so "$folder/lit_fast"
}

# In the versions of constraints.txt, for the Python there.
download_wheels() {
  local wanted version
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  wanted=$(grep -E "^($packages)==" "$root/constraints.txt")
  if [ "$(cat "$build/wheels/wanted" 2>/dev/null)" != "$version $wanted" ]; then
    rm -rf "$build/wheels"
    # shellcheck disable=SC2086 # one word for each package
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
      --python-version "$version" --implementation cp --platform manylinux_2_28_x86_64 \
      --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest "$build/wheels" $wanted
    echo "$version $wanted" >"$build/wheels/wanted"
  fi
  mkdir "$folder/wheels"
  cp "$build"/wheels/*.whl "$folder/wheels"
}

# Kernels that are compiled there take time, so a failure here is no reason to take nothing along.
compile_kernels() {
  if (cd "$tree" && PYTHONPATH=$tree "$python" -m benchmarks.gpu.precompile "$build/triton" "$arch"); then
    cp -a "$build/triton" "$folder/triton"
  else
    echo "prepare.sh: without Triton's kernels: they could not be compiled (see above)" >&2
  fi
}

report() {
  local size
  size=$(du --apparent-size --bytes --summarize "$folder" | cut -f1)
  (cd "$folder" && du --apparent-size --human-readable --summarize -- *)
  if [ "$size" -gt "$limit" ]; then
    echo "prepare.sh: $folder has $size bytes, more than $limit; take what is too large out of it" >&2
    exit 1
  fi
  echo "$folder: $size bytes of at most $limit"
}

main() {
  choose_python
  rm -rf "$folder"/{carry.json,lit_fast,triton,wheels} # nothing of an earlier call stays where this one fails
  build_extension
  download_wheels
  compile_kernels
  (cd "$tree" && PYTHONPATH=$tree "$python" -m benchmarks.gpu.carry "$folder")
  report
}

main
