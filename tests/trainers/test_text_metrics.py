"""What the episodes of an update are reported as, and a dead candidate that is never preferred."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_world import DEAD, DEAD_WORLD, make_recipe, open_run

torch = pytest.importorskip("torch")
pytest.importorskip("trl", reason="the extra `text` is absent")

from rlroute.tracking import read_metrics  # noqa: E402
from rlroute.trainers.text_metrics import (  # noqa: E402
    count_episodes,
    describe_text_episodes,
    is_collapsed,
    name_text_metrics,
)
from rlroute.trainers.text_problem import make_environment  # noqa: E402
from rlroute.trainers.text_run import TextRun  # noqa: E402
from rlroute.types import (  # noqa: E402
    Call,
    Candidate,
    FailureKind,
    Prices,
    Query,
    Reply,
    TextDecision,
    TextObservation,
    Trajectory,
    Transition,
)

QUERY = Query("q", "Who?")
CANDIDATES = (Candidate("large", Prices(1.0, 2.0)), Candidate("small", Prices(0.1, 0.2)))
NAMES = ("alpha", "beta", "large", "small")


def make_episode(
    *calls: tuple[str, FailureKind | None, bool], truncated: bool = False
) -> Trajectory[TextObservation, TextDecision]:
    """Return an episode with one call per turn (candidate, failure, cached), and an answer."""
    steps = []
    turns: list[tuple[str, FailureKind | None, bool] | None] = [*calls, None]
    for turn, call in enumerate(turns):
        replies: tuple[Reply, ...] = ()
        if call is not None:
            name, failure, cached = call
            asked = Call(name, QUERY, "x of y")
            replies = (Reply(asked, "Bo", cost_usd=0.5, failure=failure, cached=cached),)
        last = turn == len(turns) - 1
        steps.append(
            Transition(
                observation=TextObservation(f"<seen {turn}>", 0.4),
                decision=TextDecision(f"<said {turn}>", (1,), (2, 3), (-1.0, -1.0)),
                replies=replies,
                reward_terms={},
                terminated=last and not truncated,
                truncated=last and truncated,
            )
        )
        if replies and replies[0].failure is not None:
            break
    return Trajectory(QUERY, 0, tuple(steps))


EPISODES = (
    make_episode(("large", None, False), ("small", None, True)),
    make_episode(truncated=True),
    make_episode(("small", FailureKind.SERVER, False)),
    make_episode(("small", None, False)),
)
NAN = float("nan")


def make_rewards(**changes: Sequence[float]) -> dict[str, Any]:
    rows: dict[str, Sequence[float]] = {
        "format": [0.0, -1.0, NAN, 0.0],
        "outcome": [1.0, 0.0, NAN, 0.0],
        "cost": [0.2, 1.0, NAN, 0.6],
        "charge_usd": [1.0, 0.0, NAN, 0.5],
        "reward": [0.7, -1.0, NAN, 0.0],
    }
    return {name: np.array(value, np.float32) for name, value in (rows | changes).items()}


def test_sums_count_calls_money_and_failures() -> None:
    sums = count_episodes(EPISODES)
    assert sums == {
        "episodes": 4,
        "turns": 3 + 1 + 1 + 2,
        "calls": 4,
        "truncated": 1,
        "tokens": 2 * 7,
        "cached": 1,
        "billed_usd": 1.5,  # the cached reply is not billed, the failed one is
        "pick/large": 1,
        "pick/small": 3,
        "errors/server": 1,
        "dropped": 1,
    }
    parts = [count_episodes(EPISODES[:1]), count_episodes(EPISODES[1:])]
    assert {name: sum(part.get(name, 0) for part in parts) for name in sums} == sums


def test_undefined_rewards_leave_every_mean() -> None:
    found = name_text_metrics(count_episodes(EPISODES), make_rewards(), CANDIDATES, 2)
    assert found["reward/outcome/mean"] == pytest.approx(1 / 3)
    assert found["reward/outcome/frac_undefined"] == 0.25
    assert found["reward/cost/mean"] == pytest.approx(0.6)
    assert found["reward/mean"] == pytest.approx(-0.1)
    assert found["format/valid_rate"] == pytest.approx(2 / 3)
    assert found["cost/usd_per_query"] == pytest.approx(0.5)
    assert found["group/dropped"] == 1
    assert found["group/frac_zero_std"] == 0.5  # one group has a single defined reward
    assert found["episode/calls"] == 1
    assert found["episode/frac_truncated"] == 0.25
    assert found["cache/hit_rate"] == 0.25
    assert found["selection/share/small"] == 0.75
    assert found["errors/server"] == 1
    assert found["collapse/alarm"] == 0


def test_an_update_of_failed_episodes_alone_has_no_means_and_no_alarm_of_one_candidate() -> None:
    rewards = {name: np.full(2, np.nan, np.float32) for name in make_rewards()}
    sums = count_episodes([EPISODES[2], EPISODES[2]])
    found = name_text_metrics(sums, rewards, CANDIDATES, 2)
    assert math.isnan(found["reward/mean"])
    assert math.isnan(found["format/valid_rate"])
    assert found["reward/outcome/frac_undefined"] == 1
    assert found["group/frac_zero_std"] == 1


def test_no_groups_no_metrics_of_groups_and_no_calls_no_division() -> None:
    rewards = {name: value[1:2] for name, value in make_rewards().items()}
    found = name_text_metrics(count_episodes(EPISODES[1:2]), rewards, CANDIDATES, 1)
    assert "group/frac_zero_std" not in found
    assert found["selection/share/large"] == found["selection/share/small"] == 0
    assert found["selection/entropy"] == 0
    assert found["cache/hit_rate"] == 0


@pytest.mark.parametrize(
    ("shares", "valid", "expected"),
    [
        ([0.5, 0.5], 1.0, False),
        ([0.94, 0.06], 0.6, False),
        ([0.96, 0.04], 1.0, True),  # one candidate for everything
        ([0.5, 0.5], 0.4, True),  # the text has come apart
        ([1.0], 1.0, False),  # there is nobody else
    ],
)
def test_the_alarm_tells_a_collapse(shares: list[float], valid: float, expected: bool) -> None:
    share_K = np.array(shares, np.float32)
    assert is_collapsed({"format/valid_rate": valid}, share_K) is expected


def test_a_described_episode_reads_as_it_was_written() -> None:
    rows = describe_text_episodes(EPISODES, make_rewards(), 3)
    assert len(rows) == 3
    assert rows[0]["text"] == "<said 0><seen 1><said 1><seen 2><said 2>"
    assert rows[0]["calls"] == "large, small"
    assert rows[0]["reward"] == pytest.approx(0.7)
    assert rows[2]["failure"] == "server"
    assert rows[2]["reward"] is rows[2]["charge_usd"] is None


# --- A whole run ----------------------------------------------------------------------------------


def measure_shares(run: TextRun) -> dict[str, float]:
    """Return the probability of each name where one is due, over the questions of val."""
    tokenizer, shares = run.rollouts.tokenizer, []
    ids = {name: tokenizer.encode(name, add_special_tokens=False) for name in NAMES}
    for query in run.problem.val:
        prompt = make_environment(run.recipe, run.problem).reset(query, seed=0).text
        before = f"<think>{query.metadata['relations']}</think><search>"
        context = tokenizer.encode(prompt) + tokenizer.encode(before, add_special_tokens=False)
        with torch.no_grad():
            logits_V = run.trainer.model(input_ids=torch.tensor([context])).logits[0, -1]
        shares.append(logits_V.softmax(-1)[[ids[name][0] for name in NAMES]])
    return dict(zip(NAMES, torch.stack(shares).mean(dim=0).tolist(), strict=True))


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_dead_specialist_is_not_preferred(algorithm: str, tmp_path: Path) -> None:
    groups = {"group_size": 8} if algorithm == "grpo" else {}
    recipe = make_recipe(
        algorithm,
        changes={"episodes": 64, "micro_batch": 64, **groups},
        world=DEAD_WORLD,
        updates=10,
        episode={"cost_weights": [0.9]},  # a call that cost nothing would pay
        optimiser={"learning_rate": 5e-3},
    )
    with open_run(recipe, tmp_path) as run:
        before = measure_shares(run)
        run.train(resume=False)
        after = measure_shares(run)
    assert min(before.values()) > 0.1
    assert after[DEAD] < before[DEAD]
    assert after[DEAD] < max(share for name, share in after.items() if name != DEAD)
    assert after["small"] > before["small"] + 0.1  # the cheapest one that answers
    rows = read_metrics(tmp_path)[1:]
    assert rows[0]["group/dropped"] > 0
    for row in rows:
        assert row["errors/server"] == row["group/dropped"]  # the first failure ends an episode
        for term in ("format", "outcome", "cost"):
            undefined = row[f"reward/{term}/frac_undefined"]
            assert undefined == pytest.approx(row["group/dropped"] / 64)


def test_failures_of_attempts_that_were_tried_again_are_counted(tmp_path: Path) -> None:
    rollout = {"on_failure": "retry", "retries": 8}
    recipe = make_recipe(world=DEAD_WORLD, rollout=rollout, updates=1)
    with open_run(recipe, tmp_path) as run:
        run.train(resume=False)
    row = read_metrics(tmp_path)[1]
    assert row["group/dropped"] == 0  # each found somebody who answers
    assert row["errors/server"] > 0
