#!/usr/bin/env bash
# One command of at most nine minutes on a bare machine with one GPU: checks the kernels, times them
# and pretraining, then trains the study's best arm and its plain twin from a pack.
#
#   tools/gpu_day.sh PACK [BEST.toml PLAIN.toml]          results go to $OUT, or to gpu_day_results
#   tools/gpu_day.sh PACK --limits tiny                   a rehearsal on a CPU, within a minute
#
# Needs python3 with torch, triton and timm; what else is missing travels as wheels in the folder
# $WHEELS. Make the pack before: cytofm pack STORES -o PACK. Nothing is fetched, nothing is
# written beside $OUT but in a temporary folder. SECONDS_IN_ALL (default 510) is when it ends.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONUNBUFFERED=1
export PYTHONPATH="$root:$root/kernels${PYTHONPATH:+:$PYTHONPATH}"
if [ -n "${WHEELS:-}" ]; then
  site=$(mktemp -d)
  python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
  export PYTHONPATH="$PYTHONPATH:$site"
fi
exec "${PYTHON:-python3}" "$root/tools/gpu_day.py" "$@" \
  --out "${OUT:-gpu_day_results}" --seconds "${SECONDS_IN_ALL:-510}"
