from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import rlroute.envs  # noqa: F401 - registers the environments
from rlroute.envs.single_turn_vector import SingleTurnVector
from rlroute.types import RLRouteError

ID = "rlroute/SingleTurn-v0"


def make(data, **arguments):
    return gymnasium.make(ID, data=data, **arguments).unwrapped


def test_gymnasiums_checker_passes_on_a_complete_table(tiny_splits):
    environment = make(tiny_splits["test"])  # nothing masked: it samples actions without the mask
    with warnings.catch_warnings():
        warnings.filterwarnings("error")
        warnings.filterwarnings("ignore", ".*Box observation space.*")  # embeddings: no bounds
        check_env(environment)


def test_a_step_returns_the_combined_reward_and_its_terms(tiny_data):
    environment = make(tiny_data, cost_weight=2)
    observation, info = environment.reset(seed=0, options={"query_id": "q03"})
    assert info == {"query_id": "q03", "text": "question 3"}
    assert observation["cost_weight"].tolist() == [2.0]
    assert observation["mask"].tolist() == [1, 1, 1]
    _, reward, terminated, truncated, info = environment.step(np.int64(1))
    assert info["reward_terms"] == pytest.approx({"outcome": 1.0, "cost": 0.25})
    assert reward == pytest.approx(1.0 - 2 * 0.25)
    assert (terminated, truncated) == (True, False)
    assert "outcome_terms" not in info


def test_full_feedback_shows_every_candidates_terms(tiny_data):
    environment = make(tiny_data, feedback="full")
    environment.reset(seed=0, options={"query_index": 1})
    *_, info = environment.step(np.int64(0))
    np.testing.assert_allclose(info["outcome_terms"]["outcome"], [1, 1, np.nan])


def test_a_masked_action_and_a_step_after_the_end_are_refused(tiny_data):
    environment = make(tiny_data)
    environment.reset(seed=0, options={"query_id": "q01"})
    with pytest.raises(ValueError, match="action 2 is not allowed"):
        environment.step(np.int64(2))
    environment.step(np.int64(0))
    with pytest.raises(ValueError, match="over"):
        environment.step(np.int64(0))


def test_returned_observations_are_copies(tiny_data):
    environment = make(tiny_data)
    observation, _ = environment.reset(seed=0, options={"query_id": "q00"})
    observation["features"][:] = 99
    observation["candidates"][:] = 99
    again, _ = environment.reset(seed=0, options={"query_id": "q00"})
    assert again["features"].max() < 99
    assert again["candidates"].max() < 99


def test_equal_seeds_draw_equal_episodes_and_options_do_not_shift_the_draws(tiny_data):
    one, other = make(tiny_data), make(tiny_data)
    drawn = [one.reset(seed=5)[1]["query_id"]] + [one.reset()[1]["query_id"] for _ in range(9)]
    other.reset(seed=5, options={"query_id": "q00"})
    assert [other.reset()[1]["query_id"] for _ in range(9)] == drawn[1:]
    assert len(set(drawn)) > 1


def test_the_episode_seed_decides_the_cost_weight(tiny_data):
    environment = make(tiny_data)
    options = {"query_index": 2, "episode_seed": 77}
    first, _ = environment.reset(seed=1, options=options)
    second, _ = environment.reset(seed=2, options=options)
    np.testing.assert_array_equal(first["cost_weight"], second["cost_weight"])


def test_an_environment_over_subsets_and_skip_has_their_outcomes():
    pairs = {"kind": "subsets", "sizes": [1, 2], "combine": "best_of"}
    actions = [pairs, {"kind": "skip", "cost_usd": 0, "score": 0.25}]
    environment = gymnasium.make(ID, table="pocket", actions=actions, cost_weight=1.0)
    assert environment.action_space.n == 8 + 28 + 1
    environment.reset(seed=0)
    _, reward, _, _, info = environment.step(36)
    assert reward == info["reward_terms"]["outcome"] == 0.25
    assert info["reward_terms"]["cost"] == 0


def test_make_vec_builds_the_hand_batched_environment(tiny_data):
    vector = gymnasium.make_vec(ID, num_envs=4, data=tiny_data)
    assert isinstance(vector.unwrapped, SingleTurnVector)
    assert vector.num_envs == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"splits": "val"}, "unknown key 'splits'; did you mean 'split'?"),
        ({"feedback": "some"}, "feedback 'some' is unknown (allowed: bandit, full)"),
        ({"cost_weight": {"maximum": 2}}, "unknown key 'maximum'"),
        ({"actions": [{"kind": "skip"}]}, "actions.0.cost_usd: Field required"),
        ({"cost_weight": -1}, "min: Input should be greater than or equal to 0"),
        ({"table": "no-such-table"}, "table 'no-such-table': no such folder"),
    ],
)
def test_unfit_arguments_are_named_in_one_line(arguments, message):
    with pytest.raises(RLRouteError) as caught:
        gymnasium.make(ID, **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
