#!/usr/bin/env bash
# What gradlab is measured on with a GPU, most valuable first; run it again to go on where it ended.
#
#   benchmarks/gpu.sh                      every step, until LIMIT seconds are spent
#   benchmarks/gpu.sh check population     these steps alone
#
# Steps: check (the CPU and the GPU agree), tests (pytest -m gpu), training (images per second),
# train in slices (the protocol's network at width 96 and 64, then the two stages of the best recipe),
# gpu_kernels (seconds per gradient), network_cdg, population (ms per member), local_nes (the sweep
# cost_quality), lr_by_num_dim in slices, first one init and batch of every num_dim, and the sweeps
# of networks and of noise. A step that is done stands in done.txt and is skipped; delete its line to repeat it. A
# sweep that is cut off keeps its finished cells in its .sqlite file, a training run its epochs in
# RUNS, which has to be there when the script is called again; logs and curves go to OUT.
#
# GRADLAB_DATA   folder of the images; files that end in .xz are unpacked there first [.gpu-data]
# RUNS     folder of training runs and their checkpoints [results]
# PYTHON   an interpreter that imports torch with CUDA and gradlab's dependencies [python3]
# OUT      where results go [benchmarks/results/gpu]; earlier ones are looked up in the latter too
# LIMIT    seconds after which no step goes on [560]
# JOBS     workers that share the GPU [4]
# DEVICE   cpu to try this script out without a GPU [cuda]
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

kept=benchmarks/results/gpu
out=${OUT:-$kept}
python=${PYTHON:-python3}
limit=${LIMIT:-560}
jobs=${JOBS:-4}
device=${DEVICE:-cuda}
runs=${RUNS:-results}
export GRADLAB_DATA=${GRADLAB_DATA:-$PWD/.gpu-data}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# A run that writes elsewhere starts from what is kept, so that its files replace the kept ones.
if [ "$out" != "$kept" ]; then cp -n "$kept"/* "$out"/ 2>/dev/null; fi
touch "$out/done.txt"

# The command, stopped like Ctrl-C when the time is up.
within_limit() {
  local left=$((limit - SECONDS))
  if [ "$left" -lt 20 ]; then return 124; fi
  timeout --signal=INT --kill-after=20 "$left" "$@"
}

# step NAME COMMAND…: run it unless it is done; done.txt names it if it succeeded.
step() {
  local name=$1 status
  shift
  if grep -qxF "$name" "$out/done.txt"; then echo "done before: $name"; return 0; fi
  if [ "$SECONDS" -ge $((limit - 20)) ]; then echo "no time left: $name"; return 1; fi
  echo "== $name"
  "$@"
  status=$?
  # A bar that is not met or work that failed is status 1: not done, though what was written stands.
  if [ "$status" -eq 0 ]; then echo "$name" >>"$out/done.txt"; fi
  echo "== $name: status $status after $SECONDS s"
  return "$status"
}

# SQLite's own copy, whole even if a run was cut off.
copy_store() {
  "$python" -c 'import sqlite3, sys; a, b = map(sqlite3.connect, sys.argv[1:]); a.backup(b)' "$1" "$2"
}

# with_store SWEEP COMMAND…: the sweep's store is fetched before and kept after, finished or not.
with_store() {
  local sweep=$1 status
  shift
  mkdir -p "$work/$sweep"
  if [ -f "$out/$sweep.sqlite" ]; then
    copy_store "$out/$sweep.sqlite" "$work/$sweep/store.sqlite"
  fi
  within_limit "$@"
  status=$?
  if [ -f "$work/$sweep/store.sqlite" ]; then
    copy_store "$work/$sweep/store.sqlite" "$out/$sweep.sqlite"
  fi
  return "$status"
}

check() { within_limit "$python" benchmarks/gpu_check.py --device "$device" --output "$out"; }

tests() {
  local marked
  mapfile -t marked < <(grep -rlE --include='*.py' "mark\.gpu\b" tests)
  if [ "${#marked[@]}" -eq 0 ]; then echo "no test is marked gpu"; return 5; fi
  within_limit "$python" -m pytest -q -m gpu "${marked[@]}" 2>&1 | tee "$out/tests.log"
}

gpu_kernels() {
  local quick=()
  if [ "$device" = cpu ]; then quick=(--quick); fi
  within_limit "$python" benchmarks/gpu_kernels.py --device "$device" --output "$out" "${quick[@]}"
}

training() {
  local quick=()
  if [ "$device" = cpu ]; then quick=(--quick); fi
  within_limit "$python" benchmarks/training.py --device "$device" --output "$out" "${quick[@]}"
}

network_cdg() {
  within_limit "$python" benchmarks/network_cdg.py --device "$device" --output "$out"
}

unpacked_data() {
  local packed
  for packed in "$GRADLAB_DATA"/*/*.xz; do
    if [ -f "$packed" ] && [ ! -f "${packed%.xz}" ]; then
      "$python" -c 'import lzma, shutil, sys
shutil.copyfileobj(lzma.open(sys.argv[1]), open(sys.argv[2], "wb"), 1 << 20)' "$packed" "${packed%.xz}"
    fi
  done
}

# train NAME [KEY=VALUE…]: as far as the time goes; its log, curve and summary are kept in any case.
train() {
  local name=$1 status file
  unpacked_data
  within_limit "$python" -m gradlab train "$@" "loop.device=$device" --results "$runs"
  status=$?
  mkdir -p "$out/training/$name"
  for file in log.csv summary.json spec.json environment.json learning_curve.png learning_curve.csv; do
    if [ -f "$runs/$name/$file" ]; then cp "$runs/$name/$file" "$out/training/$name/"; fi
  done
  return "$status"
}

# network_sweep NAME
network_sweep() {
  unpacked_data
  with_store "$1" "$python" -m gradlab run "$1" "objective.device=$device" --results "$work" \
    -j "$jobs" --no-report
}

population() {
  within_limit "$python" benchmarks/population.py --device "$device" --output "$out" \
    --members 512 --batch-size 160000 --depth 3
}

local_nes() {
  with_store cost_quality "$python" benchmarks/local_nes.py --device "$device" --output "$out" \
    --results "$work" --jobs "$jobs"
}

# lr_by_num_dim NUM_DIM INITS BATCHES
lr_by_num_dim() {
  with_store lr_by_num_dim "$python" -m gradlab run lr_by_num_dim "objective.device=$device" \
    "objective.num_dim=[$1]" "inits=$2" "batches=$3" --results "$work" -j "$jobs" --no-report
}

all_steps() {
  local num_dim size name
  for name in check tests training; do step "$name" "$name"; done
  for name in cifar10_wide cifar10 cifar10_real_weights cifar10_binarized; do
    step "train $name" train "$name" || true
  done
  for name in gpu_kernels network_cdg population local_nes; do step "$name" "$name"; done
  for size in "1 1" "3 1" "3 3" "3 10"; do
    for num_dim in 32 8 2 4 16 64; do
      # shellcheck disable=SC2086  # two numbers
      step "lr_by_num_dim $num_dim $size" lr_by_num_dim $num_dim $size
    done
  done
  for name in gradient_by_depth layer_steps layer_local ste_to_nes loss_slice width_weight_decay; do
    step "sweep $name" network_sweep "$name"
  done
  for name in variational_cifar10 sparse_lenet5 sparse_vgg bayes_mnist bayes_networks \
    sparse_parameterization random_labels variational_cifar10_faithful gradient_variance; do
    step "sweep $name" network_sweep "$name"
  done
  for name in mnist_bayes mnist_bayesbinn; do step "train $name" train "$name" || true; done
}

if [ "$#" -eq 0 ]; then
  all_steps
else
  for name in "$@"; do
    case $name in
      check | tests | training | gpu_kernels | network_cdg | population | local_nes)
        step "$name" "$name" ;;
      cifar10* | mnist*) step "train $name" train "$name" ;;
      *) echo "unknown step '$name': give check, tests, training, gpu_kernels, network_cdg, population," \
          "local_nes, a training such as cifar10_wide, or none." >&2
        exit 2 ;;
    esac
  done
fi
