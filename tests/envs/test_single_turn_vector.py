from __future__ import annotations

import numpy as np
import pytest

from rlroute.envs.gym import SingleTurnGym
from rlroute.envs.single_turn import CostWeightConfig
from rlroute.envs.single_turn_vector import SingleTurnVector
from rlroute.envs.vector_checker import check_vector
from rlroute.types import RLRouteError

OPTIONS = {"query_index": np.array([0, 1, 2, 1]), "episode_seed": np.array([7, 8, 9, 10])}


def test_the_lanes_pass_the_vector_checker(tiny_data):
    vector = SingleTurnVector(tiny_data, 4)
    assert check_vector(vector, SingleTurnGym(tiny_data), OPTIONS) == [
        "spaces",
        "match_single",
        "lanes",
        "autoreset",
    ]


def test_rewards_are_those_of_the_chosen_outcomes(tiny_data):
    vector = SingleTurnVector(tiny_data, 4, CostWeightConfig(min=1, max=1))
    observation, _ = vector.reset(options=OPTIONS)
    assert observation["mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 0]]
    _, reward_B, terminated_B, truncated_B, info = vector.step(np.array([2, 0, 1, 1]))
    np.testing.assert_allclose(info["reward_terms"]["outcome"], [1, 1, 0.5, 1])
    np.testing.assert_allclose(info["reward_terms"]["cost"], [0, 0.75, 0.25, 0.5], rtol=1e-6)
    np.testing.assert_allclose(reward_B, [1, 0.25, 0.25, 0.5], rtol=1e-6)
    assert terminated_B.all()
    assert not truncated_B.any()


@pytest.mark.parametrize("action", [2, 3, -1])
def test_a_masked_or_unknown_action_is_refused_with_its_lane(tiny_data, action):
    vector = SingleTurnVector(tiny_data, 4)
    vector.reset(options=OPTIONS)
    with pytest.raises(ValueError, match=f"action {action} of lane 1 is not allowed"):
        vector.step(np.array([0, action, 0, 0]))
    vector.step(np.zeros(4, dtype=np.int64))  # the lanes still stand where they stood


def test_ended_lanes_restart_in_the_same_step_with_the_final_observation_beside(tiny_data):
    vector = SingleTurnVector(tiny_data, 64)
    first, _ = vector.reset(seed=3)
    start, _, _, _, info = vector.step(np.zeros(64, dtype=np.int64))
    np.testing.assert_array_equal(info["final_obs"]["features"], first["features"])
    assert (start["features"] != first["features"]).any()


def test_episodes_can_end_without_others_being_begun(tiny_data):
    vector = SingleTurnVector(tiny_data, 4, feedback="full")
    observation, _ = vector.reset(options=OPTIONS)
    info = vector.end_episodes(np.array([2, 0, 1, 1]))
    assert sorted(info) == ["outcome_terms", "reward_terms"]
    np.testing.assert_array_equal(vector.build_observation()["features"], observation["features"])
    _, _, _, _, stepped = vector.step(np.array([2, 0, 1, 1]))
    for name, value_B in info["reward_terms"].items():
        np.testing.assert_array_equal(value_B, stepped["reward_terms"][name])
    vector.reset(options=OPTIONS)
    with pytest.raises(ValueError, match="action 2 of lane 1 is not allowed"):
        vector.end_episodes(np.array([0, 2, 0, 0]))


def test_the_seed_decides_all_episodes_and_a_reset_without_one_goes_on(tiny_data):
    def play(vector):
        seen = [vector.reset(seed=3)[0], vector.reset()[0]]
        seen += [vector.step(np.zeros(8, dtype=np.int64))[0] for _ in range(3)]
        return np.stack([observation["cost_weight"] for observation in seen])

    first, second = play(SingleTurnVector(tiny_data, 8)), play(SingleTurnVector(tiny_data, 8))
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first)) == first.size  # no lane and no episode repeats another's draw


def test_a_lane_draws_the_same_episodes_however_many_lanes_there_are(tiny_data):
    few, _ = SingleTurnVector(tiny_data, 3).reset(seed=1)
    many, _ = SingleTurnVector(tiny_data, 300).reset(seed=1)
    np.testing.assert_array_equal(few["cost_weight"], many["cost_weight"][:3])
    np.testing.assert_array_equal(few["features"], many["features"][:3])


def test_full_feedback_holds_the_terms_of_every_candidate(tiny_data):
    vector = SingleTurnVector(tiny_data, 4, feedback="full")
    vector.reset(options=OPTIONS)
    *_, info = vector.step(np.zeros(4, dtype=np.int64))
    np.testing.assert_allclose(info["outcome_terms"]["outcome"][1], [1, 1, np.nan])
    assert info["outcome_terms"]["cost"].shape == (4, 3)


def test_a_list_of_seeds_is_refused(tiny_data):
    with pytest.raises(ValueError, match="one seed"):
        SingleTurnVector(tiny_data, 2).reset(seed=[1, 2])


class SharedLanes(SingleTurnVector):
    """Broken: all lanes get the cost weight of lane 0."""

    def start_episodes(self, query_index_B, episode_seed_B):
        super().start_episodes(query_index_B, np.full_like(episode_seed_B, episode_seed_B[0]))


class LeakingLanes(SingleTurnVector):
    """Broken: following episodes depend on what lane 0 did."""

    def step(self, actions):
        self.seed = self.seed + int(actions[0])
        return super().step(actions)


class WrongWidth(SingleTurnVector):
    """Broken: the mask has another dtype than its space."""

    def build_observation(self):
        return super().build_observation() | {"mask": super().build_observation()["mask"] > 0}


class LateLanes(SingleTurnVector):
    """Broken: an ended lane returns its last observation."""

    def step(self, actions):
        _, *rest, info = super().step(actions)
        return info["final_obs"], *rest, info


class FreeLanes(SingleTurnVector):
    """Broken: cost is left out of the reward."""

    def step(self, actions):
        observation, _, *rest, info = super().step(actions)
        return observation, info["reward_terms"]["outcome"], *rest, info


class OtherMode(SingleTurnVector):
    """Broken: says that it resets in the next step."""

    metadata = {"autoreset_mode": "NextStep"}  # noqa: RUF012


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (WrongWidth, "WrongWidth: spaces: reset: 'mask'"),
        (SharedLanes, "SharedLanes: match_single: lane 1 starts otherwise"),
        (FreeLanes, "FreeLanes: match_single: lane 1 has reward"),
        (LeakingLanes, "LeakingLanes: lanes: another episode in lane 0 changed lane 1"),
        (LateLanes, "LateLanes: autoreset: an ended lane returns its last observation"),
        (OtherMode, "OtherMode: autoreset: metadata"),
    ],
)
def test_the_vector_checker_catches_broken_lanes(tiny_data, broken, message):
    weights = CostWeightConfig(min=1, max=3)
    with pytest.raises(RLRouteError) as caught:
        check_vector(broken(tiny_data, 4, weights), SingleTurnGym(tiny_data, weights), OPTIONS)
    assert str(caught.value).startswith(message)


def test_the_vector_checker_needs_options_for_every_lane(tiny_data):
    with pytest.raises(ValueError, match="one entry per lane"):
        check_vector(SingleTurnVector(tiny_data, 3), SingleTurnGym(tiny_data), OPTIONS)
