#!/bin/bash
# Pretrain on two nodes; warned, it writes a checkpoint of that very step and is requeued:
#
#   sbatch examples/slurm/pretrain.sh stores run --method dinov2 --batch 1024
#
# PRETRAIN_PROCESSES: processes a node [the GPUs that Slurm shows]; PRETRAIN_HEAD: address of the
# first node, where its name does not lead to it; PRETRAIN_LAUNCH: more words for torchrun.
#SBATCH --job-name=cytofm-pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR2@180
set -u
stores=$1 run=$2
shift 2
processes=${PRETRAIN_PROCESSES:-$(tr ',' '\n' <<< "${CUDA_VISIBLE_DEVICES:-0}" | grep -c .)}
head=${PRETRAIN_HEAD:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)}
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / processes))
# Else a restart meets the addresses of the processes before it.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# torchrun hands on these signals alone, and only if it is told.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 torchrun \
  --nnodes="$SLURM_NNODES" --nproc-per-node="$processes" --max-restarts=3 --shutdown-timeout=60 \
  --rdzv-backend=c10d --rdzv-endpoint="$head:$((20000 + SLURM_JOB_ID % 20000))" \
  --rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" ${PRETRAIN_LAUNCH:-} \
  --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2 \
  -m cytofm_cli pretrain "$stores" -o "$run" "$@"
rc=$?
# torchrun's own exit code does not tell a warning from a failure; this file does.
if [ -e "$run/stopped" ]; then
  scontrol requeue "$SLURM_JOB_ID"
  sleep 60
fi
exit $rc
