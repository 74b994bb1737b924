#!/usr/bin/env bash
# Prove a GPU machine in under ten minutes, and write what was seen to a folder. See docs/gpu/README.md.
set -uo pipefail

usage() {
    cat << 'TEXT'
usage: benchmarks/gpu.sh [--environment NAME | --python PATH] [--out DIR] [--cpu]

Run the preflight, all checks and controls, then the checks of what users train with and the throughput, on the GPUs of this
machine. Write the reports, their logs and summary.md, which says what was not run, to DIR.

  --environment NAME  Install this environment from its lock, and prove it (default: qwen2.5-vl). Requires nox[uv].
  --python PATH       Prove what this Python has installed, without a lock; nothing is installed there.
  --out DIR           A new or empty folder (default: build/gpu/DATE).
  --cpu               Try this script without a GPU. What it writes proves nothing about GPUs.

Environment variable GPU_BUDGET: seconds for all steps together (default: 570). A step that runs out of them is interrupted.
Exit code: 0 when every step passed, 1 when one failed or was not reached, 2 when nothing could start.
TEXT
}

refuse() {
    echo "gpu.sh: $1" >&2
    exit 2
}

MORE="trainer,real sizes,attention,LoRA,frozen vision tower,cpu ops,offload,throughput,liger"
environment=qwen2.5-vl python="" out="" device=cuda budget=${GPU_BUDGET:-570}
while [ $# -gt 0 ]; do
    case $1 in
        --environment | --python | --out)
            [ $# -gt 1 ] || refuse "$1: expected a value, found none; see --help"
            declare "${1#--}=$2"
            shift
            ;;
        --cpu) device=cpu ;;
        -h | --help) usage && exit 0 ;;
        *) refuse "$1: unknown option; see --help" ;;
    esac
    shift
done
[[ $budget =~ ^[1-9][0-9]*$ ]] || refuse "GPU_BUDGET: expected seconds, found $budget; give a number"
start_folder=$PWD
[ -z "$python" ] || python=$(command -v -- "$python") || refuse "--python: expected an interpreter, found none; give its path"
[[ $python != */* || $python == /* ]] || python=$start_folder/$python
[ -z "$out" ] || [[ $out == /* ]] || out=$start_folder/$out
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit 2
out=${out:-$PWD/build/gpu/$(date -u +%Y%m%dT%H%M%SZ)}
[ -z "$(ls -A -- "$out" 2> /dev/null)" ] || refuse "$out: expected a new or empty folder, found files; give another --out"
# WSL2 has a device of its own.
if [ "$device" = cuda ] && ! compgen -G "${SMOKEHOUSE_DEV:-/dev}/nvidia[0-9]*" > /dev/null && [ ! -e "${SMOKEHOUSE_DEV:-/dev}/dxg" ]; then
    refuse "no GPU: expected /dev/nvidia0, found none; start the container with --gpus all, or try the script with --cpu"
fi
if [ -z "$python" ] && ! command -v nox > /dev/null; then
    refuse "nox: not found; run: pip install \"nox[uv]\", or give --python what is installed"
fi
mkdir -p -- "$out" || refuse "$out: cannot be made; give another --out"

began=$SECONDS worst=0
summary=$out/summary.md

# Run a step, a name and a command, with what is left of the budget; its output goes to NAME.log and this terminal.
step() {
    local name=$1 left=$((budget - SECONDS + began)) step_began=$SECONDS code
    shift
    if [ "$left" -lt 1 ]; then
        echo "| $name | not run: the budget of $budget s was used up | |" >> "$summary"
        worst=1
        return
    fi
    # Ctrl-C lets a smoke test end its ranks and write the report of what it has.
    timeout --foreground --signal=INT --kill-after=30 "$left" "$@" 2>&1 < /dev/null | tee -- "$out/$name.log"
    code=${PIPESTATUS[0]}
    case $code in
        0) verdict=passed ;;
        124 | 137) verdict="interrupted after $left s, the rest of the budget" ;;
        *) verdict="failed, exit code $code" ;;
    esac
    [ "$code" -eq 0 ] || worst=1
    echo "| $name | $verdict | $((SECONDS - step_began)) s |" >> "$summary"
}

# Run a smoke test with options and its report in the folder NAME.
smoke() {
    local name=$1
    shift
    if [ -n "$python" ]; then
        step "$name" env PYTHONDONTWRITEBYTECODE=1 "$python" -m smoke_tests --here "$@" --device "$device" --report "$out/$name"
    else
        step "$name" nox -s smoke -- "$environment" "$@" --device "$device" --report "$out/$name"
    fi
}

# nvidia-smi hangs where the driver does.
{
    echo "commit: $(git rev-parse HEAD 2> /dev/null || echo unknown)$(git diff --quiet HEAD 2> /dev/null || echo ', changed')"
    uname -srm
    if command -v nvidia-smi > /dev/null; then
        timeout 30 nvidia-smi --query-gpu=index,name,driver_version,memory.total,memory.used --format=csv
        timeout 30 nvidia-smi topo -m
    else
        echo "nvidia-smi: not found"
    fi
} 2>&1 | tee -- "$out/machine.log"

{
    if [ "$device" = cuda ]; then echo "# GPU run"; else echo "# Trial on a CPU: it proves nothing about GPUs"; fi
    echo
    if [ -n "$python" ]; then what="what $python has installed, without a lock"; else what="the environment $environment"; fi
    echo "$(date -u +%FT%TZ), $what"
    echo
    echo "| step | verdict | time |"
    echo "|---|---|---|"
} > "$summary"

if [ -n "$python" ]; then
    step preflight env PYTHONDONTWRITEBYTECODE=1 "$python" -m smoke_tests preflight --device "$device" --measure
else
    step preflight nox -s doctor -- "$environment"
fi
smoke proof
smoke more --only "$MORE"

# The table of a report, in a process that needs nothing but Python.
table() {
    [ -f "$out/$1/report.json" ] || return 0
    echo
    echo "## $1"
    echo
    echo '```text'
    NO_COLOR=1 "${python:-python3}" -B -m smoke_tests.report "$out/$1/report.json"
    echo '```'
}
{
    table proof
    table more
    echo
    echo "## Never run by this script"
    echo
    echo "- Several machines, and links between them."
    echo "- Real checkpoints: the model is a tiny synthetic one, unless smoke is run with --checkpoint."
    echo "- Comparison of speed: throughput is reported and not judged."
} >> "$summary"
echo
cat -- "$summary"
echo "written: $out"
exit "$worst"
