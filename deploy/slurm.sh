#!/bin/bash
# sbatch deploy/slurm.sh
#SBATCH --job-name=batch-inference
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --time=04:00:00
set -euo pipefail

PATH="/shared/gpu-batch-inference/.venv/bin:$PATH"
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export RAY_ADDRESS="${nodes%%$'\n'*}:6379"  # the first node
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
export RAY_AUTH_MODE=token
ray get-auth-token --generate >/dev/null  # in the home folder, which the nodes share

srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  ray symmetric-run --address "$RAY_ADDRESS" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "$SLURM_GPUS_ON_NODE" -- \
  python -m snippets.optimization.production --manifest /shared/images/manifest.parquet \
  --model microsoft/resnet-50@34c2154c194f829b11125337b98c8f5f9965ff19 \
  --output "/shared/predictions/$SLURM_JOB_ID"  # the same when it is requeued
