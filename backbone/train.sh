#!/usr/bin/env bash
# One command that trains the embedded backbone, on a GPU when there is one, and leaves what it made in files small
# enough to fetch from a rented machine: at most 8 of at most 16 MiB, 64 MiB together, in $OUT.
#
#     backbone/train.sh                                    25 minutes, from where $STATE stands
#     SHARDS_IN=fetched OUT=results backbone/train.sh      go on, on a fresh machine, from shards fetched earlier
#     python backbone/train.py --unpack results --no-train --state NEW     weights from shards, wherever they went
#
# Environment: MINUTES (25; 0 for no limit), STEPS, SCENES, BATCH (train.py's choice), OUT (build/backbone-shards),
# SHARDS_IN (none), STATE (build/backbone), WEIGHTS (backbone/weights), PYTHON (python3), ARGUMENTS (more for train.py).
#
# Needs torch, diffusers, transformers, tokenizers and tqdm; not an installed slime-serve.
# The weights that ship were trained on an H200 by this recipe, in 3,076 steps of 256 pictures, under five minutes, by a
# forerunner of this code (docs/backbone/trials.md says what differed). This code's own CUDA path (one graph a step,
# bfloat16) HAS NOT RUN ON A GPU: begin with MINUTES=3 and look at the loss. On CPUs it has run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
state=${STATE:-build/backbone}
out=${OUT:-build/backbone-shards}
export PYTHONPATH="$PWD/backbone${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# glibc gives large buffers back to the kernel and faults them in again at every step otherwise
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=500000000

if ! "$python" -c 'import torch, diffusers, transformers, tokenizers, tqdm'; then
    echo "error: $python lacks a package named above; install them with: pip install -e '.[backbone]'" >&2
    exit 2
fi

options=(--state "$state" --out "${WEIGHTS:-backbone/weights}" --pack "$out" --minutes "${MINUTES:-25}")
[ -z "${STEPS:-}" ] || options+=(--steps "$STEPS")
[ -z "${SCENES:-}" ] || options+=(--scenes "$SCENES")
[ -z "${BATCH:-}" ] || options+=(--batch "$BATCH")
if [ -n "${SHARDS_IN:-}" ] && [ ! -e "$state/vae.pt" ]; then
    options+=(--unpack "$SHARDS_IN")
fi
# shellcheck disable=SC2086 # ARGUMENTS are words
exec "$python" backbone/train.py "${options[@]}" ${ARGUMENTS:-}
