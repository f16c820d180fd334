"""The encoder behind an OpenAI-compatible embeddings endpoint, with its bill.

A request that fails is tried again where that may help (timeouts, broken connections, status 408,
429 and 5xx, unreadable bodies), with longer and longer waits; any other failure, and the last one,
is an RLRouteError of one line. The price is USD per million tokens, as the settings state it, times
the tokens that the server reports: `usage` adds them up and `describe()` tells them. A reply
without its number of tokens is refused, since its cost would be unknown; a request that broke off
after it was sent may be on the bill of the server, and is counted as uncertain.

The fingerprint is that of url, model, dimension and the cut of texts: nobody can see the weights
behind an endpoint. A router with this encoder needs the endpoint, and the key in its environment
variable, at every call, and sends the text and the key to the url that its folder names; so whoever
loads it has to name that url too (`Router.load(..., endpoint=...)`).
The key goes into the header of a request and nowhere else; bodies of errors are not read into
messages, and redirects are not followed.

What it leaves out: the cache, which is the same as for other encoders (`rlroute.data.prepare` keeps
every batch on disk, by text), requests side by side, and proxies named by the environment.

How to use: `fit_encoder(OpenaiConfig(url=..., model=..., dimension=1536, price=0.02), (), seed=0)`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rlroute.data.encoder_config import OpenaiConfig
from rlroute.data.encoders import (
    FORMAT_VERSION,
    check_texts,
    dump_json,
    hash_parts,
    write_header,
)
from rlroute.extras import require
from rlroute.types import TOKENS_PER_PRICE, FailureKind, FloatArray, RLRouteError

FIRST_WAIT_SECONDS = 0.5  # before the second attempt; doubled before each further one
LONGEST_WAIT_SECONDS = 30.0
RETRYABLE_STATUS = frozenset({408, 429, 500, 502, 503, 504})
STATUS_KIND = {
    401: FailureKind.AUTH,
    403: FailureKind.AUTH,
    408: FailureKind.TIMEOUT,
    429: FailureKind.RATE_LIMITED,
}
BYTES_PER_NUMBER = 32  # no JSON number of an embedding is longer
BYTES_BESIDE = 2**16


@dataclass
class EncodingUsage:
    """What this process asked for: texts, tokens and USD of all replies that could be read.

    `uncertain_requests` broke off after they were sent: the server may have charged for them.
    """

    requests: int = 0
    uncertain_requests: int = 0
    texts: int = 0
    tokens: int = 0
    cost_usd: float = 0.0

    @property
    def cost_usd_per_text(self) -> float | None:
        """Mean cost of a text; None before the first one was charged for."""
        return self.cost_usd / self.texts if self.texts else None


class RequestFailedError(Exception):
    """One attempt without vectors; says whether another one may help, and after how long."""

    def __init__(
        self,
        kind: FailureKind,
        detail: str,
        *,
        retryable: bool,
        uncertain: bool = False,
        wait_seconds: float | None = None,
    ) -> None:
        super().__init__(f"{kind.value}: {detail}")
        self.retryable, self.uncertain, self.wait_seconds = retryable, uncertain, wait_seconds


class EndpointEncoder:
    """Vectors of length 1 from an endpoint; a blank text gets zeros and is not sent.

    Nothing is sent before the first call of `encode`.

    Raises:
        RLRouteError: httpx is not installed (extra `http`).
    """

    kind = "openai"

    def __init__(self, config: OpenaiConfig) -> None:
        self.config = config
        self.dimension = config.dimension
        self.usage = EncodingUsage()
        self._httpx = require("httpx", "http")
        self._client: Any = None
        settings = {"format_version": FORMAT_VERSION, "kind": self.kind}
        named = ("url", "model", "dimension", "shorten", "max_characters")
        self._fingerprint = hash_parts(
            dump_json({**settings, **{name: getattr(config, name) for name in named}})
        )

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return the vectors [N, F]; a text that stands twice is sent once.

        Raises:
            RLRouteError: the key is not set, or the endpoint gave no vectors for a batch.
        """
        check_texts(texts)
        limit = self.config.max_characters
        # A lone surrogate is a str but no Unicode text, which JSON in UTF-8 cannot hold.
        sent = [text[:limit].encode("utf-8", "replace").decode("utf-8") for text in texts]
        asked = list(dict.fromkeys(text for text in sent if text.strip()))
        vectors: dict[str, FloatArray] = {}
        for start in range(0, len(asked), self.config.batch_size):
            batch = asked[start : start + self.config.batch_size]
            vectors.update(zip(batch, self._request(batch), strict=True))
        vectors_NF = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row_F, text in zip(vectors_NF, sent, strict=True):
            if text in vectors:
                row_F[:] = vectors[text]
        return vectors_NF

    def _request(self, batch: Sequence[str]) -> FloatArray:
        """Return the vectors [B, F] of a batch, after as many attempts as it takes."""
        key = self._read_key()
        for attempt in range(self.config.retries + 1):
            try:
                return self._read_vectors(self._send(batch, key), len(batch))
            except RequestFailedError as failure:
                self.usage.uncertain_requests += failure.uncertain
                if not failure.retryable or attempt == self.config.retries:
                    raise RLRouteError(
                        f"encoder endpoint {self.config.url} (model '{self.config.model}'): "
                        f"{failure} ({attempt + 1} of {self.config.retries + 1} attempts)"
                    ) from None
                wait = failure.wait_seconds or FIRST_WAIT_SECONDS * 2**attempt
            time.sleep(min(wait, LONGEST_WAIT_SECONDS))
        raise AssertionError("the last attempt returns or raises")

    def _read_key(self) -> str | None:
        """Return the key from the environment; None where none is needed."""
        name = self.config.api_key_env
        if name is None:
            return None
        key = os.environ.get(name, "").strip()
        if not key or not (key.isascii() and key.isprintable()):
            fault = "holds characters that no key may have" if key else "is not set"
            raise RLRouteError(
                f"encoder: the environment variable {name} {fault}; it must hold the key of "
                f"{self.config.url}"
            )
        return key

    def _send(self, batch: Sequence[str], key: str | None) -> bytes:
        """Send one request and return the body of its reply with status 200."""
        config, httpx = self.config, self._httpx
        if self._client is None:
            self._client = httpx.Client(trust_env=False, timeout=config.timeout_seconds)
        body: dict[str, Any] = {"model": config.model, "input": list(batch)}
        body["encoding_format"] = "float"
        if config.shorten:
            body["dimensions"] = config.dimension
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.usage.requests += 1
        address, deadline = f"{config.url}/embeddings", time.monotonic() + config.timeout_seconds
        try:
            with self._client.stream("POST", address, json=body, headers=headers) as response:
                check_status(response.status_code, response.headers.get("retry-after"))
                return self._read_body(response, deadline)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise RequestFailedError(
                FailureKind.SERVER, "cannot be reached", retryable=True
            ) from None
        except httpx.TimeoutException:
            raise self._time_out() from None
        except httpx.TransportError:
            raise RequestFailedError(
                FailureKind.SERVER, "the connection broke", retryable=True, uncertain=True
            ) from None

    def _read_body(self, response: Any, deadline: float) -> bytes:
        """Return a body that ends in time and is no longer than its vectors can be."""
        longest = self.config.batch_size * self.dimension * BYTES_PER_NUMBER + BYTES_BESIDE
        pieces: list[bytes] = []
        size = 0
        for piece in response.iter_bytes():
            size += len(piece)
            if size > longest:
                detail = f"a body of more than {longest} bytes"
                raise RequestFailedError(
                    FailureKind.MALFORMED, detail, retryable=False, uncertain=True
                )
            if time.monotonic() > deadline:
                raise self._time_out()
            pieces.append(piece)
        return b"".join(pieces)

    def _time_out(self) -> RequestFailedError:
        detail = f"no whole reply within {self.config.timeout_seconds:g} s"
        return RequestFailedError(FailureKind.TIMEOUT, detail, retryable=True, uncertain=True)

    def _read_vectors(self, content: bytes, count: int) -> FloatArray:
        """Count what a reply costs, then return its vectors [B, F], of length 1."""
        try:
            reply = json.loads(content)
        except ValueError:
            raise RequestFailedError(
                FailureKind.MALFORMED, "the reply is not JSON", retryable=True, uncertain=True
            ) from None
        usage = reply.get("usage") if isinstance(reply, dict) else None
        tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
            raise RequestFailedError(
                FailureKind.MALFORMED,
                "the reply holds no usage.prompt_tokens, so its cost is unknown",
                retryable=False,
                uncertain=True,
            )
        self.usage.texts += count
        self.usage.tokens += tokens
        self.usage.cost_usd += tokens * self.config.price / TOKENS_PER_PRICE
        vectors_BF = parse_vectors(reply.get("data"), count, self.dimension)
        norm_B1 = np.sqrt((vectors_BF * vectors_BF).sum(axis=1, keepdims=True))
        if not np.isfinite(norm_B1).all() or not (norm_B1 > 0).all():
            detail = "a vector is zero or holds a value that is not finite"
            raise RequestFailedError(FailureKind.MALFORMED, detail, retryable=False)
        return np.asarray(vectors_BF / norm_B1, dtype=np.float32)

    def fingerprint(self) -> str:
        """Return the hash of url, model, dimension and the cut of texts."""
        return self._fingerprint

    def describe(self) -> dict[str, Any]:
        """Return kind, dimension, price, what was used so far, fingerprint and settings."""
        usage = {**asdict(self.usage), "cost_usd_per_text": self.usage.cost_usd_per_text}
        return {
            "kind": self.kind,
            "dimension": self.dimension,
            "usd_per_million_tokens": self.config.price,
            "usage": usage,
            "fingerprint": self._fingerprint,
            "config": self.config.model_dump(mode="json"),
        }

    def save(self, folder: Path) -> None:
        """Write encoder.json, which names the endpoint, into `folder`."""
        write_header(folder, self.config, self._fingerprint)


def check_status(status: int, retry_after: str | None) -> None:
    """Raise RequestFailedError for any status but 200; servers do not charge for those."""
    if status == 200:
        return
    default = FailureKind.SERVER if status >= 500 else FailureKind.BAD_REQUEST
    wait = None
    if retry_after is not None and retry_after.replace(".", "", 1).isdigit():
        wait = float(retry_after)
    raise RequestFailedError(
        STATUS_KIND.get(status, default),
        f"status {status}",
        retryable=status in RETRYABLE_STATUS,
        wait_seconds=wait,
    )


def parse_vectors(data: object, count: int, dimension: int) -> npt.NDArray[np.float64]:
    """Return the vectors [B, F] of a reply in float64, in the order of the texts.

    Raises:
        RequestFailedError: they are not one vector of `dimension` numbers for each text.
    """
    fault = f"the reply does not hold {count} vectors of {dimension} numbers, one for each text"
    failed = RequestFailedError(FailureKind.MALFORMED, fault, retryable=False)
    if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
        raise failed
    vectors = {entry.get("index"): entry.get("embedding") for entry in data}
    if len(data) != count or set(vectors) != set(range(count)):
        raise failed
    numbers = [vectors[row] for row in range(count)]
    for vector in numbers:
        if not isinstance(vector, list) or len(vector) != dimension:
            raise failed
        if not all(isinstance(value, int | float) for value in vector):
            raise failed
    return np.array(numbers, dtype=np.float64)
