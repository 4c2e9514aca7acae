#!/bin/bash
# Many subjects on one computer with GNU parallel, one process each.
#
#   examples/parallel.sh data out 4
#
# One call of `mmccd segment data/*/ --out-dir out` loads the weights once, and is the better
# choice with one GPU or few cores; this is for many cores.
set -euo pipefail

data=${1:?give the folder that holds one folder for each subject}
out=${2:?give the folder of the results}
jobs=${3:-2}

mkdir -p "$out"
find "$data" -mindepth 1 -maxdepth 1 -type d -print0 |
    parallel --null --jobs "$jobs" --joblog "$out/parallel.log" \
        mmccd segment {} --out "$out/{/}.nii.gz" --resume --threads 1 --quiet
