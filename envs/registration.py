"""Names of the environments in Gymnasium's registry.

`import rlroute.envs` (or `gymnasium.make("rlroute.envs:rlroute/SingleTurn-v0")`) registers them.
Arguments of `make` and `make_vec` for the latter: `table` (a folder or a shipped name, default
"pocket"), `split` ("train", "val", "test"), `cost_weight` (a number, or a mapping with min, max,
power), `feedback` ("bandit" or "full"), `encoder`, `actions`, `latency_weight`, `latency`, `users`
and `user_share` (as in a recipe, `users` inline), `seed` of the encoder and the profiles; or
`data`, a `RoutingData` made before, instead of all that makes one.
Those of `rlroute/MultiRound-v0` stand in `rlroute.envs.multi_round_gym`, those of
`rlroute/StepBudget-v0` in `rlroute.envs.step_budget_gym`, and those of `rlroute/MemoryTiers-v0` in
`rlroute.envs.memory_tiers_gym`.
"""

from __future__ import annotations

from typing import Any, get_args

import gymnasium
from pydantic import Field

from rlroute.config import StrictModel, parse_config
from rlroute.data.actions import Actions, build_actions
from rlroute.data.encoders import EncoderConfig, TfidfConfig
from rlroute.data.latencies import LatencyConfig, fill_latencies, require_latencies
from rlroute.data.prepare import prepare_table
from rlroute.data.routing_data import ProfileConfig, RoutingData
from rlroute.data.table import read_table
from rlroute.data.users import Users, check_biases
from rlroute.envs.gym import Feedback, SingleTurnGym
from rlroute.envs.preferences import LatencyWeightConfig, Preferences
from rlroute.envs.single_turn import CostWeightConfig
from rlroute.types import RLRouteError, SplitName

SINGLE_TURN = "rlroute/SingleTurn-v0"
MULTI_ROUND = "rlroute/MultiRound-v0"
STEP_BUDGET = "rlroute/StepBudget-v0"
MEMORY_TIERS = "rlroute/MemoryTiers-v0"


class SingleTurnArguments(StrictModel):
    """What `gymnasium.make` takes when the data are to be prepared from a table."""

    table: str = "pocket"
    split: SplitName = "train"
    encoder: EncoderConfig = TfidfConfig()
    profile: ProfileConfig = ProfileConfig()
    actions: Actions = ()
    latency: LatencyConfig | None = None
    seed: int = 0


class PreferenceArguments(StrictModel):
    """What `gymnasium.make` takes of weights beside that of cost."""

    latency_weight: LatencyWeightConfig = LatencyWeightConfig()
    users: Users = Field(default_factory=dict)
    user_share: float = Field(default=0.5, gt=0, le=1)


def resolve_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Turn the arguments of `make` into those of the environment's class.

    Raises:
        RLRouteError: an unknown or unfit argument, or a fault of the table.
    """
    rest = dict(arguments)
    feedback: Feedback = rest.pop("feedback", "bandit")
    if feedback not in get_args(Feedback):
        allowed = ", ".join(get_args(Feedback))
        raise RLRouteError(f"{SINGLE_TURN}: feedback '{feedback}' is unknown (allowed: {allowed})")
    cost_weight = rest.pop("cost_weight", {})
    if isinstance(cost_weight, (int, float)):
        cost_weight = {"min": cost_weight, "max": cost_weight}
    weights = parse_config(CostWeightConfig, cost_weight, f"{SINGLE_TURN}: cost_weight")
    named = {name: rest.pop(name) for name in PreferenceArguments.model_fields if name in rest}
    if isinstance(named.get("latency_weight"), (int, float)):
        fixed = named["latency_weight"]
        named["latency_weight"] = {"min": fixed, "max": fixed}
    found = parse_config(PreferenceArguments, named, SINGLE_TURN)
    users = tuple(found.users.values())
    preferences = Preferences(found.latency_weight, users, found.user_share)
    data = rest.pop("data", None)
    parsed = parse_config(SingleTurnArguments, rest, SINGLE_TURN)
    if data is None:
        timed = found.latency_weight.max > 0 or any(user.latency_weight for user in users)
        data = prepare_split(parsed, latency=timed)
    check_biases(found.users, [candidate.id for candidate in data.table.candidates])
    return {
        "data": data,
        "cost_weights": weights,
        "feedback": feedback,
        "preferences": preferences,
    }


def prepare_split(arguments: SingleTurnArguments, *, latency: bool = False) -> RoutingData:
    """Read the table and return the split that the arguments name."""
    table = fill_latencies(read_table(arguments.table), arguments.latency)
    table = build_actions(table, arguments.actions)
    if latency:
        table = require_latencies(table)
    prepared = prepare_table(
        table, arguments.encoder, arguments.profile, arguments.seed, latency=latency
    )
    return prepared.splits[arguments.split]


def make_single_turn(**arguments: Any) -> SingleTurnGym:
    """Build the environment from the arguments of `gymnasium.make`."""
    return SingleTurnGym(**resolve_arguments(arguments))


def register_environments() -> None:
    """Enter the environments into Gymnasium's registry."""
    gymnasium.register(
        SINGLE_TURN,
        entry_point="rlroute.envs.registration:make_single_turn",
        vector_entry_point="rlroute.envs.single_turn_vector:make_single_turn_vector",
    )
    gymnasium.register(MULTI_ROUND, entry_point="rlroute.envs.multi_round_gym:make_multi_round")
    gymnasium.register(
        STEP_BUDGET,
        entry_point="rlroute.envs.step_budget_gym:make_step_budget",
        vector_entry_point="rlroute.envs.step_budget_gym:make_step_budget_vector",
    )
    gymnasium.register(
        MEMORY_TIERS,
        entry_point="rlroute.envs.memory_tiers_gym:make_memory_tiers",
        vector_entry_point="rlroute.envs.memory_tiers_gym:make_memory_tiers_vector",
    )
