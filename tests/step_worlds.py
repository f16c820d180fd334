"""Worlds and a pool for tests of many-step episodes: costs below bounds, replies that wait."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from rlroute.seeding import draw_uniform
from rlroute.types import Call, Candidate, FailureKind, Prices, Query, Reply, Usage
from rlroute.worlds.base import WorldState, WorldStep, describe_executors
from rlroute.worlds.chain import ChainConfig, ChainExecutor, ChainKind

USAGE = Usage(1000, 100)


def make_chain(critical: int, *, horizon: int = 10, **fields) -> ChainConfig:
    """Return a chain of one kind: critical steps succeed with 0.3 under small, 0.9 under large."""
    kind = ChainKind(name="one", share=1.0, critical_steps=critical, success=(0.3, 0.9), hint=0.0)
    return ChainConfig(kinds=(kind,), horizon=horizon, **fields)


THREE_EXECUTORS = (
    ChainExecutor(id="small", input=0.4, output=1.6),
    ChainExecutor(id="middle", input=1.0, output=4.0),
    ChainExecutor(id="large", input=2.0, output=8.0),
)
THREE_KINDS = (
    ChainKind(name="plain", share=0.7, critical_steps=2, success=(0.5, 0.7, 0.9), hint=0.2),
    ChainKind(name="rough", share=0.3, critical_steps=4, success=(0.1, 0.5, 0.9), hint=0.8),
)


class MeteredWorld:
    """Episodes of different lengths whose steps cost a random part of their bound.

    A task needs 2 to 5 successes; executor k succeeds with (k + 1) / (K + 1). The bound of a step
    grows with the turn. `overrun` is how far a cost may exceed its bound, as a share of it;
    `barred`: the dearest executor may not act at odd turns; `behind_pool`: all but the cheapest are
    asked through a pool, and succeed where the reply says "done".
    """

    name = "metered"
    horizon = 8
    feature_names = ("progress", "confidence")

    def __init__(
        self,
        executors: int = 3,
        *,
        overrun: float = 0.0,
        barred: bool = False,
        behind_pool: bool = False,
    ) -> None:
        self.settings = {"overrun": overrun, "barred": barred, "behind_pool": behind_pool}
        self.overrun, self.barred, self.behind_pool = overrun, barred, behind_pool
        self.executors = tuple(Candidate(f"e{k}", Prices(4.0**k, 4.0**k)) for k in range(executors))
        self.executor_features_KD = describe_executors(self.executors)

    def list_tasks(self, split):
        return tuple(
            Query(f"{split}-{n}", f"Task {n}.", task=f"need-{2 + n % 4}", metadata={"n": str(n)})
            for n in range(12)
        )

    def fork(self):
        return MeteredWorld(len(self.executors), **self.settings)

    def reset(self, task, seed):
        self.task, self.seed = task, seed
        self.need, self.progress, self.turn = 2 + int(task.metadata["n"]) % 4, 0, 0
        return self.show(task.text)

    def show(self, text):
        legal_K = np.ones(len(self.executors), dtype=np.bool_)
        if self.barred and self.turn % 2:
            legal_K[-1] = False
        confidence = float(draw_uniform("confidence", self.seed, self.turn)) if self.turn else 1.0
        features_W = np.array([self.progress / self.need, confidence], dtype=np.float32)
        return WorldState(text, features_W, legal_K)

    def bound_cost_usd(self, executor):
        return 0.001 * 4.0**executor * (1 + self.turn)

    def request(self, executor):
        if not self.behind_pool or executor == 0:
            return None
        text = f"{self.seed} {self.turn}"
        return Call(self.executors[executor].id, self.task, text)

    def step(self, executor, reply):
        rate = (executor + 1) / (len(self.executors) + 1)
        solved = float(draw_uniform("metered", self.seed, self.turn)) < rate
        share = float(draw_uniform("cost", self.seed, self.turn, executor))
        cost_usd = self.bound_cost_usd(executor) * share * (1 + self.overrun)
        if reply is not None:
            assert reply.failure is None
            solved, cost_usd = reply.text == "done", reply.cost_usd
        self.turn += 1
        self.progress += solved
        done = self.progress == self.need
        return WorldStep(
            self.show(f"Step {self.turn}."), USAGE, cost_usd, done, float(done), "went on"
        )

    def advise(self):
        return len(self.executors) - 1


class WaitingPool:
    """Replies after some turns of the event loop; a call text of `failures` fails so many times.

    The calls of `held` are answered only when `others` calls have been; whoever waits for them
    before the others go on waits for ever (and is told so after a while).
    """

    def __init__(
        self,
        failures: Mapping[str, int] | None = None,
        *,
        held: str = "",
        others: int = 0,
    ) -> None:
        self.failures, self.held, self.others = Counter(failures or {}), held, others
        self.asked: list[str] = []
        self.answered = 0

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        return [await self.ask(call) for call in calls]

    async def ask(self, call: Call) -> Reply:
        self.asked.append(call.text)
        words = (call.candidate_id, *call.text.split())
        for _ in range(int(8 * draw_uniform("wait", *words))):
            await asyncio.sleep(0)
        if self.held and call.text == self.held:
            async with asyncio.timeout(20):
                while self.answered < self.others:
                    await asyncio.sleep(0.001)
        self.answered += 1
        if self.failures[call.text] > 0:
            self.failures[call.text] -= 1
            return Reply(call, failure=FailureKind.TIMEOUT, cost_usd=0.5)
        text = "done" if draw_uniform("reply", *words) < 0.6 else "not yet"
        return Reply(call, text=text, cost_usd=0.001 * float(draw_uniform("price", *words)))
