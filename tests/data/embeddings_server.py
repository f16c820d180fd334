"""An embeddings server on loopback that fails as it is told and counts what it bills.

It speaks the format of OpenAI's `/v1/embeddings` over real sockets, on threads of the test process.
`faults` are taken one by one, a request each; when they are used up, every request is answered. The
vector of a text is a function of the text alone; a token is a word.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

DIMENSION = 4
KEY = "sk-embeddings-test-key"
STATUS = {"rate_limited": 429, "server": 500, "unavailable": 503, "bad": 400, "auth": 401}


class EmbeddingsServer(ThreadingHTTPServer):
    """What is set before and read after: faults, bodies and headers of the requests, the bill."""

    daemon_threads = True

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults = list(faults)
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.tokens = 0
        self.closed = False
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server: EmbeddingsServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert self.path == "/v1/embeddings"
        self.server.bodies.append(body)
        self.server.keys.append(self.headers.get("authorization"))
        fault = self.server.faults.pop(0) if self.server.faults else "ok"
        with suppress(ConnectionError):  # the client has given up
            self.answer(fault, body)

    def answer(self, fault: str, body: dict[str, Any]) -> None:
        if fault == "hang":
            time.sleep(0.6)
        if fault == "reset" or self.server.closed:
            self.close_connection = True
            self.connection.close()
            return
        if fault in STATUS:
            # As careless servers do, it repeats the key in its message.
            content = json.dumps({"error": f"key {self.headers.get('authorization')}"}).encode()
            self.send(STATUS[fault], content, retry_after="0.01")
            return
        if fault == "moved":
            self.send_response(302)
            self.send_header("location", "http://127.0.0.1:1/v1/embeddings")
            self.send_header("content-length", "0")
            self.end_headers()
            return
        reply = make_reply(body, fault)
        self.server.tokens += reply.get("usage", {}).get("prompt_tokens", 0)
        content = json.dumps(reply).encode()
        self.send(200, content[:-7] if fault == "not_json" else content)

    def send(self, status: int, content: bytes, retry_after: str | None = None) -> None:
        self.send_response(status)
        if retry_after is not None:
            self.send_header("retry-after", retry_after)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay quiet."""


def embed(text: str) -> list[float]:
    """Return the vector of a text, not normalised."""
    return [byte / 16 - 8 for byte in hashlib.sha256(text.encode()).digest()[:DIMENSION]]


def make_reply(body: dict[str, Any], fault: str) -> dict[str, Any]:
    """Return the reply to a request, in reversed order as servers may."""
    texts = body["input"]
    data = [{"index": n, "embedding": embed(text)} for n, text in enumerate(texts)][::-1]
    if fault == "too_few":
        data = data[1:]
    if fault == "twice":
        data = [data[0]] * len(data)
    if fault == "short":
        data[0]["embedding"] = data[0]["embedding"][1:]  # type: ignore[index]
    if fault == "words":
        data[0]["embedding"] = ["one"] * DIMENSION
    if fault == "zero":
        data[0]["embedding"] = [0.0] * DIMENSION
    if fault == "infinite":
        data[0]["embedding"] = [float("inf")] * DIMENSION
    tokens = sum(len(text.split()) for text in texts)
    reply = {"data": data, "model": body["model"], "usage": {"prompt_tokens": tokens}}
    if fault == "no_usage":
        del reply["usage"]
    if fault == "huge":
        reply["padding"] = "x" * 10**6
    return reply


@contextmanager
def run_embeddings_server(*faults: str) -> Iterator[EmbeddingsServer]:
    """Run a server while the body runs."""
    with EmbeddingsServer(faults) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closed = True  # for the threads of connections that are still open
            server.shutdown()
            thread.join()
