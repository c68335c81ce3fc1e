#!/usr/bin/env bash
# Slurm: four whole nodes of four GPUs each, one Ray node on each of them, and the run on the first.
#
#   rayd data fetch cifar10 --data-root /shared/data         # once, on the login node; of ImageNet-1k, 'rayd data list' says where it must lie
#   sbatch clusters/slurm.sh distill edc-imagenet-1k-ipc10 --out /shared/runs/edc
#   sbatch clusters/slurm.sh distill edc-imagenet-1k-ipc10 --out /shared/runs/edc --resume     # after a time limit or a failure
#   rayd status /shared/runs/edc                                                               # from any machine that sees it
#
# To change: nodes, GPUs, CPUs of a node (--cpus-per-task), time, partition; the virtual environment, data and cache, which all nodes must see.
#SBATCH --job-name=rayd
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail

source "${RAYD_VENV:-$HOME/venv}/bin/activate"
export RAYD_DATA="${RAYD_DATA:-/shared/data}" RAYD_CACHE="${RAYD_CACHE:-/shared/cache}"

# a token of this job's own: srun hands the environment to every node
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# not the address of the name, which is 127.0.1.1 on stock Debian and Ubuntu
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" \
    hostname --all-ip-addresses | cut -d ' ' -f 1):6379
gpus=${SLURM_GPUS_ON_NODE:-4}
cpus=${SLURM_CPUS_PER_TASK:-64}
# a step inherits --cpus-per-task only from here since Slurm 22.05
export SRUN_CPUS_PER_TASK="$cpus"

srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" \
    ray symmetric-run --address "$address" --min-nodes "$SLURM_NNODES" --num-gpus "$gpus" --num-cpus "$cpus" -- \
    rayd "$@" --address auto --workers "$((SLURM_NNODES * gpus))" resources.gpus_per_worker=1 \
    resources.cpus_per_worker="$((cpus / gpus))"
