"""Plays episodes of many steps, side by side, and hands the trainer a batch.

`collect_lanes` drives a hand-batched environment: all lanes in one array operation per step.
`collect_worlds` drives single environments: in lockstep where the world plays its executors, one
coroutine per episode where executors live behind a pool, so that nobody waits for another's reply.
Both make the same episodes of the same plan.

A forced executor that may not act gives way to the allowed one nearest to it in price, or to the
one that ends the episode where a world has one. An episode in which a call failed is played again,
and after `retries` failures it is dropped: its reward terms are undefined, and it is never learnt
from.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlroute.envs.step_budget import StepBudget
from rlroute.envs.step_budget_vector import StepBudgetVector
from rlroute.policies.decision import Decisions
from rlroute.policies.step_baselines import AdvisedPolicy, find_nearest
from rlroute.policies.stepwise import ReadingPolicy, StepInputs, StepPolicy
from rlroute.pool.base import Pool
from rlroute.rollout.engine import gather_or_cancel
from rlroute.rollout.plan import FREE, draw_action_uniform
from rlroute.rollout.step_log import EpisodeLog
from rlroute.rollout.step_plan import StepPlan
from rlroute.types import (
    Batch,
    BoolArray,
    Conversations,
    IntArray,
    Query,
    Reply,
    RLRouteError,
)
from rlroute.worlds.base import ArrayWorld, RestingWorld, World


def narrow_mask(forced_arm_B: IntArray, mask_BK: BoolArray, rest: int | None = None) -> BoolArray:
    """Return the mask under which a policy decides [B, K]: a forced lane is left one executor.

    So a policy takes what is forced with probability 1 and knows that it was taken.
    """
    forced_B = forced_arm_B != FREE
    if not forced_B.any():
        return mask_BK
    nearest_B = find_nearest(np.where(forced_B, forced_arm_B, 0), mask_BK, rest)
    only_BK = np.arange(mask_BK.shape[1]) == nearest_B[:, None]
    return np.where(forced_B[:, None], only_BK, mask_BK)


def find_rest(world: World | ArrayWorld) -> int | None:
    """Return who ends an episode; None in worlds that have nobody for it."""
    return world.rest if isinstance(world, RestingWorld) else None


# --- Array worlds ---------------------------------------------------------------------------------


def collect_lanes(policy: StepPolicy, environment: StepBudgetVector, plan: StepPlan) -> Batch:
    """Play a plan in a hand-batched environment, one lane for each episode.

    Raises:
        ValueError: the environment has another number of lanes than the plan has episodes.
    """
    lanes = len(plan.role_B)
    if environment.num_envs != lanes:
        raise ValueError(f"{environment.num_envs} lanes for {lanes} episodes")
    observation, _ = environment.reset(
        options={
            "task_index": plan.episodes.query_index_B,
            "episode_seed": plan.episodes.episode_seed_B,
            "world_seed": plan.world_seed_B,
        }
    )
    log = EpisodeLog(plan, environment)
    log.cap_B[:] = environment.config.budget.draw_caps(plan.episodes.episode_seed_B)
    policy.start(lanes)
    row_N, rest = np.arange(lanes), find_rest(environment.world)
    turn = 0
    while len(row_N):
        mask_NK = observation["mask"][row_N].astype(np.bool_)
        inputs = StepInputs(
            lane_B=row_N,
            row_B=row_N,
            task_index_B=plan.episodes.query_index_B[row_N],
            features_BF=observation["features"][row_N],
            candidate_features_KD=environment.world.executor_features_KD,
            mask_BK=narrow_mask(plan.forced_arm_B[row_N], mask_NK, rest),
            cost_weight_B=observation["cost_weight"][row_N, 0],
            uniform_B=plan.episodes.draw_action_uniforms(turn)[row_N],
            rest=rest,
        )
        taken = policy.decide(inputs)
        log.note(row_N, turn, inputs, mask_NK, taken)
        action_B = observation["mask"].argmax(axis=1)  # ended lanes play on, unread
        action_B[row_N] = taken.action_B
        observation, _, ended_B, _, info = environment.step(action_B)
        over_N = row_N[ended_B[row_N]]
        for name, value_B in info["reward_terms"].items():
            log.terms[name][row_N, turn] = value_B[row_N]
        log.score_B[over_N], log.cost_usd_B[over_N] = (
            info["score"][over_N],
            info["cost_usd"][over_N],
        )
        log.calls_B[over_N] = info["calls"][over_N]
        log.exhausted_B[over_N] = info["exhausted"][over_N]
        row_N = row_N[~ended_B[row_N]]
        turn += 1
    return log.build(policy, failed_B=np.zeros(lanes, dtype=np.bool_))


# --- Single environments --------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """One step of an episode as it is told: what was seen, chosen, done and paid, and advised.

    `advised` is the executor that the world's own best policy would choose, where it is known.
    """

    text: str
    executor: str
    probability: float
    allowed: tuple[str, ...]
    advised: str | None
    note: str
    cost_usd: float


def collect_worlds(
    policy: StepPolicy,
    environment: StepBudget,
    tasks: Sequence[Query],
    plan: StepPlan,
    *,
    lanes: int = 64,
    pool: Pool | None = None,
    retries: int = 1,
    moments: dict[int, list[Moment]] | None = None,
) -> Batch:
    """Play a plan in forks of a single environment, at most `lanes` at once.

    With `pool` the executors that live there are asked. `moments`, where given, is filled: row of
    the plan -> the episode's steps.
    """
    log = EpisodeLog(plan, environment)
    dropped_B = np.zeros(len(plan.role_B), dtype=np.bool_)
    read = []
    for start in range(0, len(plan.role_B), lanes):
        row_N = np.arange(start, min(start + lanes, len(plan.role_B)))
        wave = [EpisodeSide(environment, tasks, plan, int(row), log, moments) for row in row_N]
        if pool is None:
            read += play_in_lockstep(policy, wave)
        else:
            dropped_B[row_N], conversations = asyncio.run(play_apart(policy, wave, pool, retries))
            read += conversations
    return log.build(policy, dropped_B, join_conversations(read) if read else None)


class EpisodeSide:
    """One row of a plan in its own fork of the environment, and what is written down of it."""

    def __init__(
        self,
        environment: StepBudget,
        tasks: Sequence[Query],
        plan: StepPlan,
        row: int,
        log: EpisodeLog,
        moments: dict[int, list[Moment]] | None,
    ) -> None:
        world, config = environment.world.fork(), environment.config
        self.environment = StepBudget(world, config, environment.yardsticks)
        self.plan, self.row, self.log, self.moments = plan, row, log, moments
        self.task = tasks[plan.episodes.query_index_B[row]]

    def reset(self) -> None:
        """Start the episode, from its beginning again where it was played before."""
        self.turn = 0
        self.log.erase(self.row)
        self.observation = self.environment.reset(
            self.task,
            int(self.plan.episodes.episode_seed_B[self.row]),
            world_seed=int(self.plan.world_seed_B[self.row]),
        )
        if self.moments is not None:
            self.moments[self.row] = []

    def take(self, replies: Sequence[Reply], taken: Decisions, number: int) -> None:
        """Let the environment observe the replies to its calls, and write the step down.

        `number` is the episode's place among the decisions.
        """
        environment, before = self.environment, self.observation
        spent = environment.read_record().cost_usd
        advised = environment.world.advise() if self.moments is not None else None
        step = environment.observe(replies)
        self.observation = step.observation
        for name, value in step.reward_terms.items():
            self.log.terms[name][self.row, self.turn] = np.nan if value is None else value
        self.turn += 1
        if step.terminated:
            self.log.note_end(self.row, environment)
        if self.moments is not None:
            ids = [one.id for one in environment.world.executors]
            self.moments[self.row].append(
                Moment(
                    text=before.text,
                    executor=ids[taken.action_B[number]],
                    probability=float(np.exp(taken.logp_B[number])),
                    allowed=tuple(np.array(ids)[before.mask_K].tolist()),
                    advised=None if advised is None else ids[advised],
                    note=environment.last_note,
                    cost_usd=environment.read_record().cost_usd - spent,
                )
            )


def decide_together(
    policy: StepPolicy, sides: Sequence[EpisodeSide], lane_N: IntArray, *, turn: int
) -> Decisions:
    """Ask the policy for the decisions of N episodes, and write them down."""
    log, plan = sides[0].log, sides[0].plan
    row_N = np.array([side.row for side in sides])
    observations = [side.observation for side in sides]
    mask_NK = np.stack([one.mask_K for one in observations])
    rest = find_rest(sides[0].environment.world)
    inputs = StepInputs(
        lane_B=lane_N,
        row_B=row_N,
        task_index_B=plan.episodes.query_index_B[row_N],
        features_BF=np.stack([one.features_F for one in observations]),
        candidate_features_KD=log.candidate_features_KD,
        mask_BK=narrow_mask(plan.forced_arm_B[row_N], mask_NK, rest),
        cost_weight_B=np.array([one.cost_weight for one in observations], dtype=np.float32),
        uniform_B=draw_action_uniform(plan.episodes.action_seed_B[row_N], turn),
        texts=[one.text for one in observations],
        advised_B=find_advice(sides) if isinstance(policy, AdvisedPolicy) else None,
        rest=rest,
    )
    taken = policy.decide(inputs)
    log.note(row_N, turn, inputs, mask_NK, taken)
    return taken


def find_advice(sides: Sequence[EpisodeSide]) -> IntArray:
    """Return what the worlds' best policies would choose.

    Raises:
        RLRouteError: a world does not know.
    """
    advised = [side.environment.world.advise() for side in sides]
    if None in advised:
        name = sides[0].environment.world.name
        raise RLRouteError(f"world '{name}': its best policy is not known")
    return np.array(advised)


def play_in_lockstep(policy: StepPolicy, wave: Sequence[EpisodeSide]) -> list[Conversations]:
    """Play episodes whose worlds play their executors: all lanes take a step at once."""
    for side in wave:
        side.reset()
    policy.start(len(wave))
    lane_N, turn = np.arange(len(wave)), 0
    while len(lane_N):
        sides = [wave[int(lane)] for lane in lane_N]
        taken = decide_together(policy, sides, lane_N, turn=turn)
        for number, side in enumerate(sides):
            if side.environment.propose(int(taken.action_B[number])):
                raise RLRouteError(
                    f"world '{side.environment.world.name}': an executor lives behind a pool, and "
                    "the recipe names none (pool: FILE)"
                )
            side.take((), taken, number)
        lane_N = lane_N[[not side.environment.ended for side in sides]]
        turn += 1
    return read_conversations(policy)


async def play_apart(
    policy: StepPolicy, wave: Sequence[EpisodeSide], pool: Pool, retries: int
) -> tuple[list[bool], list[Conversations]]:
    """Play episodes that wait for replies: nobody waits for another's.

    Returns which were dropped because calls failed, and the conversations in the order of the wave.
    """

    async def play(side: EpisodeSide) -> tuple[bool, list[Conversations]]:
        """Play one episode until no call fails, or the retries are used up."""
        own = copy.copy(policy)  # a policy's state of the episodes is made anew by `start`
        for _ in range(retries + 1):
            side.reset()
            own.start(1)
            failed = False
            while not side.environment.ended:
                taken = decide_together(own, [side], np.array([0]), turn=side.turn)
                calls = side.environment.propose(int(taken.action_B[0]))
                replies = await pool.ask_many(calls) if calls else ()
                failed = any(reply.failure is not None for reply in replies)
                side.take(replies, taken, 0)
            if not failed:
                break
        return failed, read_conversations(own)

    found = await gather_or_cancel([play(side) for side in wave])
    return [failed for failed, _ in found], [one for _, read in found for one in read]


def read_conversations(policy: StepPolicy) -> list[Conversations]:
    """Return what a language model read in the episodes since `start`; nothing for others."""
    return [policy.read_episodes()] if isinstance(policy, ReadingPolicy) else []


def join_conversations(parts: Sequence[Conversations]) -> Conversations:
    """Return the conversations of several waves as one, padded to the longest."""
    return Conversations(
        ids_BL=pad_and_stack([part.ids_BL for part in parts], fill=0),
        length_B=np.concatenate([part.length_B for part in parts]),
        position_BT=pad_and_stack([part.position_BT for part in parts], fill=-1),
    )


def pad_and_stack(arrays: Sequence[IntArray], fill: int) -> IntArray:
    """Stack arrays [B_i, N_i] on their first axis, filled up to the widest."""
    width = max(array.shape[1] for array in arrays)
    padded = [
        np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=fill)
        for array in arrays
    ]
    return np.concatenate(padded)
