#!/usr/bin/env bash
# Proves lit_fast on a machine with PyTorch and an NVIDIA GPU; nothing is downloaded or installed.
#   benchmarks/gpu/run.sh [OUT] [--minutes N] [--only STAGE ...] [--again STAGE ...] [--dry-run] [--summary]
# OUT (default: gpu-results) holds journal.jsonl, to which each row and verdict is added the moment it is known, and what is
# made of it: results.json, summary.md, figures; and log.txt. A call goes on where the one before stopped; whatever killed
# that one, --summary makes the results of the journal without running anything. The dry run goes through every stage on
# the CPU, at tiny sizes, in a copy of the tree. PYTHON names the interpreter: the first of python3, python that has torch.
set -eu
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

has_torch='import importlib.util as u, sys; sys.exit(sys.version_info < (3, 10) or not u.find_spec("torch"))'
if [ -z "${PYTHON:-}" ]; then
  for name in python3 python; do
    if command -v "$name" >/dev/null && "$name" -c "$has_torch"; then
      PYTHON=$name
      break
    fi
  done
fi
if [ -z "${PYTHON:-}" ]; then
  echo "run.sh: neither python3 nor python is Python >= 3.10 with torch; name one: PYTHON=... $0" >&2
  exit 2
fi
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
  exec "$PYTHON" "$root/benchmarks/gpu/__main__.py" "$@"
