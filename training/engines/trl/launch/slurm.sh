#!/usr/bin/env bash
# One backbone an array task:
#
#   RUN=runs/support BACKBONES="faithful brief plain" sbatch --array=0-2 launch/slurm.sh
#
# Started again, it goes on with what is not finished.
#SBATCH --job-name=bones
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
: "${RUN:?RUN is the directory that train-backbones sft made}" "${BACKBONES:?BACKBONES names the objectives}"
read -ra names <<<"$BACKBONES"
name="${names[$SLURM_ARRAY_TASK_ID]:?--array is 0 to $((${#names[@]} - 1))}"
launch="${LAUNCH:-$SLURM_SUBMIT_DIR/launch}" # slurmd runs a copy of this file from somewhere else
ACCELERATE="${ACCELERATE:-$launch/fsdp.yaml}" exec "$launch/backbone" "$RUN" "$name" --dtype bfloat16 "$@"
