"""Starts vLLM's OpenAI server as a rollout server: exact log-probs, weights that can be replaced.

    python -m rlroute.rollout.vllm_server --weights-folder /dev/shm/weights -- --model CHECKPOINT
    python -m rlroute.rollout.vllm_server --sync nccl -- --model CHECKPOINT --tensor-parallel-size 2

Everything after `--` goes to vLLM. Added to it are: log-probs of the distribution that was sampled
from, sampling settings of the request only (a checkpoint's generation_config.json would add its
own), the backend that receives weights, and the address 127.0.0.1.

vLLM has its routes for weight updates only in its development mode, with others that run any method
of a worker or show the server's settings, and it asks for its key only below /v1. `ControlGate`,
which this module puts in front of the server, lets through what a rollout needs, and where there is
a key (`VLLM_API_KEY`) asks for it on every route but /health and /metrics. A server that other
machines can reach must have one.

Runs in vLLM's environment, which need not have rlroute installed: PYTHONPATH is enough. This module
imports nothing but the standard library and `rlroute.types`. It leaves out waiting for the start
and ending the server: launch/vllm/ has scripts.
"""

from __future__ import annotations

import argparse
import hmac
import json
import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from rlroute.types import RLRouteError

MODULE = "rlroute.rollout.vllm_server"  # __name__ is __main__ where it is run
FOLDER_KEY = "rlroute_weights_folder"  # in vLLM's --additional-config, which reaches every worker
SERVER_MODULE = "vllm.entrypoints.openai.api_server"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
OPEN_ROUTES = frozenset({"/health", "/metrics"})
ROUTES = OPEN_ROUTES | {
    *("/v1/completions", "/v1/chat/completions", "/v1/models", "/version"),
    *("/pause", "/resume", "/is_paused", "/reset_prefix_cache"),
    *("/init_weight_transfer_engine", "/start_weight_update", "/update_weights"),
    *("/finish_weight_update", "/update_weight_version", "/weight_info", "/get_world_size"),
}
OURS = (  # what this module decides; a second value would silently win
    *("--logprobs-mode", "--generation-config", "--weight-transfer-config", "--middleware"),
    *("--worker-extension-cls", "--additional-config", "--api-key"),
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class ControlGate:
    """ASGI middleware: refuses all routes but `ROUTES`, and requests without the server's key."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._key = os.environ.get("VLLM_API_KEY", "")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 404 or 401."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http" or scope["path"] not in ROUTES:
            await _refuse(send, 404, "this route is closed on a rollout server")
        elif scope["path"] in OPEN_ROUTES or self._has_key(scope):
            await self._app(scope, receive, send)
        else:
            await _refuse(send, 401, "the key is missing or wrong")

    def _has_key(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return not self._key or hmac.compare_digest(given, f"Bearer {self._key}".encode())


async def _refuse(send: Send, status: int, message: str) -> None:
    body = json.dumps({"error": {"message": message}}).encode("utf-8")
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def build_command(
    arguments: Sequence[str], *, sync: str, weights_folder: Path | None, has_key: bool
) -> list[str]:
    """Return the arguments of vLLM's server, those of the user first.

    Raises:
        RLRouteError: an argument is one that is decided here, the folder and the kind of update do
            not fit, or the server could be reached from outside and has no key.
    """
    options = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    for option in options:
        if option.replace("_", "-") in OURS:
            raise RLRouteError(f"{option}: is set by the rollout server; leave it out")
    if (sync == "folder") != (weights_folder is not None):
        raise RLRouteError("--weights-folder: belongs to --sync folder, and to that only")
    host = _read_host(arguments)
    if host not in LOOPBACK and not has_key:
        raise RLRouteError(
            f"--host {host}: others could replace the weights; set VLLM_API_KEY to a key first"
        )
    command = [*arguments] if "--host" in options else [*arguments, "--host", host]
    command += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
    command += ["--middleware", f"{MODULE}.ControlGate"]
    command += ["--weight-transfer-config", json.dumps({"backend": sync})]
    if weights_folder is not None:
        command += ["--worker-extension-cls", "rlroute.rollout.vllm_worker.FolderUpdates"]
        command += ["--additional-config", json.dumps({FOLDER_KEY: str(weights_folder)})]
    return command


def _read_host(arguments: Sequence[str]) -> str:
    host = LOOPBACK[0]
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word.startswith("--host="):
            host = word.removeprefix("--host=")
        elif word == "--host":
            host = following
    return host


def main(words: Sequence[str]) -> None:
    """Make this process vLLM's server; what stands after `--` in `words` is for vLLM."""
    split = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description="vLLM as a rollout server", epilog="-- vLLM's own"
    )
    parser.add_argument("--sync", choices=("folder", "nccl"), default="folder")
    parser.add_argument("--weights-folder", type=Path, help="updates are read below this folder")
    options = parser.parse_args(words[:split])
    folder: Path | None = options.weights_folder
    try:
        arguments = build_command(
            words[split + 1 :],
            sync=options.sync,
            weights_folder=folder.resolve() if folder else None,
            has_key=bool(os.environ.get("VLLM_API_KEY")),
        )
    except RLRouteError as error:
        parser.error(str(error))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # weights are for this user
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # the routes for weight updates; see ControlGate
    os.execv(sys.executable, [sys.executable, "-m", SERVER_MODULE, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
