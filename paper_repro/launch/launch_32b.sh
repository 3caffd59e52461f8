#!/usr/bin/env bash
# The reproduction of the paper's experiment: Qwen2.5-32B base, T-PPO against PPO, 8 nodes of 8 GPUs with 80 GB each.
# Run this on every node at about the same time; launch/reproduce_32b.slurm does that. It has not been run at this size.
#
#   HEAD=node1 OUT=/shared/32b DATA=/shared/data ./launch/launch_32b.sh
#
# The same command again goes on where it was stopped: finished stages are skipped, a run resumes from its newest
# checkpoint. Try the whole path first, on any machine, without a GPU:
#
#   python -m paper_repro.reproduction --size 32b --dry-run --out /tmp/dry
set -euo pipefail

# --- where ------------------------------------------------------------------------------------------------------------
OUT=${OUT:?set OUT to a folder that all nodes share}        # Stages, checkpoints, figures. See the README for its size.
DATA=${DATA:-}              # Folder with dapo-math-17k.parquet and aime-2024.parquet; empty reads them from the hub.
HEAD=${HEAD:?set HEAD to the host name of the first node}   # Where the nodes meet. All nodes must reach it.
PORT=${PORT:-29500}         # A free port of HEAD.
JOB=${JOB:-tppo-32b}        # Name of the meeting; two reproductions at a time need two names.

# --- how much ---------------------------------------------------------------------------------------------------------
SIZE=${SIZE:-32b}           # 7b with NODES=1, and 0.5b with NODES=1 GPUS=1, run by the same script.
NODES=${NODES:-8}           # The recipe's memory is planned for 64 GPUs: 16 GB a GPU for weights and moments.
GPUS=${GPUS:-8}             # A node. One copy of the policy generates on 8 GPUs (vllm.tensor_parallel), within a node.
SEEDS=${SEEDS:-1}           # Runs of each algorithm. The paper shows one.
STAGES=${STAGES:-data value tppo ppo evaluate figures}
EXTRA=${EXTRA:-}            # More arguments, such as "--set steps=100 --set checkpoint.every=5".

# --- when something dies ----------------------------------------------------------------------------------------------
RESTARTS=${RESTARTS:-3}     # A dead process ends its fellows; torchrun starts all again so often, and they resume.

# --- environment ------------------------------------------------------------------------------------------------------
PYTHON=${PYTHON:-python}                        # Of an environment with 'tppo[vllm,math,data]'.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}    # Threads of each of the GPUS processes of a node, on the CPU.
export HF_HOME=${HF_HOME:-$OUT/hub}             # Downloaded models; shared, so that one node downloads for all.
export TPPO_CACHE=${TPPO_CACHE:-$OUT/cache}     # What this package makes once.
# A restart must not find the addresses of dead processes in torchrun's store.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# vLLM's sleep mode has an allocator of its own, which expandable segments of torch exclude.
unset PYTORCH_CUDA_ALLOC_CONF PYTORCH_ALLOC_CONF

arguments=(--size "$SIZE" --out "$OUT" --seeds "$SEEDS")
if [[ -n $DATA ]]; then arguments+=(--data "$DATA"); fi
read -r -a more <<<"$EXTRA"

# Every stage has processes of its own: what one leaves on a GPU is gone before the next begins.
for stage in $STAGES; do
  echo "$(date -Is) $(hostname): stage $stage"
  "$PYTHON" -m torch.distributed.run \
    --nnodes "$NODES" --nproc-per-node "$GPUS" --max-restarts "$RESTARTS" \
    --rdzv-backend c10d --rdzv-endpoint "$HEAD:$PORT" --rdzv-id "$JOB-$stage" \
    -m paper_repro.reproduction "${arguments[@]}" --stages "$stage" ${more[@]+"${more[@]}"}
done
