#!/usr/bin/env bash
# Measures the published form of inference against ours on this machine's NVIDIA GPU, in one command:
#
#   benchmarks/gpu.sh [SHAPE] [further arguments of `python -m benchmarks.pipeline`]
#
# SHAPE is sd21 (default), sd15 or embedded. Takes 15 GB of disk and, with the engines built, some half an hour.
# PYTHON names an interpreter that has everything; without it one is set up in build/gpu-venv.
# Writes docs/gpu.json, docs/gpu-results.md and its plot.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "error: $1" >&2; exit 2; }

shape=${1:-sd21}
[ $# -gt 0 ] && shift
case $shape in sd21 | sd15 | embedded) ;; *) fail "shape: got '$shape', expected sd21, sd15 or embedded" ;; esac
command -v nvidia-smi > /dev/null || fail "nvidia-smi: not found; expected an NVIDIA GPU and its driver"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader ||
    fail "nvidia-smi: finds no GPU; its own words are above"

if [ -z "${PYTHON:-}" ]; then
    venv=build/gpu-venv
    if [ ! -e $venv/.installed ]; then
        python3 -m venv $venv
        $venv/bin/pip install --quiet --constraint constraints.txt --editable '.[optimize,export,gpu]'
        touch $venv/.installed
    fi
    PYTHON=$venv/bin/python
fi
"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    fail "torch of $PYTHON: sees no GPU; expected a build for CUDA that this driver knows (https://pytorch.org/get-started)"

export HF_HUB_OFFLINE=1
exec "$PYTHON" -m benchmarks.pipeline --shape "$shape" --device cuda --json docs/gpu.json --page docs/gpu-results.md "$@"
