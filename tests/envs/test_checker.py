from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from rlroute.envs.checker import run_check
from rlroute.types import RLRouteError

NAMES = ["gymnasium", "determinism", "action_mask", "state_round_trip", "ends", "rewards"]


class Countdown(gymnasium.Env):
    """Sound: 3 steps; every second step masks action 2; a drawn bonus per step, terms apart."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self):
        self.observation_space = spaces.Dict(
            {"left": spaces.Discrete(4), "mask": spaces.MultiBinary(3)}
        )
        self.action_space = spaces.Discrete(3)
        self.left = 0

    def observe(self):
        mask = np.array([1, 1, self.left % 2], dtype=np.int8)
        return {"left": np.int64(self.left), "mask": mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 3
        return self.observe(), {}

    def step(self, action):
        if self.left == 0 or not self.observe()["mask"][action]:
            raise ValueError(f"action {action} is not allowed")
        self.left -= 1
        terms = {"outcome": float(action), "bonus": float(self.np_random.random())}
        info = {"reward_terms": terms}
        return self.observe(), sum(terms.values()), self.left == 0, False, info

    def get_state(self):
        return {"left": self.left, "generator": self.np_random.bit_generator.state}

    def set_state(self, state):
        self.left = state["left"]
        self.np_random.bit_generator.state = state["generator"]
        return self.observe()


class OutsideItsSpace(Countdown):
    def observe(self):
        return super().observe() | {"left": np.int64(self.left + 1)}


class WarnedAbout(Countdown):
    def reset(self, *, seed=7, options=None):
        return super().reset(seed=seed, options=options)


class NothingAllowed(Countdown):
    def observe(self):
        mask = np.array([0, 0, 0] if self.left == 2 else [1, 1, 1], dtype=np.int8)
        return {"left": np.int64(self.left), "mask": mask}

    def step(self, action):
        self.left -= 1
        return self.observe(), 0.0, self.left == 0, False, {}


class MaskOfAnotherLength(Countdown):
    def __init__(self):
        super().__init__()
        self.action_space = spaces.Discrete(2)


class AcceptsMasked(Countdown):
    def step(self, action):
        return super().step(action if self.observe()["mask"][action] else 0)


class RaisesAnotherError(Countdown):
    def step(self, action):
        if self.left and not self.observe()["mask"][action]:
            raise KeyError(action)
        return super().step(action)


class RefusalCosts(Countdown):
    def step(self, action):
        if not self.observe()["mask"][action]:
            self.np_random.random()
        return super().step(action)


class RefusesAllowed(Countdown):
    def step(self, action):
        if action == 1 and self.left == 3 and self.np_random_seed == 3:
            raise ValueError("not today")
        return super().step(action)


class CountsItsEpisodes(Countdown):
    episodes = 0

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        type(self).episodes += terminated
        return observation, reward, terminated, truncated, info

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed, options=options)
        self.shift = self.episodes % 2
        return observation, info

    def observe(self):
        shift = getattr(self, "shift", 0) if self.left == 1 else 0
        return super().observe() | {"left": np.int64(self.left + shift)}


class DiffersByInstance(Countdown):
    made = 0

    def __init__(self):
        super().__init__()
        type(self).made += 1
        self.number = self.made

    def step(self, action):
        observation, _, terminated, truncated, _ = super().step(action)
        return observation, float(self.number), terminated, truncated, {}


class ForgetsItsGenerator(Countdown):
    def get_state(self):
        return {"left": self.left}

    def set_state(self, state):
        self.left = state["left"]
        return self.observe()


class StateIsNoJson(Countdown):
    def get_state(self):
        return {"left": np.int64(self.left), "generator": self.np_random.bit_generator.state}


class EndsTwice(Countdown):
    def step(self, action):
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, terminated, info


class GoesOnAfterTheEnd(Countdown):
    def step(self, action):
        if self.left == 0:
            return self.observe(), 1.0, True, False, {}
        return super().step(action)


class UnexplainedNaN(Countdown):
    def step(self, action):
        observation, reward, terminated, truncated, _ = super().step(action)
        return observation, float("nan") if terminated else reward, terminated, truncated, {}


class UndefinedCountsAsZero(Countdown):
    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        info["reward_terms"]["outcome"] = None
        return observation, reward, terminated, truncated, info


class InfiniteReward(Countdown):
    def step(self, action):
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float("inf"), terminated, truncated, info


class TermsComeAndGo(Countdown):
    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if self.left == 1:
            info["reward_terms"]["late"] = 0.0
        return observation, reward, terminated, truncated, info


@pytest.fixture
def register():
    """Enter a class into Gymnasium's registry for one test; returns its id."""
    ids = []

    def enter(environment_class) -> str:
        ids.append(f"checked/{environment_class.__name__}-v0")
        gymnasium.register(ids[-1], entry_point=environment_class)
        return ids[-1]

    yield enter
    for environment_id in ids:
        del gymnasium.registry[environment_id]


def test_our_environment_passes_with_its_mask_and_state(tiny_data):
    assert run_check("rlroute/SingleTurn-v0", {"data": tiny_data}) == NAMES
    fixed = {"data": tiny_data, "cost_weight": 1, "feedback": "full"}
    assert run_check("rlroute/SingleTurn-v0", fixed) == NAMES


def test_a_sound_environment_of_a_user_passes(register):
    assert run_check(register(Countdown)) == NAMES


def test_what_an_environment_does_not_have_is_skipped_visibly():
    assert run_check("CartPole-v1") == [
        "gymnasium",
        "determinism",
        "action_mask (skipped: no mask over discrete actions in the observation)",
        "state_round_trip (skipped: the environment has no get_state and set_state)",
        "ends",
        "rewards (info holds no reward_terms: only finiteness was checked)",
    ]


@pytest.mark.parametrize(
    ("broken", "check", "fault"),
    [
        (OutsideItsSpace, "gymnasium", "AssertionError"),
        (WarnedAbout, "gymnasium", "default seed argument in reset should be `None`"),
        (NothingAllowed, "action_mask", "no action is allowed though the episode goes on"),
        (MaskOfAnotherLength, "gymnasium", "the mask has shape (3,) for 2 actions"),
        (AcceptsMasked, "action_mask", "masked action 2 is accepted"),
        (RaisesAnotherError, "action_mask", "masked action 2 raises KeyError, not ValueError"),
        (RefusalCosts, "action_mask", "the refusal of masked action 2 changed the state"),
        (RefusesAllowed, "action_mask", "ValueError: not today"),
        (CountsItsEpisodes, "determinism", "played twice: the observation after 2 steps differs"),
        (DiffersByInstance, "determinism", "in another instance: the reward after 1 steps differs"),
        (ForgetsItsGenerator, "state_round_trip", "the reward after 0 steps differs"),
        (StateIsNoJson, "state_round_trip", "TypeError: Object of type int64 is not JSON"),
        (EndsTwice, "ends", "both terminated and truncated"),
        (GoesOnAfterTheEnd, "ends", "a step after the end is answered with reward 1"),
        (UnexplainedNaN, "rewards", "the reward is NaN, and info holds no reward_terms"),
        (UndefinedCountsAsZero, "rewards", "the term 'outcome' is undefined, but the reward is"),
        (InfiniteReward, "gymnasium", "inf value"),
        (TermsComeAndGo, "rewards", "the names of reward terms change"),
    ],
)
def test_a_broken_environment_is_caught_by_its_check(register, broken, check, fault):
    with pytest.raises(RLRouteError) as caught:
        run_check(register(broken))
    message = str(caught.value)
    assert message.startswith(f"checked/{broken.__name__}-v0: {check}: ")
    assert fault in message
    assert "\n" not in message


def test_a_reward_that_its_terms_do_not_combine_to_is_caught(tiny_data, register):
    from rlroute.envs.gym import SingleTurnGym

    class Generous(SingleTurnGym):
        def __init__(self):
            super().__init__(tiny_data)

        def step(self, action):
            observation, reward, *rest = super().step(action)
            return observation, reward + 1, *rest

    with pytest.raises(RLRouteError, match=r"rewards: the reward is .*, its terms combine to"):
        run_check(register(Generous))


@pytest.mark.parametrize(
    ("environment_id", "message"),
    [
        ("NoSuchThing-v0", "NoSuchThing-v0: cannot be made: NameNotFound"),
        ("no_such_module:Thing-v0", "no_such_module:Thing-v0: cannot be made: ModuleNotFoundError"),
        ("no slash or version!", "cannot be made: "),
    ],
)
def test_an_unknown_id_is_one_line(environment_id, message):
    with pytest.raises(RLRouteError) as caught:
        run_check(environment_id)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
