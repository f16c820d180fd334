"""Gymnasium's `reset` and `step` around the multi-round environment: texts in, texts out.

Arguments of `gymnasium.make("rlroute/MultiRound-v0", ...)`:

- `candidates`, `queries`, `pool`: what is asked about whom; all three or none. Without them it is
  the relations world (`rlroute.pool.relations`) with 300 train queries.
- `config`: a mapping as in a recipe (`MultiRoundConfig`), or one made before.
- `reward`: a mapping (`MultiRoundRewardConfig`), or one made before.

For the relations world, what is not stated in `config` and `reward` is set as it needs it: prompts
with descriptions, which say who knows which relations, and costs in units of its reference.

It leaves out waiting for many episodes at once (`rlroute.rollout.engine`): the pool is asked from
`step`, which cannot run inside an event loop.
"""

from __future__ import annotations

import asyncio
import string
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from rlroute.config import parse_config
from rlroute.envs.multi_round import MultiRound, MultiRoundConfig
from rlroute.envs.registration import MULTI_ROUND
from rlroute.parsing import get_shown_name
from rlroute.pool.base import Pool
from rlroute.pool.relations import RelationsWorld
from rlroute.pool.relations_config import RelationsConfig
from rlroute.rewards.multi_round import MultiRoundReward, MultiRoundRewardConfig
from rlroute.types import Candidate, Query, RLRouteError

WORLD_QUERIES = 300
MAX_LENGTH = 10_000_000
SAMPLE_LENGTH = 40
CHARACTERS = string.ascii_letters + string.digits + " .:?<>/"


class UnicodeText(spaces.Text):
    """Any text up to `MAX_LENGTH` characters; samples are short and drawn from `CHARACTERS`."""

    def __init__(self) -> None:
        super().__init__(max_length=MAX_LENGTH, min_length=0, charset=CHARACTERS)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Draw a short text; masks are left to `gymnasium.spaces.Text`."""
        if mask is not None or probability is not None:
            return super().sample(mask, probability)
        length = self.np_random.integers(SAMPLE_LENGTH + 1)
        return "".join(self.np_random.choice(list(CHARACTERS), size=length))

    def contains(self, x: Any) -> bool:
        """Accept every text that is not too long."""
        return isinstance(x, str) and len(x) <= MAX_LENGTH

    def __eq__(self, other: object, /) -> bool:
        """Compare the kinds: there is one set of texts."""
        return isinstance(other, UnicodeText) and type(self) is type(other)

    __hash__ = None  # type: ignore[assignment] # spaces are mutable, as in Gymnasium

    def __repr__(self) -> str:
        """Return the name."""
        return f"{type(self).__name__}()"


class ChunkText(UnicodeText):
    """Chunks of a policy: any text is in it; samples also hold calls of `names` and answers."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Draw a call, an answer or any text, a third each, mostly after a thought."""
        text = super().sample(mask, probability)
        if mask is not None or probability is not None:
            return text
        kind = self.np_random.integers(3)
        if kind == 0:
            name = self.names[self.np_random.integers(len(self.names))]
            text = f"<search>{name}:{text}</search>"
        elif kind == 1:
            text = f"<answer>{text}</answer>"
        return f"<think>hm</think>{text}" if self.np_random.integers(4) else text


class MultiRoundGym(gymnasium.Env[str, str]):
    """`rlroute/MultiRound-v0` for anything that speaks Gymnasium.

    `reset(seed=..., options={...})` takes the query as `query_id` or `query_index`, and what draws
    the cost weight as `episode_seed`; each is drawn where it is not given. Rewards are 0 until the
    end, then the combined one, NaN where a term is undefined; the terms, the normalised cost among
    them, stand in `info["reward_terms"]` at the end. With a normaliser that keeps a window of
    charges, rewards depend on the episodes before.

    Raises:
        ValueError: `step` is called after the end.
        RuntimeError: `step` is called inside a running event loop.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - the type is Gymnasium's

    def __init__(
        self,
        candidates: Sequence[Candidate],
        queries: Sequence[Query],
        pool: Pool,
        config: MultiRoundConfig,
        reward: MultiRoundRewardConfig,
    ) -> None:
        if not queries:
            raise RLRouteError(f"{MULTI_ROUND}: queries is empty")
        self.environment = MultiRound(candidates, config, reward.format)
        self.queries = tuple(queries)
        self.row_by_query = {query.id: row for row, query in enumerate(self.queries)}
        self.pool = pool
        self.reward = MultiRoundReward(reward)
        self.observation_space = UnicodeText()
        self.action_space = ChunkText([get_shown_name(candidate) for candidate in candidates])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode with a drawn or named query; the observation is the whole prompt."""
        super().reset(seed=seed)
        options = options or {}
        drawn_seed = int(self.np_random.integers(2**62))
        row = int(self.np_random.integers(len(self.queries)))
        if "query_id" in options:
            row = self.row_by_query[options["query_id"]]
        query = self.queries[int(options.get("query_index", row))]
        observation = self.environment.reset(query, int(options.get("episode_seed", drawn_seed)))
        return observation.text, {"query_id": query.id, "cost_weight": observation.cost_weight}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take one chunk; the observation is what follows it."""
        calls = self.environment.propose(str(action))
        replies = asyncio.run(self.pool.ask_many(calls)) if calls else []
        step = self.environment.observe(replies)
        reward = 0.0
        info: dict[str, Any] = {"cost_weight": step.observation.cost_weight}
        if step.reward_terms:
            terms = {
                name: np.array([np.nan if value is None else value], dtype=np.float32)
                for name, value in step.reward_terms.items()
            }
            weight = np.array([step.observation.cost_weight], dtype=np.float32)
            scores = self.reward.score(terms, weight, frozen=False)
            reward = float(scores.pop("reward")[0])
            info["reward_terms"] = {name: value[0] for name, value in {**terms, **scores}.items()}
        return step.observation.text, reward, step.terminated, step.truncated, info

    def get_state(self) -> dict[str, Any]:
        """Return the state of episode and reward as plain JSON values."""
        return {"episode": self.environment.get_state(), "reward": self.reward.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> str:
        """Restore a state of `get_state` and return its observation."""
        self.reward.set_state(state["reward"])
        return self.environment.set_state(state["episode"]).text


def make_multi_round(
    candidates: Sequence[Candidate] | None = None,
    queries: Sequence[Query] | None = None,
    pool: Pool | None = None,
    config: Mapping[str, Any] | MultiRoundConfig | None = None,
    reward: Mapping[str, Any] | MultiRoundRewardConfig | None = None,
) -> MultiRoundGym:
    """Build the environment from the arguments of `gymnasium.make`; see the module.

    Raises:
        RLRouteError: some but not all of candidates, queries and pool are given, or a key or value
            of a mapping is unfit.
    """
    default_config: dict[str, Any] = {}
    default_reward: dict[str, Any] = {}
    if candidates is None and queries is None and pool is None:
        world = RelationsWorld(parse_config(RelationsConfig, {}, MULTI_ROUND))
        candidates, queries = world.candidates, world.make_queries("train", WORLD_QUERIES)
        pool = world
        default_config = {"profile": "text"}
        default_reward = {"normaliser": {"kind": "fixed", "reference_usd": world.reference_usd}}
    if candidates is None or queries is None or pool is None:
        raise RLRouteError(f"{MULTI_ROUND}: give candidates, queries and pool, or none of them")
    if not isinstance(config, MultiRoundConfig):
        stated = {**default_config, **(config or {})}
        config = parse_config(MultiRoundConfig, stated, f"{MULTI_ROUND}: config")
    if not isinstance(reward, MultiRoundRewardConfig):
        stated = {**default_reward, **(reward or {})}
        reward = parse_config(MultiRoundRewardConfig, stated, f"{MULTI_ROUND}: reward")
    return MultiRoundGym(candidates, queries, pool, config, reward)
