#!/usr/bin/env bash
# Everything that needs a GPU, on a machine that may have no network: it uses the Python ($PYTHON, or
# python3), torch (2.11 or newer) and nvcc that it finds, and builds in place for that GPU.
#
#   scripts/gpu_check.sh OUTDIR [build|test|sanitize|bench|all]
#
# Logs, JSON, plots and the commit they belong to go to OUTDIR; FASTCAM_COMMIT names the commit where
# the files came without their history. Every stage ends within 9 minutes; `all` (the default) is the
# build and a selection of each of the others within 9 minutes. The exit status is 0 if nothing failed.
set -uo pipefail
cd "$(dirname "$0")/.."
usage="usage: scripts/gpu_check.sh OUTDIR [build|test|sanitize|bench|all]"
out=${1:?"$usage"}
stage=${2:-all}
python=${PYTHON:-python3}
mkdir -p "$out"
FASTCAM_COMMIT=${FASTCAM_COMMIT:-$(git describe --always --abbrev=12 --dirty=+ 2> /dev/null || echo unknown)}
export FASTCAM_COMMIT PYTHONUNBUFFERED=1
status=0

run() {  # run NAME SECONDS COMMAND...: the log goes to OUTDIR/NAME.log, a failure is remembered
  local name=$1 seconds=$2
  shift 2
  echo "== $name: $*"
  timeout --kill-after=10 "$seconds" "$@" > "$out/$name.log" 2>&1
  local code=$?
  tail -n "${lines:-5}" "$out/$name.log"
  echo "== $name: exit $code"
  if [ "$code" -eq 124 ] && [ -n "${may_be_cut_off:-}" ]; then
    echo "== $name: cut off after $seconds s; what was finished is kept"
  elif [ "$code" -ne 0 ]; then
    status=1
  fi
}

tests() {  # tests NAME SECONDS ARGUMENTS...
  local name=$1 seconds=$2
  shift 2
  run "$name" "$seconds" "$python" -m pytest -q -p no:cacheprovider "$@"
}

build() {  # build SECONDS
  FASTCAM_CUDA=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} \
    run build "$1" "$python" setup.py build_ext --inplace
}

sanitize() {  # sanitize SECONDS TESTS: each tool may take so long
  local tool
  if ! command -v compute-sanitizer > /dev/null; then
    echo "== sanitize: compute-sanitizer is not installed, skipped"
    return
  fi
  for tool in memcheck racecheck; do
    # every tensor an allocation of its own, so that a step beyond its end is seen
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      run "sanitize-$tool" "$1" compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" -m pytest -q -p no:cacheprovider tests/test_operators.py -k "cuda and ($2)"
  done
}

bench() {  # bench NAME SECONDS SUITE ARGUMENTS...
  local name=$1 seconds=$2
  shift 2
  lines=40 may_be_cut_off=1 run "bench-$name" "$seconds" \
    "$python" -m benchmarks "$@" --device cuda --json "$out/$name.jsonl"
  [ -s "$out/$name.jsonl" ] || status=1
}

{
  echo "$FASTCAM_COMMIT"
  nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
  "$python" -c "import torch; print('torch', torch.__version__, 'CUDA', torch.version.cuda)"
} > "$out/machine.txt" 2>&1
cat "$out/machine.txt"

case $stage in
  build) build 520 ;;
  test)
    tests test-cuda 330 -k cuda
    tests test-others 190 -k "not cuda and not cpu"
    ;;
  sanitize) sanitize 250 "opcheck or nan_stays or overlay or same_bits" ;;
  bench)
    bench ops 280 ops
    FASTCAM_CLUSTERS=1 bench ops-clusters 70 ops --only cam
    bench capture 50 capture
    bench endtoend 90 endtoend
    ;;
  all)
    build 200
    tests test-cuda 90 tests/test_cuda.py tests/test_operators.py -k cuda
    sanitize 50 "nan_stays and gradcam"
    bench ops 60 ops --only float32
    bench capture 25 capture --only gradcam
    bench endtoend 25 endtoend --only resnet50
    ;;
  *)
    echo "$usage" >&2
    exit 2
    ;;
esac
exit $status
