#!/usr/bin/env bash
# This machine's part of a training run on several. Start it on each of them, in the same folder or a copy of it:
#
#   bash machine.sh FIRST:PORT MACHINES ARGUMENTS...
#   bash machine.sh gpu1:29400 2 --config base --data.train corpus --output runs/base
#
# FIRST is the name or address by which all reach one of them, on which PORT is free; MACHINES says how many there are.
# ARGUMENTS are those of `electra-fast pretrain`. --resume is added: started again, the run goes on.
# SIGTERM to this process saves a checkpoint, stops the run on all machines, and ends them.
#
# PROCESSES: on this machine; default: one for each GPU, without GPUs one.
# RESTARTS: how often torchrun starts all ranks again by itself after one was lost; default 3.
set -euo pipefail

if [ $# -lt 3 ]; then
  echo "usage: bash machine.sh FIRST:PORT MACHINES ARGUMENTS..." >&2
  exit 2
fi
first=$1 machines=$2
shift 2

if [ -z "${PROCESSES:-}" ]; then
  PROCESSES=$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')
fi
# Threads for each process; torchrun would take 1.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(python -c "import os; print(max(1, (os.cpu_count() or 1) // $PROCESSES))")}"
# After SIGTERM a checkpoint is written: torchrun must wait longer than its 30 seconds before it kills.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}"

exec torchrun \
  --nnodes "$machines" --nproc-per-node "$PROCESSES" --max-restarts "${RESTARTS:-3}" \
  --rdzv-backend c10d --rdzv-id electra-fast --rdzv-endpoint "$first" \
  --no-python electra-fast pretrain "$@" --resume
