"""`rlroute/MemoryTiers-v0`: which tier for every module of a memory pipeline, for Gymnasium.

    import gymnasium, rlroute.envs
    env = gymnasium.make("rlroute/MemoryTiers-v0", tree="my-tree")
    env = gymnasium.make_vec("rlroute/MemoryTiers-v0", 4096, tree="my-tree")

What an episode is stands in `rlroute.envs.memory_tiers`; here an observation holds `features` [F],
`module` [M] (one-hot: whose tier is chosen; zeros at the end), `mask` [K] and `cost_weight` [1].

Arguments of `make` and `make_vec`: `tree` (a folder that `save_tree` wrote) or `outcomes` (any
`TierOutcomes`, such as `LiveOutcomes`); `cost_weight` (a number, or a mapping with min, max, power;
default 0 to 1); `caps_usd` (budgets in USD that episodes draw from, null for none) with `bound_usd`
(an upper bound of each tier of each module; from a tree it defaults to the largest cost there);
`reference_usd` (from a tree it defaults to the mean cost of the dearest static choice); `reward` (a
`MemoryReward`, which is frozen; default: score - cost weight * (cost / reference - 1)).

The episode's seed draws its cost weight and its cap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from pydantic import Field

from rlroute.config import StrictModel, parse_config
from rlroute.envs.budget import BudgetConfig
from rlroute.envs.gym import GymObservation
from rlroute.envs.memory_tiers import TierEpisodes
from rlroute.envs.registration import MEMORY_TIERS
from rlroute.envs.single_turn import CostWeightConfig
from rlroute.memory.outcomes import TierOutcomes
from rlroute.memory.tree import TierTree
from rlroute.memory.tree_files import load_tree
from rlroute.rewards.memory import CostReferenceConfig, MemoryReward, MemoryRewardConfig
from rlroute.seeding import mix
from rlroute.types import BoolArray, FloatArray, IntArray, RLRouteError, UsdArray

TERMS = ("outcome", "cost")
VectorResult = tuple[GymObservation, FloatArray, BoolArray, BoolArray, dict[str, Any]]


class MemoryTiersArguments(StrictModel):
    """What `make` takes beside objects."""

    tree: Path | None = None
    cost_weight: CostWeightConfig = CostWeightConfig(min=0.0, max=1.0, power=1.0)
    caps_usd: tuple[float | None, ...] = Field(default=(None,), min_length=1)
    bound_usd: tuple[tuple[float, ...], ...] | None = None
    reference_usd: float | None = Field(default=None, gt=0, allow_inf_nan=False)


@dataclass(frozen=True)
class TierProblem:
    """What the single and the vector form are made of."""

    outcomes: TierOutcomes
    reward: MemoryReward
    cost_weight: CostWeightConfig
    budget: BudgetConfig
    reference_usd: float
    bound_usd_MK: UsdArray | None

    def make_episodes(self) -> TierEpisodes:
        """Return the episodes' state machine."""
        return TierEpisodes(
            self.outcomes, reference_usd=self.reference_usd, bound_usd_MK=self.bound_usd_MK
        )

    def start(
        self, episodes: TierEpisodes, question_index_B: IntArray, episode_seed_B: IntArray
    ) -> None:
        """Begin episodes whose seeds draw cost weight and cap."""
        capped = self.bound_usd_MK is not None
        episodes.start(
            question_index_B,
            self.cost_weight.draw(episode_seed_B),
            self.budget.draw_caps(episode_seed_B) if capped else None,
        )

    def build_space(self, episodes: TierEpisodes) -> spaces.Dict:
        """Return the space of one observation."""
        low, high = np.float32(self.cost_weight.min), np.float32(self.cost_weight.max)
        return spaces.Dict(
            {
                "features": spaces.Box(-np.inf, np.inf, (episodes.features,), np.float32),
                "module": spaces.MultiBinary(episodes.modules),
                "mask": spaces.MultiBinary(episodes.tiers),
                "cost_weight": spaces.Box(low, high, (1,), np.float32),
            }
        )


def build_problem(
    outcomes: TierOutcomes | None, reward: MemoryReward | None, arguments: dict[str, Any]
) -> TierProblem:
    """Return the problem that the arguments of `make` describe.

    Raises:
        RLRouteError: an unknown or unfit argument, a tree that cannot be read, or neither outcomes
            nor tree, or no reference or bounds where they are needed.
    """
    weight = arguments.get("cost_weight", {})
    if isinstance(weight, (int, float)):
        arguments = {**arguments, "cost_weight": {"min": weight, "max": weight}}
    elif isinstance(weight, Mapping):
        arguments = {**arguments, "cost_weight": {"max": 1.0, "power": 1.0, **weight}}
    parsed = parse_config(MemoryTiersArguments, arguments, MEMORY_TIERS)
    if (outcomes is None) == (parsed.tree is None):
        raise RLRouteError(f"{MEMORY_TIERS}: give either tree (a folder) or outcomes (an object)")
    found = load_tree(parsed.tree) if parsed.tree is not None else outcomes
    assert found is not None
    tree = found if isinstance(found, TierTree) else None
    reference_usd = parsed.reference_usd
    if reference_usd is None:
        if tree is None:
            raise RLRouteError(f"{MEMORY_TIERS}: outcomes that are no tree need reference_usd")
        reference_usd = tree.find_reference_cost()
    if reward is None:
        cost = CostReferenceConfig(clip=False)
        config = MemoryRewardConfig(cost=cost, alignment=None).resolve(reference_usd)
        reward = MemoryReward(config)
    caps = {"unit": "usd", "caps": parsed.caps_usd}
    return TierProblem(
        outcomes=found,
        reward=reward.freeze(),
        cost_weight=parsed.cost_weight,
        budget=parse_config(BudgetConfig, caps, f"{MEMORY_TIERS}: caps_usd"),
        reference_usd=reference_usd,
        bound_usd_MK=find_bounds(parsed, found),
    )


def find_bounds(arguments: MemoryTiersArguments, outcomes: TierOutcomes) -> UsdArray | None:
    """Return the bounds of the tiers' costs [M, K], where there is a cap; None where there is none.

    Raises:
        RLRouteError: bounds are needed and not known, or are not as many as there are tiers.
    """
    if all(cap is None for cap in arguments.caps_usd):
        return None
    if arguments.bound_usd is None:
        if not isinstance(outcomes, TierTree):
            raise RLRouteError(
                f"{MEMORY_TIERS}: caps_usd on outcomes that are no tree need bound_usd"
            )
        return outcomes.find_largest_costs()
    counts = outcomes.facts.tier_counts
    if tuple(len(row) for row in arguments.bound_usd) != counts:
        raise RLRouteError(
            f"{MEMORY_TIERS}: bound_usd must have one row per module with one number per tier "
            f"{counts}"
        )
    bound_usd_MK = np.zeros((len(counts), max(counts)))
    for row_K, bounds in zip(bound_usd_MK, arguments.bound_usd, strict=True):
        row_K[: len(bounds)] = bounds
    return bound_usd_MK


def build_gym_observation(episodes: TierEpisodes) -> GymObservation:
    """Return the batched observation of all lanes."""
    view = episodes.observe()
    module_BM = np.zeros((len(view.mask_BK), episodes.modules), dtype=np.int8)
    if view.module < episodes.modules:
        module_BM[:, view.module] = 1
    return {
        "features": view.features_BF,
        "module": module_BM,
        "mask": view.mask_BK.astype(np.int8),
        "cost_weight": view.cost_weight_B[:, None],
    }


def score_step(
    episodes: TierEpisodes, reward: MemoryReward
) -> tuple[dict[str, FloatArray], dict[str, Any]]:
    """Return the reward terms of a step [B], 0 before the end, and what `info` says of an end."""
    if not episodes.ended:
        lanes = len(episodes.tier_BM)
        return {name: np.zeros(lanes, dtype=np.float32) for name in TERMS}, {}
    ends = episodes.end()
    return reward.score(ends.score_B, ends.cost_usd_B), {
        "score": ends.score_B,
        "cost_usd": ends.cost_usd_B,
        "answer_cost_usd": ends.answer_cost_usd_B,
        "tiers": ends.tier_BM,
    }


class MemoryTiersGym(gymnasium.Env[GymObservation, np.int64]):
    """One episode at a time, see the module's text.

    `reset(seed=..., options={...})` takes the question as `question_id` or `question_index`, and
    what draws cost weight and cap as `episode_seed`; each is drawn where it is not given. `info`
    holds `question_id` and `text` at the start and `reward_terms` after a step; at the end also
    `score`, `cost_usd`, `answer_cost_usd` and `tiers`.

    Raises:
        ValueError: `step` is called with a masked action or after the end.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - the type is Gymnasium's

    def __init__(self, problem: TierProblem) -> None:
        self.problem = problem
        self.rewards = problem.reward
        self.episodes = problem.make_episodes()
        questions = problem.outcomes.questions
        self.index_by_id = {one.query.id: index for index, one in enumerate(questions)}
        self.observation_space: spaces.Space[Any] = problem.build_space(self.episodes)
        self.action_space = spaces.Discrete(self.episodes.tiers)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[GymObservation, dict[str, Any]]:
        """Start an episode of a drawn or named question."""
        super().reset(seed=seed)
        options = options or {}
        drawn_seed = int(self.np_random.integers(2**62))
        index = int(self.np_random.integers(len(self.problem.outcomes.questions)))
        if "question_id" in options:
            index = self.index_by_id[options["question_id"]]
        self.question = int(options.get("question_index", index))
        self.episode_seed = int(options.get("episode_seed", drawn_seed))
        self.start()
        query = self.problem.outcomes.questions[self.question].query
        return self.observe(), {"question_id": query.id, "text": query.text}

    def start(self) -> None:
        """Put the one lane at the start of the episode."""
        question_1, seed_1 = np.array([self.question]), np.array([self.episode_seed])
        self.problem.start(self.episodes, question_1, seed_1)

    def observe(self) -> GymObservation:
        """Return the observation of the one lane."""
        return {name: value[0] for name, value in build_gym_observation(self.episodes).items()}

    def step(self, action: np.int64) -> tuple[GymObservation, float, bool, bool, dict[str, Any]]:
        """Choose one module's tier; the reward is NaN where a call failed."""
        self.episodes.act(np.array([int(action)]))
        terms, ends = score_step(self.episodes, self.rewards)
        reward_1 = self.rewards.combine(terms, self.episodes.cost_weight_B)
        info = {name: value[0] for name, value in ends.items()}
        info["reward_terms"] = {name: value[0] for name, value in terms.items()}
        return self.observe(), float(reward_1[0]), self.episodes.ended, False, info

    def get_state(self) -> dict[str, Any]:
        """Return the episode's state as plain JSON values: question, seed, tiers so far."""
        return {
            "question_id": self.problem.outcomes.questions[self.question].query.id,
            "episode_seed": self.episode_seed,
            "tiers": self.episodes.tier_BM[0, : self.episodes.step].tolist(),
        }

    def set_state(self, state: Mapping[str, Any]) -> GymObservation:
        """Restore a state of `get_state` by replaying it, and return its observation."""
        self.question = self.index_by_id[state["question_id"]]
        self.episode_seed = int(state["episode_seed"])
        self.start()
        for tier in state["tiers"]:
            self.episodes.act(np.array([tier]))
        return self.observe()


class MemoryTiersVector(VectorEnv[GymObservation, IntArray, np.ndarray[Any, Any]]):
    """Many episodes side by side; all of them are as long, so all lanes restart together.

    Lanes restart in the step that ends them (`AutoresetMode.SAME_STEP`). Question and seed of an
    episode follow from (seed, lane, episode number), or are handed over in the options of `reset`
    as `question_index` [B] and `episode_seed` [B]. Lane b makes the very episode that
    `MemoryTiersGym` makes of the same question and seed.

    Raises:
        ValueError: `step` gets an action that is masked or out of range.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - the type is Gymnasium's

    def __init__(self, problem: TierProblem, num_envs: int) -> None:
        super().__init__()
        self.problem, self.num_envs = problem, num_envs
        self.rewards = problem.reward
        self.episodes = problem.make_episodes()
        self.seed: int | None = None
        self.episode = 0
        self.single_observation_space = problem.build_space(self.episodes)
        self.single_action_space = spaces.Discrete(self.episodes.tiers)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[GymObservation, dict[str, Any]]:
        """Restart all lanes; see the class for `seed` and `options`."""
        if isinstance(seed, list):
            raise ValueError("give one seed: the lanes derive theirs from it")
        if seed is not None or self.seed is None:
            self.seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
            self.episode = 0
        else:
            self.episode += 1
        if options and "question_index" in options:
            question_index_B = np.asarray(options["question_index"], dtype=np.int64)
            episode_seed_B = np.asarray(options["episode_seed"], dtype=np.int64)
            self.problem.start(self.episodes, question_index_B, episode_seed_B)
        else:
            self.draw_episodes()
        return build_gym_observation(self.episodes), {}

    def draw_episodes(self) -> None:
        """Begin the episodes that follow from seed, lane and number."""
        assert self.seed is not None  # `reset` set it
        lane_B, questions = np.arange(self.num_envs), len(self.problem.outcomes.questions)
        word_B = mix(self.seed, "question", lane_B, self.episode)
        seed_B = mix(self.seed, "episode", lane_B, self.episode) >> np.uint64(2)
        self.problem.start(
            self.episodes,
            (word_B % np.uint64(questions)).astype(np.int64),
            seed_B.astype(np.int64),
        )

    def step(self, actions: IntArray) -> VectorResult:
        """Choose a tier in all lanes; at the end they return their next episode's start.

        `info` holds `reward_terms` (name -> [B]), and at the end `final_obs`, `score`, `cost_usd`,
        `answer_cost_usd` [B] and `tiers` [B, M].
        """
        self.episodes.act(np.asarray(actions, dtype=np.int64))
        terms, ends = score_step(self.episodes, self.rewards)
        reward_B = self.rewards.combine(terms, self.episodes.cost_weight_B)
        info: dict[str, Any] = {"reward_terms": terms, **ends}
        ended_B = np.full(self.num_envs, self.episodes.ended)
        if self.episodes.ended:
            info["final_obs"] = build_gym_observation(self.episodes)
            self.episode += 1
            self.draw_episodes()
        return (
            build_gym_observation(self.episodes),
            reward_B,
            ended_B,
            np.zeros_like(ended_B),
            info,
        )


def make_memory_tiers(
    *,
    outcomes: TierOutcomes | None = None,
    reward: MemoryReward | None = None,
    **arguments: Any,
) -> MemoryTiersGym:
    """Build the environment from the arguments of `gymnasium.make`; see the module's text."""
    return MemoryTiersGym(build_problem(outcomes, reward, arguments))


def make_memory_tiers_vector(
    num_envs: int = 1,
    *,
    outcomes: TierOutcomes | None = None,
    reward: MemoryReward | None = None,
    **arguments: Any,
) -> MemoryTiersVector:
    """Build the vector environment from the arguments of `gymnasium.make_vec`."""
    return MemoryTiersVector(build_problem(outcomes, reward, arguments), num_envs)
