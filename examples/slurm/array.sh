#!/bin/bash
# All steps of a cohort, its slides shared out over the tasks of an array:
#
#   sbatch examples/slurm/array.sh slides/ out
#
# A task that Slurm warns (time limit, preemption) stops between two writes and asks to be
# requeued; a requeued one skips what is finished. Use more tasks than run at a time (%8), and
# never one a slide: 10 000 tasks are more than most sites allow.
#SBATCH --job-name=cytofm
#SBATCH --array=0-31%8
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=4:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@120
set -u
slides=$1 out=$2
shift 2
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

# Under srun the warning reaches cytofm itself; started by the script it would not.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" cytofm run "$slides" -o "$out" --shard slurm "$@"
rc=$?
case $rc in
  75) # warned, a slide is held by another process, or the disk is full: run again later
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
    sleep 60 # until Slurm ends this run of it
    ;;
  4) # some slides cannot be used; out/failures.*.jsonl says why, and the others are done
    rc=0
    ;;
esac
exit $rc
