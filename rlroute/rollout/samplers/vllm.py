"""Sampling from a vLLM server: token ids go out, token ids and log-probs come back.

What it is: a client of the server's completions route. A prompt is a list of ids and the reply is
the ids that were sampled, so nothing is tokenised on the way; log-probs are those of the
distribution that was sampled from, which takes a server started by `rlroute.rollout.vllm_server`.
The server batches by itself: `concurrency` is how many requests it is sent at a time.

What it leaves out: weights (`rlroute.rollout.weight_sync`), servers that return no token ids.

A request is repeated when the server cannot be reached or answers with status 5xx; its seed makes
the repetition the same request. The key is read from the environment by name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from rlroute.extras import require
from rlroute.rollout.rollout_server import PLAIN_SAMPLING, build_headers, explain_error
from rlroute.rollout.samplers.base import Sample, SampleRequest, decode_ids
from rlroute.types import Finish, RLRouteError

FIRST_WAIT_SECONDS = 0.5
MAX_WAIT_SECONDS = 8.0
SEED_RANGE = 2**63  # of a signed 64-bit integer
ROUNDING = 1e-4  # a log-probability may exceed 0 by this much


class VllmSampler:
    """A `Sampler` over the vLLM server at `url` (`http://127.0.0.1:8000/v1`).

    `model` is the served name. `tokenizer` is the policy's: it finds the token that completes a
    stop string, as a server that drafts several tokens at once may return some after it.
    `timeout_seconds` bounds one request, waiting at the server included.

    Raises:
        RLRouteError: httpx is not installed (extra `http`), a number is out of range, or the
            variable `api_key_env` is not set.
    """

    def __init__(
        self,
        url: str,
        model: str,
        tokenizer: Any,
        *,
        api_key_env: str | None = None,
        concurrency: int = 64,
        timeout_seconds: float = 600.0,
        retries: int = 3,
    ) -> None:
        for name, value, low in (
            ("concurrency", concurrency, 1),
            ("timeout_seconds", timeout_seconds, 0.001),
            ("retries", retries, 0),
        ):
            if value < low:
                raise RLRouteError(f"{name} must be at least {low}, not {value}")
        self._httpx = require("httpx", "http")
        self._url = f"{url.rstrip('/')}/completions"
        self._model = model
        self._tokenizer = tokenizer
        self._headers = build_headers(api_key_env)
        self._concurrency = concurrency
        self._timeout_seconds = timeout_seconds
        self._retries = retries
        self._version = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Any = None
        self._slots = asyncio.Semaphore(concurrency)

    def set_version(self, version: int) -> None:
        """Say which weights the server has from now on; samples carry the number."""
        self._version = version

    async def sample(self, request: SampleRequest) -> Sample:
        """Return one continuation, labelled with the version at the time of sending.

        Raises:
            RLRouteError: the server cannot be reached, refuses the request, or returns no token
                ids or log-probs.
        """
        self._open()
        async with self._slots:
            version = self._version
            content = await self._post(self._build_body(request))
        sample = parse_completion(content, version, self._url)
        return self._cut_after_stop(sample, request.stop) if sample.finish == "stop" else sample

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None and self._loop is asyncio.get_running_loop():
            await self._client.aclose()
        self._client = None

    def _cut_after_stop(self, sample: Sample, stop: Sequence[str]) -> Sample:
        """Return the sample without what follows the token that completes a stop string."""
        length = len(sample.token_ids)
        while length > 1:
            text = decode_ids(self._tokenizer, sample.token_ids[: length - 1])
            if not any(word in text for word in stop):
                break
            length -= 1
        token_ids, logps = sample.token_ids[:length], sample.logps[:length]
        return Sample(token_ids, logps, sample.finish, sample.policy_version)

    def _open(self) -> None:
        """Make a client for the running event loop; those of an ended loop are of no use."""
        loop = asyncio.get_running_loop()
        if self._client is not None and self._loop is loop:
            return
        limits = self._httpx.Limits(max_connections=self._concurrency)
        self._loop = loop
        self._slots = asyncio.Semaphore(self._concurrency)
        self._client = self._httpx.AsyncClient(
            headers=self._headers, timeout=self._timeout_seconds, limits=limits, trust_env=False
        )

    def _build_body(self, request: SampleRequest) -> dict[str, Any]:
        return {
            "model": self._model,
            "prompt": list(request.token_ids),
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "seed": request.seed % SEED_RANGE,
            "stop": list(request.stop),
            "include_stop_str_in_output": True,
            "logprobs": 0,  # of the sampled token only
            "return_token_ids": True,
            **PLAIN_SAMPLING,
        }

    async def _post(self, body: Mapping[str, Any]) -> Any:
        """Send a request, again after a pause where that may help, and return what came."""
        fault = ""
        for attempt in range(self._retries + 1):
            if attempt:
                await asyncio.sleep(min(MAX_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (attempt - 1)))
            try:
                response = await self._client.post(self._url, json=body)
            except self._httpx.TransportError as error:
                fault = f"no answer from the server: {str(error) or type(error).__name__}"
                continue
            if response.status_code == 200:
                return response.json()
            fault = explain_error(response)
            if response.status_code < 500:
                break
        raise RLRouteError(f"{self._url}: {fault}")


def parse_completion(content: Any, version: int, where: str) -> Sample:
    """Return the sample that a completion holds.

    Raises:
        RLRouteError: token ids or log-probs are missing, or do not fit together.
    """
    choice = content["choices"][0]
    ids = choice.get("token_ids")
    if not ids:
        raise RLRouteError(f"{where}: the server returns no token ids; vLLM does from 0.11 on")
    logps = (choice.get("logprobs") or {}).get("token_logprobs")
    if not logps or len(logps) != len(ids) or any(logp is None for logp in logps):
        raise RLRouteError(f"{where}: the server returns no log-prob for each token")
    if max(logps) > ROUNDING:
        raise RLRouteError(
            f"{where}: {max(logps)} is no log-prob; the server must run with "
            "--logprobs-mode processed_logprobs"
        )
    finish = _read_finish(choice, where)
    return Sample(tuple(ids), tuple(min(0.0, logp) for logp in logps), finish, version)


def _read_finish(choice: Mapping[str, Any], where: str) -> Finish:
    """Return why a text ended; vLLM names the stop string, and nothing at the end-of-text token."""
    reason = choice.get("finish_reason")
    if reason == "length":
        return "length"
    if reason == "stop":
        return "stop" if isinstance(choice.get("stop_reason"), str) else "end"
    raise RLRouteError(f"{where}: the server broke the generation off ({reason})")
