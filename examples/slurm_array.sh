#!/bin/bash
# A cohort as a Slurm array: each task does its share, found from Slurm's own variables.
#
#   sbatch --array=1-8 examples/slurm_array.sh subjects.txt out
#   sbatch --array=1-8 examples/slurm_array.sh BIDS_DIR out
#
# The task that is through last writes out/summary.tsv of all shares. A task whose node is lost is
# queued again by Slurm; one that ran out of time or memory can be submitted again. What is done is
# kept. A task that ends with 6 did all it could: its log names the subjects that failed, and why.
# To run a container instead, set MMCCD, for example:
#   sbatch --export=ALL,MMCCD='apptainer run --cleanenv mmccd.sif' ...   (add --nv for a GPU)
#SBATCH --job-name=mmccd
#SBATCH --cpus-per-task=4
#SBATCH --mem=6G
#SBATCH --time=04:00:00
#SBATCH --output=mmccd-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail

what=${1:?give a list of folders, one a line, or a BIDS data set}
out=${2:?give the folder of the results}
read -ra mmccd <<<"${MMCCD:-mmccd}"
common=(--resume --threads "${SLURM_CPUS_PER_TASK:-1}")

if [[ ! -d $what ]]; then
    exec "${mmccd[@]}" segment --from "$what" --out-dir "$out" "${common[@]}"
fi
status=0
"${mmccd[@]}" bids "$what" "$out" participant "${common[@]}" || status=$?
if ((status == 0 || status == 6)); then
    # It ends with 6 where a session failed in any task; this task ends as its own share did.
    group=0
    "${mmccd[@]}" bids "$what" "$out" group || group=$?
    ((group == 0 || group == 6)) || exit "$group"
fi
exit "$status"
