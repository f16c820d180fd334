"""Episodes per second of the rollout engine beside a loop whose turns wait for each other.

64 episodes of the multi-round environment, each with up to 4 calls and then an answer, by the same
scripted policy against the same simulated pool: reply latency is log-normal (median 0.8 s, sigma
0.5), and one call in ten takes 5 s; all latencies are divided by `--scale`. Side by side in one
process, several rounds with other draws:

- turns: the shape of Router-R1's loop. All episodes decide, a pool of 10 threads is made and asks
  for all of them, the slowest reply is waited for, and all go on to the next turn;
- engine, 10 in flight: our engine with as many calls under way as the threads allow, which shows
  what the missing barrier alone is worth;
- engine: our engine;
- longest episode: no loop can be faster than the latencies of one episode, one after another.

With `--calls always` every episode makes all 4 calls; with `mixed` 1 to 4, and most of the time is
then the longest episode's. The scripted policy decides at once, so no text is generated: what is
measured is the waiting.

    PYTHONPATH=. python tests/benchmarks/rollout_engine.py [--calls always|mixed] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import NormalDist, mean

import numpy as np

from rlroute.envs.multi_round import MultiRound, MultiRoundConfig
from rlroute.rollout.engine import run_episodes
from rlroute.rollout.plan import EpisodePlan
from rlroute.seeding import draw_uniform
from rlroute.types import Call, Candidate, Prices, Query, Reply, TextDecision, TextObservation

EPISODES, CALLS, THREADS = 64, 4, 10
MEDIAN, SIGMA = 0.8, 0.5
STRAGGLERS, STRAGGLER_SECONDS = 0.1, 5.0
CANDIDATES = (Candidate("small", Prices(0.1, 0.4)), Candidate("large", Prices(1.0, 4.0)))


@dataclass(frozen=True)
class World:
    """Latencies and scripts of one round, as functions of the query and the call."""

    seed: int
    scale: float
    always: bool

    def draw_latency(self, call: Call) -> float:
        """Return the seconds until the reply to a call."""
        where = (self.seed, call.query.id, call.text)
        if float(draw_uniform("straggler", *where)) < STRAGGLERS:
            return STRAGGLER_SECONDS / self.scale
        normal = NormalDist().inv_cdf(max(float(draw_uniform("latency", *where)), 1e-12))
        return MEDIAN * math.exp(SIGMA * normal) / self.scale

    def write(self, query: Query, turn: int) -> str:
        """Return the text of the scripted policy: calls, as many as the query wants, an answer."""
        wanted = 1 + int(draw_uniform(self.seed, "calls", query.id) * CALLS)
        if turn < (CALLS if self.always else wanted):
            name = CANDIDATES[turn % len(CANDIDATES)].id
            return f"<think>next</think>\n<search>{name}: part {turn}</search>"
        return "<think>done</think>\n<answer>42</answer>"


@dataclass
class Script:
    """One episode of the scripted policy, for the engine."""

    world: World
    query: Query
    turn: int = 0

    async def decide(self, observation: TextObservation) -> tuple[str, TextDecision]:
        """Write the next text."""
        text = self.world.write(self.query, self.turn)
        self.turn += 1
        return text, TextDecision(text, (1,), (2,), (0.0,))


class WaitingPool:
    """Replies after the latency of each call, at most `in_flight` at a time."""

    def __init__(self, world: World, in_flight: int) -> None:
        self.world, self.gate = world, asyncio.Semaphore(in_flight)

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        """Return one reply per call, in the same order."""
        return list(await asyncio.gather(*[self.ask(call) for call in calls]))

    async def ask(self, call: Call) -> Reply:
        """Wait for one reply."""
        async with self.gate:
            await asyncio.sleep(self.world.draw_latency(call))
        return Reply(call, text="a part of it", cost_usd=0.001)


def make_environment() -> MultiRound:
    """Return a fresh environment of the size that both loops play."""
    return MultiRound(CANDIDATES, MultiRoundConfig(max_calls=CALLS))


def run_engine(world: World, queries: Sequence[Query], in_flight: int) -> int:
    """Play all queries with the engine; return the number of replies."""
    rows = np.arange(len(queries))
    work = run_episodes(
        make_environment,
        lambda row, attempt: Script(world, queries[row]),
        WaitingPool(world, in_flight),
        queries,
        EpisodePlan(rows, rows, rows, rows),
        on_failure="fail",
    )
    trajectories = asyncio.run(work)
    assert all(trajectory.transitions[-1].terminated for trajectory in trajectories)
    return sum(len(step.replies) for item in trajectories for step in item.transitions)


def run_turns(world: World, queries: Sequence[Query]) -> int:
    """Play all queries turn by turn, with threads and a barrier; return the number of replies."""

    def ask(call: Call) -> Reply:
        time.sleep(world.draw_latency(call))
        return Reply(call, text="a part of it", cost_usd=0.001)

    environments = [make_environment() for _ in queries]
    for environment, query in zip(environments, queries, strict=True):
        environment.reset(query, 0)
    alive = list(range(len(queries)))
    replies_total = turn = 0
    while alive:
        calls_N = [environments[i].propose(world.write(queries[i], turn)) for i in alive]
        asked = [call for calls in calls_N for call in calls]
        with ThreadPoolExecutor(THREADS) as executor:
            replies = iter(list(executor.map(ask, asked)))  # the barrier
        replies_total += len(asked)
        going = []
        for i, calls in zip(alive, calls_N, strict=True):
            step = environments[i].observe([next(replies) for _ in calls])
            if not step.terminated:
                going.append(i)
        alive = going
        turn += 1
    return replies_total


def find_longest(world: World, queries: Sequence[Query]) -> float:
    """Return the seconds that the replies of the slowest episode take, one after another."""
    longest = 0.0
    for query in queries:
        environment, seconds = make_environment(), 0.0
        environment.reset(query, 0)
        for turn in range(CALLS):
            calls = environment.propose(world.write(query, turn))
            seconds += sum(world.draw_latency(call) for call in calls)
            environment.observe([Reply(call, text="a part of it") for call in calls])
            if not calls:
                break
        longest = max(longest, seconds)
    return longest


def measure(work: Callable[[], int]) -> tuple[float, int]:
    """Return episodes per second and the number of replies."""
    began = time.perf_counter()
    replies = work()
    return EPISODES / (time.perf_counter() - began), replies


def main() -> None:
    """Print episodes per second of the three and the ratio to the turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", choices=["always", "mixed"], default="always")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=20.0)
    options = parser.parse_args()
    rates: dict[str, list[float]] = defaultdict(list)
    for seed in range(options.rounds):
        world = World(seed, options.scale, options.calls == "always")
        queries = [Query(f"q{i}", f"question {i}", references=("42",)) for i in range(EPISODES)]
        results = {
            "turns": measure(lambda w=world, q=queries: run_turns(w, q)),
            "engine, 10 in flight": measure(lambda w=world, q=queries: run_engine(w, q, THREADS)),
            "engine": measure(lambda w=world, q=queries: run_engine(w, q, EPISODES)),
        }
        assert len({replies for _, replies in results.values()}) == 1
        for name, (rate, replies) in results.items():
            rates[name].append(rate)
            print(f"round {seed}  {name:<22}{replies:>5} calls {rate:>8.1f} episodes/s")
        rates["longest episode"].append(EPISODES / find_longest(world, queries))
    for name, values in rates.items():
        ratio = mean(values) / mean(rates["turns"])
        print(f"mean     {name:<22}{mean(values):>19.1f} episodes/s {ratio:>6.2f} times the turns")


if __name__ == "__main__":
    main()
