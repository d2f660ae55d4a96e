#!/usr/bin/env bash
# Everything that needs a GPU, on a machine that may have no network: it uses the Python, torch (2.11 or
# newer) and nvcc that it finds, and builds in place.
#
#   scripts/gpu_check.sh OUTDIR [build|test|sanitize|bench|all]
#
# Logs, JSON and the commit they belong to go to OUTDIR. Every stage ends within 9 minutes; `all` (the
# default) is the build and a selection of each of the others within 9 minutes.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?"usage: scripts/gpu_check.sh OUTDIR [build|test|sanitize|bench|all]"}
stage=${2:-all}
mkdir -p "$out"
status=0

run() {  # run NAME SECONDS COMMAND...: the log goes to OUTDIR/NAME.log, a failure is remembered
  local name=$1 seconds=$2
  shift 2
  echo "== $name: $*"
  timeout "$seconds" "$@" > "$out/$name.log" 2>&1
  local code=$?
  tail -n 5 "$out/$name.log"
  echo "== $name: exit $code"
  [ $code -eq 0 ] || status=1
}

build() {
  export FASTCAM_CUDA=1 MAX_JOBS=${MAX_JOBS:-$(nproc)}
  run build 500 python3 setup.py build_ext --inplace
}

sanitize() {  # sanitize TESTS
  local tool
  if ! command -v compute-sanitizer > /dev/null; then
    echo "== sanitize: compute-sanitizer is not installed, skipped"
    return
  fi
  for tool in memcheck racecheck; do
    run "sanitize-$tool" 250 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      python3 -m pytest -q -p no:cacheprovider tests/test_operators.py -k "cuda and ($1)"
  done
}

bench() { run bench-capture 500 python3 -m benchmarks capture --json "$out/capture.jsonl"; }

{
  git rev-parse HEAD
  nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
  python3 -c "import torch; print('torch', torch.__version__, 'CUDA', torch.version.cuda)"
} > "$out/machine.txt" 2>&1
cat "$out/machine.txt"

case $stage in
  build) build ;;
  test) run test 540 python3 -m pytest -q -k "cuda or device" ;;
  sanitize) sanitize "opcheck or nan_stays or overlay or same_bits" ;;
  bench) bench ;;
  all)
    build
    run test 200 python3 -m pytest -q tests/test_operators.py -k cuda
    sanitize "nan_stays"
    bench
    ;;
  *)
    echo "unknown stage: $stage" >&2
    exit 2
    ;;
esac
exit $status
