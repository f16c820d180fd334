"""Episodes of a scripted policy as trajectories: what a supervised warm start learns from.

What it leaves out: tokens. The decisions hold text only, and are tokenised where they are learnt
from.

How to use:
    planner = ScriptedPlanner(world, "knowing")
    trajectories = write_demonstrations(make_environment, planner, world, queries, seed=0)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from rlroute.envs.base import Environment
from rlroute.policies.scripted import Planner
from rlroute.pool.base import Pool
from rlroute.rollout.engine import gather_or_cancel, run_episode
from rlroute.rollout.plan import shorten
from rlroute.seeding import mix
from rlroute.types import Query, TextDecision, TextObservation, Trajectory


def write_demonstrations(
    make_environment: Callable[[], Environment[TextObservation, str]],
    planner: Planner,
    pool: Pool,
    queries: Sequence[Query],
    *,
    seed: int,
) -> list[Trajectory[TextObservation, TextDecision]]:
    """Play one episode per query, side by side, and return those without a failed call in order.

    A query may stand in `queries` several times; the planner then draws anew. To be called where no
    event loop runs.
    """

    async def play(episode: int) -> Trajectory[TextObservation, TextDecision]:
        query = queries[episode]
        episode_seed = int(shorten(mix(seed, "demonstration", episode)))
        agent = planner.start(query, episode)
        return await run_episode(make_environment(), agent, pool, query, episode_seed=episode_seed)

    async def play_all() -> list[Trajectory[TextObservation, TextDecision]]:
        return await gather_or_cancel([play(episode) for episode in range(len(queries))])

    played = asyncio.run(play_all())
    return [trajectory for trajectory in played if trajectory.failure is None]
