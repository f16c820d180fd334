"""Many episodes at once with scripted agents: order of events, failures, limits, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from text_episodes import Oracle, Talk, make_plan, make_queries

from rlroute.rollout.engine import run_episodes
from rlroute.types import Call, FailureKind, Reply, RLRouteError, TextDecision, TextObservation


@dataclass
class Speaker:
    """Says its row, attempt and turn."""

    row: int
    attempt: int
    turn: int = 0

    async def decide(self, observation: TextObservation) -> tuple[str, TextDecision]:
        text = f"row {self.row} attempt {self.attempt} turn {self.turn}"
        self.turn += 1
        return text, TextDecision(text, (1,), (2,), (-1.0,), policy_version=self.turn)


@dataclass
class Started:
    """Counts the environments and agents that a run makes."""

    agents: list[tuple[int, int]] = field(default_factory=list)
    environments: list[Talk] = field(default_factory=list)

    def start_agent(self, row: int, attempt: int) -> Speaker:
        self.agents.append((row, attempt))
        return Speaker(row, attempt)

    def make_environment(self) -> Talk:
        self.environments.append(Talk())
        return self.environments[-1]


def run(pool: Any, turns: Sequence[int], started: Started | None = None, **options: Any) -> Any:
    started = started or Started()
    work = run_episodes(
        started.make_environment,
        started.start_agent,
        pool,
        make_queries(*turns),
        make_plan(len(turns)),
        **{"on_failure": "drop", **options},
    )
    return asyncio.run(asyncio.wait_for(work, 60))  # a held episode is an error, not a hang


@dataclass
class Staged(Oracle):
    """Holds back the reply to some texts until other texts have been answered."""

    holds: dict[str, str] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    answered: dict[str, asyncio.Event] = field(default_factory=dict)

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        (call,) = calls
        if call.text in self.holds:
            await self.answered.setdefault(self.holds[call.text], asyncio.Event()).wait()
        self.log.append(call.text)
        self.answered.setdefault(call.text, asyncio.Event()).set()
        return [self.reply(call) for call in calls]


def test_an_episode_that_waits_for_its_reply_holds_no_other():
    first_of_slow, last_of_fast = "row 0 attempt 0 turn 0", "row 2 attempt 0 turn 3"
    pool = Staged(holds={first_of_slow: last_of_fast})
    trajectories = run(pool, [2, 3, 4])
    assert pool.log.index(first_of_slow) > pool.log.index(last_of_fast)
    assert [len(trajectory.transitions) for trajectory in trajectories] == [2, 3, 4]
    assert [trajectory.query.text for trajectory in trajectories] == ["q0", "q1", "q2"]


def test_no_more_episodes_are_under_way_than_allowed():
    @dataclass
    class Counting(Oracle):
        inside: int = 0
        most: int = 0

        async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
            self.inside += 1
            self.most = max(self.most, self.inside)
            for _ in range(5):
                await asyncio.sleep(0)
            self.inside -= 1
            return [self.reply(call) for call in calls]

    limited, free = Counting(), Counting()
    run(limited, [2] * 9, concurrency=3)
    run(free, [2] * 9)
    assert (limited.most, free.most) == (3, 9)


def test_a_retry_starts_with_a_fresh_environment_and_a_fresh_agent():
    started = Started()
    pool = Oracle(failures={"q1": 1})
    first, second = run(pool, [2, 2], started, on_failure="retry", retries=2)
    assert (first.failure, second.failure) == (None, None)
    assert sorted(started.agents) == [(0, 0), (1, 0), (1, 1)]
    assert len(started.environments) == 3
    texts = [step.decision.text for step in second.transitions]
    assert texts == ["row 1 attempt 1 turn 0", "row 1 attempt 1 turn 1"]
    assert second.seed == 11


def test_a_row_whose_retries_are_used_up_stays_with_its_failure():
    started = Started()
    _, second = run(Oracle(failures={"q1": 99}), [2, 2], started, on_failure="retry", retries=2)
    assert second.failure is FailureKind.TIMEOUT
    assert sorted(started.agents) == [(0, 0), (1, 0), (1, 1), (1, 2)]


def test_a_dropped_episode_is_not_tried_again_and_stays_in_its_row_as_undefined():
    started = Started()
    first, second = run(Oracle(failures={"q1": 1}), [2, 2], started, retries=5)
    assert sorted(started.agents) == [(0, 0), (1, 0)]
    assert first.failure is None
    assert second.failure is FailureKind.TIMEOUT
    assert len(second.transitions) == 1
    assert second.transitions[0].reward_terms == {"outcome": None}


def test_a_failed_call_ends_the_run_when_told_to_and_is_named():
    started = Started()
    message = "query '3': candidate 'oracle' failed \\(timeout\\)"
    with pytest.raises(RLRouteError, match=message):
        run(Oracle(failures={"q1": 1}), [2, 3], started, on_failure="fail", retries=5)
    assert sorted(started.agents) == [(0, 0), (1, 0)]


def test_an_error_cancels_the_other_episodes_and_waits_for_their_end():
    ended: list[str] = []

    @dataclass
    class Waiting(Oracle):
        async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
            if calls[0].query.text == "q0":
                try:
                    await asyncio.Event().wait()
                finally:
                    await asyncio.sleep(0)
                    ended.append("q0")
            return [self.reply(call) for call in calls]

    with pytest.raises(RLRouteError, match="timeout"):
        run(Waiting(failures={"q1": 1}), [2, 2], on_failure="fail")
    assert ended == ["q0"]


def test_an_error_of_the_agent_is_the_error_of_the_run():
    class Mute(Speaker):
        async def decide(self, observation: TextObservation) -> tuple[str, TextDecision]:
            raise RLRouteError("the sampler is gone")

    start: Callable[[int, int], Mute] = Mute
    work = run_episodes(
        Talk, start, Oracle(), make_queries(1, 1), make_plan(2), on_failure="retry", retries=3
    )
    with pytest.raises(RLRouteError, match="the sampler is gone"):
        asyncio.run(work)


def test_a_plan_of_no_episodes_gives_none():
    assert run(Oracle(), []) == []
