"""The trainer's view of a rollout server: pause, update, resume, score.

What it is: vLLM's control routes as plain methods over HTTP, one request each. `RolloutServer` also
is what vLLM's own trainer-side weight transfer calls back (its four methods of those names).

What it leaves out: sampling (`rlroute.rollout.samplers.vllm`), weights
(`rlroute.rollout.weight_sync`), starting a server (`rlroute.rollout.vllm_server`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rlroute.extras import require
from rlroute.types import RLRouteError

MAX_DETAIL = 300  # characters of a server's error that are repeated
SAME_LOGP = 1e-6


class RolloutServer:
    """One vLLM server, reached at `url` (`http://127.0.0.1:8000/v1`).

    `api_key_env` NAMES the environment variable that holds the server's key. `timeout_seconds`
    bounds each request; a pause waits for what is being generated and may need as long.

    Raises:
        RLRouteError: httpx is not installed (extra `http`), or the key's variable is not set.
    """

    def __init__(
        self, url: str, *, api_key_env: str | None = None, timeout_seconds: float = 600.0
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._httpx = require("httpx", "http")
        self._client = self._httpx.Client(
            base_url=self.url,
            headers=build_headers(api_key_env),
            timeout=timeout_seconds,
            limits=self._httpx.Limits(max_keepalive_connections=0),  # the server may close them
            trust_env=False,
        )

    @contextmanager
    def update(self, version: int) -> Iterator[None]:
        """Pause, let the caller replace the weights, record `version`, resume.

        Running requests end before, by the old weights; those that come meanwhile wait. What was
        cached for the old weights is forgotten. If the caller fails, the server stays paused:
        nothing may be sampled from weights of which nobody knows what they are.
        """
        self._post("/pause", params={"mode": "wait", "clear_cache": "true"})
        yield
        self._post("/update_weight_version", {"new_version": str(version)})
        if not self._post("/reset_prefix_cache").get("success"):
            raise RLRouteError(f"{self.url}: the cache of prompts could not be emptied")
        self.resume()

    def resume(self) -> None:
        """Let requests go on that wait since a pause."""
        self._post("/resume")

    def read_version(self) -> str:
        """Return the version of the weights that was recorded last ("default" at the start)."""
        return str(self._request("GET", "/weight_info")["weight_version"])

    def count_workers(self) -> int:
        """Return the number of the server's worker processes, over all its replicas."""
        return int(self._request("GET", "/get_world_size")["world_size"])

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Make all workers join the trainer."""
        self._post("/init_weight_transfer_engine", {"init_info": dict(init_info)})

    def start_weight_update(self) -> None:
        """Begin an update."""
        self._post("/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        """Hand the workers an update, in the form of the backend that the server runs."""
        self._post("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """End an update."""
        version = None if weight_version is None else {"weight_version": weight_version}
        self._post("/finish_weight_update", version)

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Return the log-probability of each token but the first, given those before it.

        Raises:
            RLRouteError: the server does not answer with a log-probability for each.
        """
        body = {"prompt": list(token_ids), "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        entries = self._post("/v1/completions", body)["choices"][0].get("prompt_logprobs")
        if not isinstance(entries, list) or len(entries) != len(token_ids):
            raise RLRouteError(f"{self.url}: the server returns no log-probs of a prompt's tokens")
        return [
            float(entry[str(token)]["logprob"])
            for token, entry in zip(token_ids[1:], entries[1:], strict=True)
        ]

    def check_logprobs_mode(self, token_ids: Sequence[int]) -> None:
        """Make sure that log-probs are those of the distribution that is sampled from.

        The likeliest token's must change with the temperature. Call it before the first update: a
        server that an earlier run left paused is resumed.

        Raises:
            RLRouteError: they are those of the model at temperature 1.
        """
        self.resume()
        found = []
        for temperature in (1.0, 0.25):
            body = {"prompt": list(token_ids), "max_tokens": 1, "temperature": temperature}
            sampling = {"logprobs": 1, "seed": 0, **PLAIN_SAMPLING}
            choice = self._post("/v1/completions", body | sampling)["choices"][0]
            found.append(max(choice["logprobs"]["top_logprobs"][0].values()))
        if math.isclose(*found, abs_tol=SAME_LOGP) and found[0] < -SAME_LOGP:
            raise RLRouteError(
                f"{self.url}: log-probs do not depend on the temperature; start the server by "
                "rlroute.rollout.vllm_server, or with --logprobs-mode processed_logprobs"
            )

    def check_context(self, served_model: str, context_tokens: int) -> None:
        """Make sure that the server takes episodes of `context_tokens`.

        Raises:
            RLRouteError: it was started for shorter ones, or serves no model of that name.
        """
        cards = {card["id"]: card for card in self._request("GET", "/v1/models")["data"]}
        if served_model not in cards:
            raise RLRouteError(
                f"{self.url}: serves no model '{served_model}' (it serves {', '.join(cards)})"
            )
        longest = int(cards[served_model]["max_model_len"])
        if longest < context_tokens:
            raise RLRouteError(
                f"{self.url}: the server's max_model_len ({longest}) is below the recipe's "
                f"rollout.context_tokens ({context_tokens}); start the server with a larger one"
            )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _post(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        return self._request("POST", path, body, params)

    def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, json=body, params=params)
        except self._httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise RLRouteError(f"{self.url}{path}: no answer from the server: {reason}") from None
        if response.status_code != 200:
            raise RLRouteError(f"{self.url}{path}: {explain_error(response)}")
        answer: dict[str, Any] = response.json()
        return answer


# The distribution that is sampled from is the model's at the request's temperature, and no other:
# what is not stated, a server may take from the checkpoint's generation_config.json.
PLAIN_SAMPLING: Mapping[str, float] = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def build_headers(api_key_env: str | None) -> dict[str, str]:
    """Return the header with the key that the environment variable of that name holds.

    Raises:
        RLRouteError: the variable is not set; the message names it, never its value.
    """
    if api_key_env is None:
        return {}
    key = os.environ.get(api_key_env, "").strip()
    if not key:
        raise RLRouteError(f"the environment variable {api_key_env} is not set: the server's key")
    return {"authorization": f"Bearer {key}"}


def explain_error(response: Any) -> str:
    """Return one line for an answer that is an error: its status, and what the server says."""
    hints = {404: "is it a rollout server?", 401: "is api_key_env set?"}
    try:
        content = response.json()
    except ValueError:
        content = {}
    error = content.get("error", "") if isinstance(content, dict) else ""
    message = str(error.get("message", "") if isinstance(error, dict) else error)
    message = " ".join(message.split())[:MAX_DETAIL]
    hint = hints.get(response.status_code, "")
    return " ".join(word for word in (f"status {response.status_code}:", message, hint) if word)
