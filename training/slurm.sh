#!/usr/bin/env bash
# Runs a command as one worker of a Slurm job, with TF_CONFIG made from Slurm's own variables:
#   srun --ntasks-per-node=1 training/slurm.sh .venv/bin/python training/run.py --recipe imagenet --run-dir /shared/run
set -euo pipefail
workers=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/.*/\"&:${COVKERAS_PORT:-12345}\"/" | paste -sd, -)
export TF_CONFIG="{\"cluster\": {\"worker\": [$workers]}, \"task\": {\"type\": \"worker\", \"index\": $SLURM_PROCID}}"
exec "$@"
