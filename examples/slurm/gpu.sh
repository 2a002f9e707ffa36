#!/bin/bash
# Embed stores on all GPUs of a node, one worker on each:
#
#   sbatch examples/slurm/gpu.sh stores --encoder uni --weights uni.bin
#
# Which GPUs they are Slurm says (CUDA_VISIBLE_DEVICES); cytofm counts within them.
#SBATCH --job-name=cytofm-embed
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=32
#SBATCH --mem=128G
#SBATCH --time=8:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR2@120
set -u
gpus=$(tr ',' '\n' <<< "$CUDA_VISIBLE_DEVICES" | grep -c .)

srun --cpus-per-task="$SLURM_CPUS_PER_TASK" cytofm embed "$@" --gpus "$gpus"
rc=$?
if [ $rc -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
  sleep 60
fi
exit $rc
