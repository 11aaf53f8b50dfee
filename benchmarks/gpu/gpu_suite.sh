#!/usr/bin/env bash
# The GPU suite (or REHEARSE=1 on a CPU), in two calls so that the first one's figures are safe:
#   BUDGET=330 bash .gpu/gpu_suite.sh first     is it right?
#   BUDGET=330 bash .gpu/gpu_suite.sh second    how fast is it?
# Names of steps as arguments run only those: bash .gpu/gpu_suite.sh env parity
# Figures are appended to $OUT/results.jsonl at once; $OUT/suite.log has the rest. BUDGET: seconds in all (default 535).
set -u
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
for up in .. ../..; do [ -d "$HERE/$up/nemo_vtb" ] && REPO=${REPO:-$(cd "$HERE/$up" && pwd)}; done # from .gpu or in place
export OUT=${OUT:-$PWD/gpu_out} PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8} TORCHINDUCTOR_COMPILE_THREADS=${TORCHINDUCTOR_COMPILE_THREADS:-8}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-/tmp/inductor} TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-/tmp/triton}
PY=${PY:-python3}; SITE=${SITE:-/tmp/site}; BEGIN=$(date +%s); SCALE=1
if [ "${REHEARSE:-}" = 1 ]; then SCALE=20; BUDGET=${BUDGET:-7000}; fi
BUDGET=${BUDGET:-535}
LOG=$OUT/suite.log
mkdir -p "$OUT" "$SITE"
for archive in site te; do # beside this script: what `make gpu-pack` collected
  if [ -f "$HERE/$archive.tar.xz" ] && [ ! -f "$SITE/.$archive" ]; then
    tar -C "$SITE" -xJf "$HERE/$archive.tar.xz" && touch "$SITE/.$archive"
  fi
done
export PYTHONPATH=$SITE:$REPO:$REPO/benchmarks${PYTHONPATH:+:$PYTHONPATH}
[ -f "$SITE/.compiled" ] || { "$PY" -m compileall -q -j 8 "$SITE" >/dev/null 2>&1; touch "$SITE/.compiled"; }
echo "unpacked after $(( $(date +%s) - BEGIN )) s"

left() { echo $(( BEGIN + BUDGET - $(date +%s) )); }
record() { # NAME RC SECONDS BEGUN
  printf '{"step": "step", "name": "%s", "rc": %d, "s": %d, "at": %d}\n' "$@" >>"$OUT/results.jsonl"
}
# bounded NAME LIMIT COMMAND...: by its limit and by what is left of the budget
bounded() {
  local name=$1 limit=$(( $2 * SCALE )) rest t0 rc; shift 2
  rest=$(left); if [ "$rest" -lt "$limit" ]; then limit=$rest; fi
  if [ "$limit" -lt 15 ]; then
    echo "== $name: no time left"; record "$name" 125 0 $(( $(date +%s) - BEGIN )); return
  fi
  t0=$(date +%s)
  echo "== $name (at most $limit s)" | tee -a "$LOG"
  timeout -k 5 "$limit" "$@" >>"$LOG" 2>&1; rc=$?
  record "$name" "$rc" $(( $(date +%s) - t0 )) $(( t0 - BEGIN ))
  echo "   rc=$rc, $(( $(date +%s) - t0 )) s"
}
step() { local name=$1 limit=$2; shift 2; bounded "$name" "$limit" "$PY" -m gpu "$@"; }

TINY='tiny-hf-mixed tiny-megatron-bf16 tiny-conformer-bf16 tiny-megatron-32 tiny-hf-bf16 tiny-megatron-mixed tiny-hf-32
  tiny-conformer-mixed tiny-conformer-megatron tiny-megatron-recompute tiny-megatron-fp8 tiny-sharded-bf16 tiny-ddp-mixed
  resume-tiny-hf-mixed resume-tiny-megatron-bf16'
REAL='gemma-megatron-bf16 gemma-hf-mixed gemma-hf-bf16 gemma-conformer-bf16 gemma-megatron-mixed'
if [ "${REHEARSE:-}" = 1 ]; then TINY=${TINY/tiny-megatron-fp8 /}; fi # needs Transformer Engine
STEPS=${*:-first}
STEPS=${STEPS/first/env ops parity table_te joint_tiny}
STEPS=${STEPS/second/table_hf joint_real table_liger profile rows ablate table_torch}
# shellcheck disable=SC2086
for s in $STEPS; do
  case $s in
    env)         step env 60 env ;;
    ops)         step ops 70 ops ;;
    parity)      step parity 90 parity --ways te liger torch --budget 80 ;;
    table_te)    step table_te 100 table --ways te te-fp8 ;;
    table_hf)    step table_hf 110 table --ways hf padded hf-plain hf-loop hf-cudnn padded-cudnn ;;
    table_liger) step table_liger 80 table --ways liger liger-loop ;;
    table_torch) step table_torch 60 table --ways torch ;;
    profile)     step profile 60 profile --ways te hf --shapes gemma ;;
    ablate)      step ablate 120 ablate --ways te ;;
    joint_tiny)  step joint_tiny 110 joint --cases $TINY ;;
    joint_real)  step joint_real 120 joint --cases $REAL ;;
    rows)        step rows 90 table --ways te hf liger --shapes gemma --tokens 32768 ;;
    pytest)      bounded pytest 200 "$PY" -m pytest -q -m gpu -p no:cacheprovider --rootdir "$REPO" "$REPO/tests/gpu" ;;
    *)           echo "no such step: $s" ;;
  esac
done
echo "== summary after $(( $(date +%s) - BEGIN )) s"
timeout 60 "$PY" -m gpu summary 2>&1 | tail -c 11000
