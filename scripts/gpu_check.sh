#!/usr/bin/env bash
# Everything that needs a GPU, on a machine that may have no network: it uses the Python ($PYTHON, or
# python3), torch (2.11 or newer) and nvcc that it finds, and builds in place for that GPU.
#
#   scripts/gpu_check.sh OUTDIR [build|test|sanitize|bench|all]
#
# Logs, JSON, plots and the commit they belong to go to OUTDIR, and together into OUTDIR/gpu_check.tar.gz,
# also if the script is interrupted. FASTCAM_COMMIT names the commit if the files came without their
# history. Every stage ends within 9 minutes; `all` (the default) is the build and a selection of each of
# the others within 9 minutes. Nothing runs if the build fails. The exit status is 0 if nothing failed.
set -uom pipefail  # -m: what runs in the background takes SIGINT
cd "$(dirname "$0")/.."
usage="usage: scripts/gpu_check.sh OUTDIR [build|test|sanitize|bench|all]"
out=${1:?"$usage"}
stage=${2:-all}
python=${PYTHON:-python3}
mkdir -p "$out"
FASTCAM_COMMIT=${FASTCAM_COMMIT:-$(git describe --always --abbrev=12 --dirty=+ 2> /dev/null || echo unknown)}
export FASTCAM_COMMIT PYTHONUNBUFFERED=1
status=0

archive() {
  tar -czf "$out/gpu_check.tar.gz" --exclude=gpu_check.tar.gz -C "$out" .
}
child=
stop() {
  [ -n "$child" ] && kill -INT "$child" 2> /dev/null && wait "$child"
  exit 130
}
trap archive EXIT
trap stop INT TERM HUP

run() {  # run NAME SECONDS COMMAND...: the log goes to OUTDIR/NAME.log, a failure is remembered
  local name=$1 seconds=$2
  shift 2
  echo "== $name: $*"
  # SIGINT: pytest names what failed, a benchmark keeps what it has
  timeout --signal=INT --kill-after=20 "$seconds" "$@" > "$out/$name.log" 2>&1 &
  child=$!
  wait "$child"
  local code=$?
  child=
  tail -n "${lines:-5}" "$out/$name.log"
  echo "== $name: exit $code"
  if [ "$code" -eq 124 ] && [ -n "${may_be_cut_off:-}" ]; then
    echo "== $name: cut off after $seconds s; what was finished is kept"
  elif [ "$code" -ne 0 ]; then
    status=1
  fi
}

tests() {  # tests NAME SECONDS ARGUMENTS...: in parallel if pytest-xdist is there
  local name=$1 seconds=$2 parallel=()
  shift 2
  "$python" -c "import xdist" 2> /dev/null && parallel=(-n "${TEST_JOBS:-4}")
  run "$name" "$seconds" "$python" -m pytest -q -p no:cacheprovider -o faulthandler_timeout=60 \
    "${parallel[@]}" "$@"
}

build() {  # build SECONDS
  FASTCAM_CUDA=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} \
    run build "$1" "$python" setup.py build_ext --inplace
  if [ "$status" -ne 0 ]; then
    echo "== the build failed: nothing else runs"
    exit 1
  fi
}

sanitize() {  # sanitize SECONDS COUNT TESTS: each tool may take so long for the first COUNT of them
  local tool ids
  if ! command -v compute-sanitizer > /dev/null; then
    echo "== sanitize: compute-sanitizer is not installed, skipped"
    return
  fi
  mapfile -t ids < <("$python" -m pytest -q -p no:cacheprovider --collect-only tests/test_operators.py \
    -k "cuda and ($3)" | grep :: | head -n "$2")
  for tool in memcheck racecheck; do
    # every tensor an allocation of its own, so that a step beyond its end is seen
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      run "sanitize-$tool" "$1" compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" -m pytest -q -p no:cacheprovider "${ids[@]}"
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
  sanitize) sanitize 250 60 "opcheck or nan_stays or overlay or same_bits" ;;
  bench)
    bench ops 280 ops
    bench capture 50 capture
    bench endtoend 90 endtoend
    ;;
  all)
    build 200
    tests test-cuda 90 tests/test_cuda.py tests/test_operators.py -k cuda
    sanitize 50 8 "nan_stays and gradcam"
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
