"""A chat server on loopback that fails as it is told, counts what it was asked and what it bills.

It speaks the chat format of OpenAI-compatible servers over real sockets, in a process of its own:

    python tests/pool/fault_server.py --port 0 --script script.json     # prints {"port": N}

The script: `seed`; `prices` (USD per million tokens: input, output, cached_input);
`faults` {name: probability} (the rest is "ok"); `faults_by_text` {prompt: [name of the first
attempt, of the second, ..., the last one stays]}; `down_for_requests`: so many fail with 500 before
all else; `latency` {median, sigma} of a log-normal in seconds; `delay_seconds`; `retry_after`. What
befalls the n-th request of a prompt is a function of (seed, prompt, n) alone, whatever the order of
arrival.

What it bills: every answer with status 200 that it sent completely, by its own count of tokens,
whether it reported that count or not. A body that is no JSON is no answer, half a body is not sent
completely. `undelivered` is what it billed on connections that the client then reset.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import socket
import struct
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

PICODOLLARS_PER_PRICE = 10**6  # of one token at 1 USD per million
HUGE_BYTES = 64 * 2**20
STATUS = {
    "rate_limited": 429,
    "rate_limited_date": 429,
    "rate_limited_bare": 429,
    "server_500": 500,
    "gateway_502": 502,
    "unavailable_503": 503,
    "bad_request": 400,
    "unauthorized": 401,
    "not_found": 404,
    "request_timeout": 408,
}
BILLED = {
    *("ok", "delay", "drip", "no_usage", "wrong_model", "empty_choices", "filtered", "cut"),
    *("cut_empty", "echo_key"),
}


class FaultServer:
    """The behaviour: one instance per process."""

    def __init__(self, script: dict[str, Any]) -> None:
        self.script = script
        prices = script.get("prices", {"input": 1.0, "output": 1.0})
        self.price = {name: Fraction(str(price)) for name, price in prices.items()}
        self.price.setdefault("cached_input", self.price["input"])
        self.requests_by_text: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.billed: Counter[str] = Counter()
        self.undelivered = 0
        self.open = self.most_open = 0

    async def serve_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        last_bill = 0
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                last_bill = 0
                headers = {
                    name.lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:])
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if head.startswith("GET /report"):
                    writer.write(encode_reply(200, json.dumps(self.report()).encode()))
                    await writer.drain()
                    continue
                self.open += 1
                self.most_open = max(self.most_open, self.open)
                try:
                    last_bill = await self.answer(json.loads(body), headers, reader, writer)
                finally:
                    self.open -= 1
        except ConnectionError:
            self.undelivered += last_bill
        except asyncio.IncompleteReadError:
            pass  # the client closed its connection in order
        finally:
            writer.close()

    async def answer(
        self,
        body: dict[str, Any],
        headers: dict[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> int:
        """Answer one request; return what was billed for it in picodollars."""
        text = body["messages"][-1]["content"]
        number = self.requests_by_text[text]
        self.requests_by_text[text] += 1
        draw = random.Random(f"{self.script.get('seed', 0)}/{text}/{number}")
        fault = self.choose_fault(text, number, draw)
        self.requests[fault] += 1
        if latency := self.script.get("latency"):
            await asyncio.sleep(latency["median"] * math.exp(latency["sigma"] * draw.gauss(0, 1)))
        if fault == "delay":
            await asyncio.sleep(self.script.get("delay_seconds", 0.02))
        if fault in STATUS:
            writer.write(self.make_error(fault, headers))
            await writer.drain()
        elif fault == "hang":
            await reader.read(1)  # until the client gives up
        elif fault == "reset":
            reset(writer)
        elif fault == "huge":
            await send_huge(writer)
        else:
            reply, tokens = self.make_answer(fault, body, text, headers, draw)
            return await self.send_answer(fault, reply, tokens, writer)
        return 0

    def choose_fault(self, text: str, number: int, draw: random.Random) -> str:
        if self.requests.total() < self.script.get("down_for_requests", 0):
            return "server_500"
        scripted = self.script.get("faults_by_text", {}).get(text)
        if scripted:
            return scripted[min(number, len(scripted) - 1)]
        place = draw.random()
        for fault, probability in self.script.get("faults", {}).items():
            if place < probability:
                return fault
            place -= probability
        return "ok"

    def make_error(self, fault: str, headers: dict[str, str]) -> bytes:
        extra = ""
        if fault == "rate_limited":
            extra = f"retry-after: {self.script.get('retry_after', 0.05)}\r\n"
        if fault == "rate_limited_date":
            date = datetime.now(UTC) + timedelta(seconds=self.script.get("retry_after", 0.05))
            extra = f"retry-after: {format_datetime(date, usegmt=True)}\r\n"
        # As careless servers do, it repeats the key in its message.
        message = f"{fault}; your key was {headers.get('authorization', 'none')}"
        return encode_reply(STATUS[fault], json.dumps({"error": message}).encode(), extra)

    def make_answer(
        self,
        fault: str,
        body: dict[str, Any],
        text: str,
        headers: dict[str, str],
        draw: random.Random,
    ) -> tuple[dict[str, Any], tuple[int, int, int]]:
        # a token is a word, and four surround each message
        prompt = sum(4 + len(item["content"].split()) for item in body["messages"])
        cached = prompt // 2 if draw.random() < 0.3 and fault != "no_usage" else 0
        beginning = f"answer to {text}:"
        words = min(draw.randint(5, 200), body["max_tokens"])
        padding = " word" * max(0, words - len(beginning.split()))
        content: str | None = beginning + padding
        completion = min(len(f"{beginning}{padding}".split()), body["max_tokens"])
        finish = {"filtered": "content_filter", "cut": "length", "cut_empty": "length"}
        if fault == "cut_empty":
            content = None
        if fault == "echo_key":
            content = f"your key is {headers.get('authorization')}"
        message = {"role": "assistant", "content": content}
        choice = {"index": 0, "message": message, "finish_reason": finish.get(fault, "stop")}
        reply = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": "another-model" if fault == "wrong_model" else body["model"],
            "choices": [] if fault == "empty_choices" else [choice],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
                "prompt_tokens_details": {"cached_tokens": cached},
            },
        }
        if fault == "no_usage":
            del reply["usage"]
        return reply, (prompt, completion, cached)

    async def send_answer(
        self,
        fault: str,
        reply: dict[str, Any],
        tokens: tuple[int, int, int],
        writer: asyncio.StreamWriter,
    ) -> int:
        data = encode_reply(200, json.dumps(reply).encode())
        if fault == "invalid_json":
            data = encode_reply(200, json.dumps(reply).encode()[:-9] + b"<html>!!!")
        if fault == "half_body":
            writer.write(data[: len(data) - 40])
            await writer.drain()
            writer.close()
            return 0
        pieces = 5 if fault == "drip" else 1
        size = math.ceil(len(data) / pieces)
        for start in range(0, len(data), size):
            writer.write(data[start : start + size])
            await writer.drain()
            if fault == "drip":
                await asyncio.sleep(self.script.get("delay_seconds", 0.02) / pieces)
        if fault not in BILLED:
            return 0
        prompt, completion, cached = tokens
        bill = (prompt - cached) * self.price["input"] + cached * self.price["cached_input"]
        bill = (bill + completion * self.price["output"]) * PICODOLLARS_PER_PRICE
        assert bill.denominator == 1
        self.billed[fault] += int(bill)
        return int(bill)

    def report(self) -> dict[str, Any]:
        return {
            "requests": dict(self.requests),
            "billed_picodollars": dict(self.billed),
            "undelivered_picodollars": self.undelivered,
            "texts": len(self.requests_by_text),
            "most_requests_of_a_text": max(self.requests_by_text.values(), default=0),
            "most_open": self.most_open,
        }


def encode_reply(status: int, body: bytes, extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{extra}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode("latin-1") + body


def reset(writer: asyncio.StreamWriter) -> None:
    """End the connection with RST, not with FIN."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def send_huge(writer: asyncio.StreamWriter) -> None:
    """Send a body that announces no length and does not end, until the client closes."""
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    for _ in range(HUGE_BYTES // 0x10000):
        writer.write(chunk)
        await writer.drain()
    writer.close()


async def serve(port: int, script: dict[str, Any]) -> None:
    behaviour = FaultServer(script)
    server = await asyncio.start_server(behaviour.serve_connection, "127.0.0.1", port, backlog=1024)
    sys.stdout.write(json.dumps({"port": server.sockets[0].getsockname()[1]}) + "\n")
    sys.stdout.flush()
    await server.serve_forever()


class RunningServer:
    """What a test knows of a server that runs in another process."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"
        self._report_url = f"http://127.0.0.1:{port}/report"

    def read_report(self) -> dict[str, Any]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self._report_url, timeout=30) as reply:
            return json.loads(reply.read())


@contextmanager
def run_fault_server(**script: Any) -> Iterator[RunningServer]:
    """Run a server in a process of its own while the body runs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "script.json"
        path.write_text(json.dumps(script))
        command = [sys.executable, __file__, "--port", "0", "--script", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                yield RunningServer(json.loads(process.stdout.readline())["port"])
            finally:
                process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--script", type=Path, required=True)
    arguments = parser.parse_args()
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(arguments.port, json.loads(arguments.script.read_text())))


if __name__ == "__main__":
    main()
