#!/usr/bin/env bash
# Everything that wants a GPU, most wanted first; whatever fails or is cut off, the rest goes on and
# what was found is kept.
#
#     tests/gpu_session.sh [FOLDER]               here, with an NVIDIA GPU, cupy and the [test] extra
#     tests/gpu_session.sh --rehearse [FOLDER]    without a GPU, over the simulator, at tiny sizes
#
# FOLDER (gpu_results by default) gets a log and a JSON file of each part, and table.md.
set -u
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

rehearse=()
if [ "${1:-}" = --rehearse ]; then
    rehearse=(--stand-in --size tiny)
    shift
fi
out=${1:-gpu_results}
mkdir -p "$out"
failed=()

part() { # name, seconds at most, command
    local name=$1 limit=$2
    shift 2
    printf '\n--- %s   (%d s since the start)\n' "$name" "$SECONDS"
    timeout -k 10 "$limit" "$@" 2>&1 | tee "$out/$name.log" | tail -n 40
    local code=${PIPESTATUS[0]}
    [ "$code" -eq 0 ] && return
    failed+=("$name ($code)")
    [ -e "$out/$name.json" ] || note "$name" "ended with status $code"
}

note() { # name, what is to be said of it in the table
    python - "$out/$1.json" "$1" "$2" <<'PYTHON'
import datetime, json, subprocess, sys

path, name, text = sys.argv[1:]
commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
about = {"device": "-", "driver": "-", "date": datetime.date.today().isoformat(),
         "commit": commit.stdout.strip()}
json.dump({"about": about, "rows": {name: {"note": text}}}, open(path, "w"))
PYTHON
}

measure() { # part of the benchmark, seconds at most
    part "$1" "$2" python tests/benchmarks/gpu.py "$1" --json "$out/$1.json" "${rehearse[@]}"
}

if [ ${#rehearse[@]} -gt 0 ]; then
    part tests 60 pytest -q -n0 -m gpu tests/test_cuda_graph.py
else
    part tests 900 pytest -q -m gpu tests --ignore=tests/oracles  # which are for the CPU
fi
measure kernels 600
measure train-15M 300
measure train-125M 300
measure decode 300
measure som 300
measure train-1B 600
measure graph 300
if [ ${#rehearse[@]} -gt 0 ] || ! command -v compute-sanitizer >/dev/null; then
    note sanitizer "compute-sanitizer is not here"
else
    part memcheck 900 compute-sanitizer --tool memcheck --error-exitcode 9 \
        python -m pytest -q -n0 -m gpu tests/test_cuda_kernels.py
    part racecheck 900 compute-sanitizer --tool racecheck --error-exitcode 9 \
        python -m pytest -q -n0 -m gpu tests/test_cuda_kernels.py
fi
python tests/benchmarks/gpu.py table "$out"/*.json | tee "$out/table.md"
printf '\n%d s; ' "$SECONDS"
[ ${#failed[@]} -eq 0 ] && { echo "every part ended well"; exit 0; }
echo "not well: ${failed[*]}"
exit 1
