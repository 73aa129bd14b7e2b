#!/usr/bin/env bash
# Tests and measures on a machine with a CUDA GPU, in under nine minutes, without network or further packages:
#   bash benchmarks/gpu.sh
# Needs Python 3.10+, torch, triton, transformers, pytest, pytest-benchmark, setuptools, pybind11; not the libraries of
# the command line. Results go to $OUT, or benchmarks/results/. The commit is taken from git, or $ELECTRA_FAST_COMMIT.
# --dry-run takes the same path on a machine without a GPU: GPU tests are skipped, the benchmarks run at CPU sizes.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
RESULTS=${OUT:-benchmarks/results}
LOGS=${OUT:-build}
SECONDS_IN_ALL=${SECONDS_IN_ALL:-500}
DRY_RUN=
case ${1:-} in
    "") ;;
    --dry-run) DRY_RUN=1 ;;
    *) echo "usage: bash benchmarks/gpu.sh [--dry-run]" >&2; exit 2 ;;
esac
unset TRITON_INTERPRET ELECTRA_FAST_BACKEND  # either would test and measure something else
export PYTHONUNBUFFERED=1
mkdir -p "$RESULTS" "$LOGS"
FAILED=()
exec 3>&1  # the screen, for steps whose output goes to a file

# step NAME MOST_SECONDS COMMAND...: run it within what is left of the time; SIGINT lets pytest still write its results.
step() {
    local name=$1 most=$2 left=$((SECONDS_IN_ALL - SECONDS))
    shift 2
    ((left < most)) && most=$left
    ((most < 15)) && most=15
    echo "== $name (at most $most s, $SECONDS s gone)" >&3
    timeout --signal=INT --kill-after=15 "$most" "$@"
    local code=$?
    ((code == 124 || code == 137)) && echo "$name was stopped after $most s: what it had by then is kept" >&3
    ((code == 0)) || FAILED+=("$name")
    return 0
}

echo "== this machine"
"$PYTHON" - "$DRY_RUN" <<'END' || exit 1
import platform
import sys
from importlib import metadata
from importlib.util import find_spec

needed = ("torch", "triton", "transformers", "pytest", "pytest_benchmark", "setuptools", "pybind11")
missing = [name for name in needed if find_spec(name) is None]
if missing:
    sys.exit(f"{sys.executable} lacks {', '.join(missing)}: set PYTHON to one that has them")
import torch

print("python", platform.python_version(), *(f"{name} {metadata.version(name)}" for name in needed), sep=", ")
if torch.cuda.is_available():
    print(torch.cuda.get_device_name(), "compute capability", torch.cuda.get_device_capability())
elif not sys.argv[1]:
    sys.exit(
        f"PyTorch {torch.__version__} sees no CUDA GPU: see whether nvidia-smi lists one, and whether this is a build of "
        "PyTorch for CUDA. To try the script without a GPU: bash benchmarks/gpu.sh --dry-run"
    )
END

step install 120 "$PYTHON" -m pip install --quiet --no-build-isolation --no-deps --disable-pip-version-check -e . \
    > "$LOGS/gpu-install.log" 2>&1
tail -n 5 "$LOGS/gpu-install.log"
# The build of the C++ kernels is optional: without them the CPU runs its references, which must not go unnoticed.
"$PYTHON" -c 'from electra_fast.ops import _backends; print("C++ kernels:", _backends._extension_error() or "built")'
step tests 220 "$PYTHON" -m pytest -m gpu --quiet --tb=short --maxfail=30 -rfE tests > "$LOGS/gpu-tests.log" 2>&1
tail -n 40 "$LOGS/gpu-tests.log"
RAW="$LOGS/benchmark.json"
rm -f "$RAW"
step benchmarks 400 "$PYTHON" -m pytest benchmarks --benchmark-only --benchmark-json="$RAW" --quiet --tb=short -rfE \
    > "$LOGS/gpu-benchmarks.log" 2>&1
grep -E "^(FAILED|ERROR|E  )|passed|failed" "$LOGS/gpu-benchmarks.log" | tail -n 40

if [[ -s $RAW ]]; then
    step report 30 "$PYTHON" -m benchmarks.report --save --results "$RESULTS" --print "$RAW"
fi
echo "$SECONDS s; failed: ${FAILED[*]:-nothing}; logs in $LOGS, results in $RESULTS"
((${#FAILED[@]} == 0))
