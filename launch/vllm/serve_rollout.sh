#!/usr/bin/env bash
# Serves a checkpoint to a trainer with vLLM on this machine's GPUs (see README.md beside this file).
#
#   serve_rollout.sh CHECKPOINT [ARGUMENT OF VLLM]...
#
# CHECKPOINT is a folder or a name of the hub. Settings, all optional, come from the environment:
#   VLLM_PYTHON      the interpreter that has vLLM (python3)
#   SYNC             how weights come: nccl, from GPU to GPU, or folder (nccl)
#   WEIGHTS_FOLDER   for SYNC=folder: where the trainer leaves them, the same folder on both sides
#   TENSOR_PARALLEL  GPUs that share one copy of the model (1)
#   DATA_PARALLEL    copies of the model (1); GPUs that are used = TENSOR_PARALLEL x DATA_PARALLEL
#   HOST             where to listen (127.0.0.1); any other needs a key
#   PORT             (8000)
#   RLROUTE_VLLM_KEY the key that requests must carry (none)
#   SERVED_NAME      the model's name in requests (policy)
#   DTYPE (bfloat16)  MAX_MODEL_LEN (4096)  MAX_NUM_SEQS (256)  GPU_MEMORY (0.9)
set -euo pipefail

fail() {
    echo "serve_rollout.sh: $*" >&2
    exit 1
}

checkpoint=${1:-}
[[ -n $checkpoint ]] || fail "name a checkpoint"
shift
sync=${SYNC:-nccl}
update=(--sync "$sync")
if [[ $sync == folder ]]; then
    [[ -n ${WEIGHTS_FOLDER:-} ]] || fail "SYNC=folder: set WEIGHTS_FOLDER"
    update+=(--weights-folder "$WEIGHTS_FOLDER")
fi

source=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PYTHONPATH=$source${PYTHONPATH:+:$PYTHONPATH} # vLLM's environment need not have rlroute
export VLLM_NO_USAGE_STATS=1
# the key goes through the environment: an argument stands in the process list
[[ -z ${RLROUTE_VLLM_KEY:-} ]] || export VLLM_API_KEY=$RLROUTE_VLLM_KEY

exec "${VLLM_PYTHON:-python3}" -m rlroute.rollout.vllm_server "${update[@]}" -- \
    --model "$checkpoint" --served-model-name "${SERVED_NAME:-policy}" \
    --host "${HOST:-127.0.0.1}" --port "${PORT:-8000}" \
    --tensor-parallel-size "${TENSOR_PARALLEL:-1}" --data-parallel-size "${DATA_PARALLEL:-1}" \
    --dtype "${DTYPE:-bfloat16}" --max-model-len "${MAX_MODEL_LEN:-4096}" \
    --max-num-seqs "${MAX_NUM_SEQS:-256}" --gpu-memory-utilization "${GPU_MEMORY:-0.9}" "$@"
