"""A small text environment, pools and queries for tests of episodes of text."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rlroute.envs.base import Step
from rlroute.rollout.plan import EpisodePlan
from rlroute.types import Call, FailureKind, Query, Reply, TextObservation

COST_WEIGHT = 0.5


class Talk:
    """Asks the candidate "oracle" with every text; the query's id says how many texts there are."""

    def __init__(self) -> None:
        self.left = 0

    def reset(self, query: Query, seed: int) -> TextObservation:
        self.query, self.seed, self.left = query, seed, int(query.id)
        return TextObservation(f"Question {seed}: {query.text}\n", COST_WEIGHT)

    def propose(self, action: str) -> tuple[Call, ...]:
        self.said = action
        return (Call("oracle", self.query, action),)

    def observe(self, replies: Sequence[Reply]) -> Step[TextObservation]:
        self.left -= 1
        terms = {} if self.left else {"outcome": 1.0}
        if replies[0].failure is not None:
            terms = {"outcome": None}
        observation = TextObservation(f"\n<information>{replies[0].text}</information>\n", 0.5)
        return Step(observation, terms, terminated=not self.left)

    def truncate(self) -> Step[TextObservation]:
        return Step(TextObservation("", COST_WEIGHT), {"outcome": 0.25}, False, truncated=True)


@dataclass
class Oracle:
    """Replies with the length of the text; the first calls about some queries fail."""

    failures: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        await asyncio.sleep(0)
        return [self.reply(call) for call in calls]

    def reply(self, call: Call) -> Reply:
        self.asked.append(call.query.text)
        if self.failures.get(call.query.text, 0) > 0:
            self.failures[call.query.text] -= 1
            return Reply(call, failure=FailureKind.TIMEOUT)
        return Reply(call, text=f"{len(call.text)} letters of {call.query.text}", cost_usd=0.001)


def make_queries(*turns: int) -> list[Query]:
    return [Query(str(count), f"q{row}") for row, count in enumerate(turns)]


def make_plan(episodes: int, *, shared: bool = False) -> EpisodePlan:
    """One episode per query, or all of the first query in one group."""
    rows = np.arange(episodes)
    same = np.zeros_like(rows) if shared else rows
    return EpisodePlan(same, same + 10, rows + 100, same)
