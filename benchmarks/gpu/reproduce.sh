#!/usr/bin/env bash
# The ResNet column of the paper's table 3, in calls of limited time: each goes on where the one before stopped.
#   benchmarks/gpu/reproduce.sh DATA TEACHER_MODEL TEACHER_WEIGHTS STUDIES [SECONDS] [BUDGET]
# DATA holds CIFAR-10, STUDIES is kept between the calls. SECONDS: 560, BUDGET: short (or paper). The exit status is 0
# once the study is complete, 75 while there is more to do.
set -euo pipefail
if [ $# -lt 4 ] || [ $# -gt 6 ]; then
  sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
data=$1 model=$2 weights=$3 studies=$4 seconds=${5:-560} budget=${6:-short}
status=0
# An interrupt makes a run write its checkpoint and leave.
timeout --signal=INT --kill-after=30 "$seconds" "${PYTHON:-python3}" -m lit_fast reproduce ablation --only resnet \
  --budget "$budget" --data-dir "$data" --teacher "$model" --teacher-checkpoint "$weights" --run-dir "$studies" ||
  status=$?
case $status in
  0) ;;
  124 | 130)
    echo "out of time after $seconds s; call again to go on" >&2
    exit 75
    ;;
  *) exit "$status" ;;
esac
