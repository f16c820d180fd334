"""One request to one OpenAI-compatible server: how it is sent, and what becomes of it.

What it is: an `Endpoint` says where a candidate answers; a `Connection` sends one request at a time
and turns whatever comes back into an `Attempt`, never into an exception of the library.

Which faults are worth another try: timeouts, connections that fail or break, status 408, 429, 500,
502, 503 and 504, and bodies that cannot be read. All others are final. What an attempt is charged:

- an error status, or no connection: nothing;
- a body that could be read: its usage, whether the answer in it was usable or not;
- anything else (timeout after sending, broken or unreadable body): the bill is unknown, and the
  upper bound counts against the caps as uncertain (`rlroute.pool.ledger`).

The key is read from the environment by name when a request is sent, goes into its header and
nowhere else; should a server repeat it in an answer, it is blackened there. Bodies of errors are
not read into messages or logs. Redirects are not followed: the key stays with its server.

What it leaves out: retries and limits (`rlroute.pool.live`), proxies named by the environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal

from rlroute.config import REDACTED
from rlroute.extras import require
from rlroute.pool.chat import UnreadableBodyError, build_body, parse_body
from rlroute.types import Call, Candidate, FailureKind, RLRouteError, Usage

MAX_BODY_BYTES = 8 * 2**20
CONNECT_SHARE = 0.5  # of an attempt's time: what has not connected by then is known to cost nothing
RETRYABLE_STATUS = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Endpoint:
    """Where a candidate answers and within which limits.

    `url` is the base that `/chat/completions` is appended to (`http://127.0.0.1:8000/v1`);
    `api_key_env` NAMES the environment variable that holds the key, None where no key is needed.
    `timeout_seconds` bounds one attempt; a call as a whole gets (retries + 1) times as long.
    `tokenizer` (a tokenizer.json or its folder) counts the tokens where the server reports none.

    Raises:
        RLRouteError: the url is no http(s) address, or a limit is not positive.
    """

    candidate: Candidate
    url: str
    served_model: str
    api_key_env: str | None = None
    concurrency: int = 16
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout_seconds: float = 60.0
    retries: int = 3
    tokenizer: Path | None = None

    def __post_init__(self) -> None:
        name = self.candidate.id
        if not self.url.startswith(("http://", "https://")):
            raise RLRouteError(f"{name}: the endpoint must begin with http:// or https://")
        for key in ("concurrency", "requests_per_minute", "tokens_per_minute", "timeout_seconds"):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise RLRouteError(f"{name}: {key} must be above 0, not {value}")
        if self.retries < 0:
            raise RLRouteError(f"{name}: retries must be 0 or more, not {self.retries}")


@dataclass(frozen=True)
class Attempt:
    """What became of one request.

    `bill` says what is known of its cost: "none" (nothing), "usage" (by `usage`), "unknown".
    `retry_after_seconds` is what the server asked to wait. `seconds` is from sending to the end.
    """

    failure: FailureKind | None
    bill: Literal["none", "usage", "unknown"]
    seconds: float
    text: str = ""
    usage: Usage | None = None
    retryable: bool = False
    retry_after_seconds: float | None = None


def read_api_key(endpoint: Endpoint) -> str | None:
    """Return the key of an endpoint from the environment, None where it needs none.

    Raises:
        RLRouteError: the variable is not set, or its value cannot stand in a header; the message
            names the variable, never its value.
    """
    if endpoint.api_key_env is None:
        return None
    key = os.environ.get(endpoint.api_key_env, "").strip()
    name = f"{endpoint.candidate.id}: the environment variable {endpoint.api_key_env}"
    if not key:
        raise RLRouteError(f"{name} is not set; it must hold the key of the endpoint")
    if not (key.isascii() and key.isprintable()):
        raise RLRouteError(f"{name} holds characters that no key may have")
    return key


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds that a Retry-After header asks for (a number or a date), None if none."""
    if value is None:
        return None
    try:
        seconds = float(value)
        return seconds if 0 <= seconds < float("inf") else None
    except ValueError:
        pass  # no number: it may be a date
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - now).total_seconds())


class Connection:
    """Sends one request at a time and keeps its connections open for the next.

    Of many requests side by side each gets a Connection of its own: a pool of connections searches
    all of them at every request, which at 64 costs eight times the request itself.

    Raises:
        RLRouteError: httpx is not installed (extra `http`).
    """

    def __init__(self, certificates: ssl.SSLContext) -> None:
        self._httpx = require("httpx", "http")
        limits = self._httpx.Limits(max_connections=None, max_keepalive_connections=8)
        self._transport = self._httpx.AsyncHTTPTransport(verify=certificates, limits=limits)
        self._addresses: dict[str, Any] = {}  # parsed: that is a tenth of the work of a request

    async def send(self, endpoint: Endpoint, call: Call, timeout_seconds: float) -> Attempt:
        """Send a call once and wait for the whole reply, `timeout_seconds` at most."""
        key = read_api_key(endpoint)
        request = self._build_request(endpoint, call, key, timeout_seconds)
        httpx = self._httpx
        began = time.perf_counter()
        status = None
        try:
            async with asyncio.timeout(timeout_seconds):
                response = await self._transport.handle_async_request(request)
                try:
                    status = response.status_code
                    content = await _read_body(response)  # of errors too: that keeps it open
                finally:
                    await response.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            timed_out = isinstance(error, httpx.ConnectTimeout)
            failure = FailureKind.TIMEOUT if timed_out else FailureKind.SERVER
            return Attempt(failure, "none", time.perf_counter() - began, retryable=True)
        except TimeoutError:
            seconds = time.perf_counter() - began
            return Attempt(FailureKind.TIMEOUT, "unknown", seconds, retryable=True)
        except httpx.TransportError:
            if status in (None, 200):
                failure = FailureKind.SERVER if status is None else FailureKind.MALFORMED
                return Attempt(failure, "unknown", time.perf_counter() - began, retryable=True)
        seconds = time.perf_counter() - began
        if status != 200:
            retry_after = response.headers.get("retry-after")
            return _judge_status(status, seconds, retry_after)
        return _judge_content(endpoint, call, content, key, seconds)

    async def close(self) -> None:
        """Close what is open."""
        await self._transport.aclose()

    def _build_request(
        self, endpoint: Endpoint, call: Call, key: str | None, timeout_seconds: float
    ) -> Any:
        if endpoint.url not in self._addresses:
            address = f"{endpoint.url.rstrip('/')}/chat/completions"
            self._addresses[endpoint.url] = self._httpx.URL(address)
        headers = {"content-type": "application/json", "accept": "application/json"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        return self._httpx.Request(
            "POST",
            self._addresses[endpoint.url],
            content=json.dumps(build_body(endpoint, call)).encode("utf-8"),
            headers=headers,
            extensions={"timeout": {"connect": timeout_seconds * CONNECT_SHARE}},
        )


async def _read_body(response: Any) -> bytes | None:
    """Return the body, or None where it is longer than `MAX_BODY_BYTES`."""
    if int(response.headers.get("content-length", 0)) > MAX_BODY_BYTES:
        return None
    pieces: list[bytes] = []
    size = 0
    async for piece in response.stream:
        size += len(piece)
        if size > MAX_BODY_BYTES:
            return None
        pieces.append(piece)
    return b"".join(pieces)


def _judge_status(status: int, seconds: float, retry_after: str | None) -> Attempt:
    """Return what a reply without an answer means; servers do not bill those."""
    failure = FailureKind.BAD_REQUEST
    if status in (401, 403):
        failure = FailureKind.AUTH
    elif status == 408:
        failure = FailureKind.TIMEOUT
    elif status == 429:
        failure = FailureKind.RATE_LIMITED
    elif status >= 500:
        failure = FailureKind.SERVER
    elif status < 300:
        failure = FailureKind.MALFORMED
    return Attempt(
        failure,
        "none",
        seconds,
        retryable=status in RETRYABLE_STATUS,
        retry_after_seconds=parse_retry_after(retry_after, datetime.now(UTC)),
    )


def _judge_content(
    endpoint: Endpoint, call: Call, content: bytes | None, key: str | None, seconds: float
) -> Attempt:
    """Return what a body with status 200 means; None stands for one that is too long."""
    if content is None:
        return Attempt(FailureKind.MALFORMED, "unknown", seconds)
    try:
        answer = parse_body(endpoint, call, content)
    except UnreadableBodyError:
        return Attempt(FailureKind.MALFORMED, "unknown", seconds, retryable=True)
    text = answer.text.replace(key, REDACTED) if key else answer.text
    return Attempt(answer.failure, "usage", seconds, text, answer.usage)
