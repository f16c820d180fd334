"""How close the live pool comes to the ideal, beside threads that wait for each other.

5,000 calls at concurrency 64 against the fault server in another process, whose latency is
log-normal (median 80 ms, sigma 0.5). The ideal is calls x mean latency / concurrency; the mean is
the one of the log-normal, exp(sigma^2 / 2) x median. Beside the pool, in the same run:

- the pool with a cache on disk;
- batches of 64 given to 10 threads, the next batch when the last one is done (the way Router-R1
  calls its candidates): its own ideal has 10 in flight, so both ratios are printed.

    PYTHONPATH=. python tests/benchmarks/pool_throughput.py [--calls 5000]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pool"))

from fault_server import run_fault_server

from rlroute.pool.cache import ReplyCache
from rlroute.pool.chat import build_body
from rlroute.pool.http import Endpoint
from rlroute.pool.ledger import Ledger
from rlroute.pool.live import LivePool
from rlroute.types import Call, Candidate, Limits, Prices, Query

MEDIAN, SIGMA = 0.08, 0.5
CONCURRENCY = 64
THREADS = 10
MEAN = MEDIAN * math.exp(SIGMA**2 / 2)


def make_calls(count: int, name: str) -> list[Call]:
    texts = [f"{name} {number}" for number in range(count)]
    return [Call("small", Query(text, text), text) for text in texts]


def ask_pool(endpoint: Endpoint, calls: list[Call], cache: ReplyCache | None) -> int:
    async def ask() -> int:
        pool = LivePool(
            {"small": endpoint}, ledger=Ledger(1e6), cache=cache, max_in_flight=CONCURRENCY
        )
        async with pool:
            replies = await pool.ask_many(calls)
        return sum(reply.failure is None for reply in replies)

    return asyncio.run(ask())


def ask_threads(endpoint: Endpoint, calls: list[Call]) -> int:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(call: Call) -> bool:
        request = urllib.request.Request(
            f"{endpoint.url}/chat/completions",
            data=json.dumps(build_body(endpoint, call)).encode(),
            headers={"content-type": "application/json"},
        )
        with opener.open(request, timeout=60) as reply:
            return bool(json.loads(reply.read())["choices"])

    answered = 0
    with ThreadPoolExecutor(THREADS) as executor:
        for start in range(0, len(calls), CONCURRENCY):
            answered += sum(executor.map(ask, calls[start : start + CONCURRENCY]))  # the barrier
    return answered


def measure(name: str, count: int, in_flight: int, work: Callable[[], int]) -> None:
    began, cpu_began = time.perf_counter(), time.process_time()
    answered = work()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    ideal = count * MEAN / in_flight
    ideal_64 = count * MEAN / CONCURRENCY
    print(
        f"{name:<34}{answered:>6} answers {seconds:>7.2f} s  "
        f"{ideal / seconds:>6.1%} of the ideal at {in_flight:>2} in flight, "
        f"{ideal_64 / seconds:>6.1%} of that at {CONCURRENCY};  "
        f"CPU {1000 * cpu / count:.2f} ms a call"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=5000)
    count = parser.parse_args().calls
    print(f"{count} calls, log-normal latency: median {MEDIAN} s, mean {MEAN:.4f} s")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start")
    latency = {"median": MEDIAN, "sigma": SIGMA}
    with run_fault_server(latency=latency) as server, tempfile.TemporaryDirectory() as folder:
        candidate = Candidate("small", Prices(1.0, 1.0), limits=Limits(None, 64))
        endpoint = Endpoint(candidate, server.url, "served", concurrency=CONCURRENCY)
        cache = ReplyCache(Path(folder) / "replies.sqlite")
        ask_pool(endpoint, make_calls(CONCURRENCY, "warm-up"), None)  # imports are not measured
        measure(
            "live pool",
            count,
            CONCURRENCY,
            lambda: ask_pool(endpoint, make_calls(count, "bare"), None),
        )
        measure(
            "live pool with cache",
            count,
            CONCURRENCY,
            lambda: ask_pool(endpoint, make_calls(count, "kept"), cache),
        )
        measure(
            f"{THREADS} threads, barrier per {CONCURRENCY}",
            count,
            THREADS,
            lambda: ask_threads(endpoint, make_calls(count, "threads")),
        )
        cache.close()


if __name__ == "__main__":
    main()
