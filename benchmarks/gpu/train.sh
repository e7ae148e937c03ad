#!/usr/bin/env bash
# ResNet-20 from ResNet-56 on CIFAR-10 by lit, kd and scratch, in calls of limited time: a table at equal epochs and at
# equal time.
#   benchmarks/gpu/train.sh DATA TEACHER OUT SECONDS [--in-all S] [--seeds N] [--epochs N] [--set KEY=VALUE]
#   benchmarks/gpu/train.sh --dry-run OUT [SECONDS]
# DATA: CIFAR-10 as published, or folders with what benchmarks/gpu/pack.py makes of it, colons between them. TEACHER: the
# weights of a ResNet-56. OUT gets table.md, results.json, report.png, plan.json, log.txt and weights.safetensors; the
# next call goes on there. Runs and checkpoints lie in OUT, too, or in the folder that LIT_FAST_STATE names. The exit
# status is 0 once every run has ended, 75 while there is more to do. PYTHON names the interpreter, LIT_FAST_CARRY a folder
# of prepare.sh to put to use first.
set -euo pipefail
if [ $# -eq 0 ] || [ "$1" = --help ]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
export LIT_FAST_STARTED=${LIT_FAST_STARTED:-$(date +%s)}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
if [ -n "${LIT_FAST_CARRY:-}" ]; then
  LIT_FAST_SCRATCH=$(mktemp -d)
  trap 'rm -rf "$LIT_FAST_SCRATCH"' EXIT # Python removes it once it runs
  use='
import shlex, sys
from pathlib import Path
from benchmarks.gpu import carry

folder, tree, scratch = map(Path, sys.argv[1:])
if reason := carry.fits(folder, tree):
    sys.exit(f"train.sh: LIT_FAST_CARRY: {reason}")
for name, value in carry.use(folder, tree, scratch).items():
    print(f"export {name}={shlex.quote(value)}")'
  carried=$("${PYTHON:-python3}" -c "$use" "$LIT_FAST_CARRY" "$root" "$LIT_FAST_SCRATCH")
  eval "$carried"
  export LIT_FAST_SCRATCH
fi
exec "${PYTHON:-python3}" -m benchmarks.gpu.train "$@"
