"""Checks a hand-batched environment against its single form: `check_vector(vector, single, ...)`.

| check            | what must hold                                                                |
| ---------------- | ----------------------------------------------------------------------------- |
| spaces           | observations, rewards and ends have the shapes and dtypes of the spaces       |
| match_single     | lane b plays the very episode of the single environment that is reset with    |
|                  | the options of lane b; the last observation of an episode is in `final_obs`   |
| lanes            | another episode in one lane changes nothing in the others                     |
| autoreset        | `AutoresetMode.SAME_STEP`: an ended lane returns the next episode's start,    |
|                  | and the same seed gives the same following episodes                           |

It leaves out speed. The single form has its own checks, see `rlroute.envs.checker`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from rlroute.envs.checker import (
    MAXIMUM_STEPS,
    AnyEnv,
    CheckError,
    PlayedStep,
    is_equal,
    play_episode,
    run_checks,
)

SEED = 0
EPISODES_IN_A_ROW = 3

LaneOptions = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class VectorSubject:
    """A vector environment, its single form, and the options that decide the lanes' episodes."""

    vector: VectorEnv[Any, Any, Any]
    single: AnyEnv
    options: LaneOptions

    def reset(self, options: LaneOptions | None = None) -> Any:
        """Reset all lanes and return their observation."""
        options = self.options if options is None else options
        return self.vector.reset(seed=SEED, options=dict(options))[0]


def check_vector(
    vector_env: VectorEnv[Any, Any, Any], single_env: AnyEnv, options: LaneOptions
) -> list[str]:
    """Run all checks; `vector_env.reset(options=...)` takes arrays with one entry per lane [B].

    The same names with lane b's entry, given to `single_env.reset`, must start the same episode. At
    least two lanes are needed. Returns the names of the checks that passed.

    Raises:
        RLRouteError: the first fault, naming the environment and the check.
        ValueError: fewer than two lanes, or options of another length.
    """
    lanes = vector_env.num_envs
    if lanes < 2 or any(len(value_B) != lanes for value_B in options.values()):
        raise ValueError(f"options must have one entry per lane, for two lanes or more ({lanes})")
    subject = VectorSubject(vector_env, single_env.unwrapped, options)
    return run_checks(type(vector_env).__name__, CHECKS, subject)


def take_lane(value: Any, lane: int) -> Any:
    """Return one lane of a batched, perhaps nested, value."""
    if isinstance(value, Mapping):
        return {key: take_lane(item, lane) for key, item in value.items()}
    return value[lane]


def choose_actions(vector: VectorEnv[Any, Any, Any], observation: Any, last: bool = False) -> Any:
    """Return each lane's first (or last) allowed action; sampled ones where there is no mask."""
    space = vector.single_action_space
    if not isinstance(observation, Mapping) or "mask" not in observation:
        vector.action_space.seed(SEED)
        return vector.action_space.sample()
    mask_BK = np.asarray(observation["mask"]).astype(np.bool_)
    index_B = mask_BK.argmax(axis=1)
    if last:
        index_B = mask_BK.shape[1] - 1 - mask_BK[:, ::-1].argmax(axis=1)
    return index_B + (space.start if isinstance(space, spaces.Discrete) else 0)


def check_spaces(subject: VectorSubject) -> str | None:
    """Compare what comes back with the spaces."""
    vector, lanes = subject.vector, subject.vector.num_envs
    observation = subject.reset()
    check_observation(vector.observation_space, observation, "reset")
    observation, *rest, _ = vector.step(choose_actions(vector, observation))
    check_observation(vector.observation_space, observation, "step")
    kinds = (("reward", "f"), ("terminated", "b"), ("truncated", "b"))
    for (name, kind), value_B in zip(kinds, rest, strict=True):
        if np.shape(value_B) != (lanes,) or np.asarray(value_B).dtype.kind != kind:
            raise CheckError(
                f"{name} has shape {np.shape(value_B)}, dtype {np.asarray(value_B).dtype}"
            )
    return None


def check_observation(space: spaces.Space[Any], observation: Any, where: str) -> None:
    """Raise a CheckError unless an observation lies in its space, dtypes included."""
    if isinstance(space, spaces.Dict):
        if not isinstance(observation, Mapping) or set(observation) != set(space):
            raise CheckError(f"{where}: the observation has not the keys {', '.join(space)}")
        for key, part in space.items():
            check_observation(part, observation[key], f"{where}: '{key}'")
    elif observation not in space or observation.dtype != space.dtype:
        raise CheckError(
            f"{where}: shape {observation.shape}, {observation.dtype} is not in {space}"
        )


def check_match_single(subject: VectorSubject) -> str | None:
    """Play each lane's episode in the single environment, then all of them in the lanes."""
    vector, lanes = subject.vector, range(subject.vector.num_envs)
    lane_options = [{key: value_B[b] for key, value_B in subject.options.items()} for b in lanes]
    episodes = [play_episode(subject.single, SEED, options=item) for item in lane_options]
    observation = subject.reset()
    for b in lanes:
        if not is_equal(take_lane(observation, b), episodes[b][0].observation):
            raise CheckError(f"lane {b} starts otherwise than the single environment")
    for t in range(1, max(len(episode) for episode in episodes)):
        action_B = choose_actions(vector, observation)
        for b in lanes:
            if t < len(episodes[b]):
                action_B[b] = episodes[b][t].action
        observation, reward_B, terminated_B, truncated_B, info = vector.step(action_B)
        for b in lanes:
            if t < len(episodes[b]):
                ends = (bool(terminated_B[b]), bool(truncated_B[b]))
                compare_lane(b, episodes[b][t], observation, float(reward_B[b]), ends, info)
    return None


def compare_lane(
    lane: int,
    step: PlayedStep,
    observation: Any,
    reward: float,
    ends: tuple[bool, bool],
    info: Mapping[str, Any],
) -> None:
    """Raise a CheckError where a lane's step differs from the single environment's."""
    if ends != (step.terminated, step.truncated):
        raise CheckError(f"lane {lane} ends otherwise than the single environment")
    if any(ends) and "final_obs" not in info:
        raise CheckError("an episode ended, and info holds no final_obs")
    seen = take_lane(info["final_obs"] if any(ends) else observation, lane)
    if not is_equal(seen, step.observation):
        raise CheckError(f"lane {lane} observes otherwise than the single environment")
    if not np.isclose(reward, step.reward, rtol=1e-6, atol=1e-7, equal_nan=True):
        raise CheckError(
            f"lane {lane} has reward {reward:g}, the single environment {step.reward:g}"
        )


def check_lanes(subject: VectorSubject) -> str | None:
    """Give lane 0 another lane's episode and another action."""
    vector = subject.vector
    changed = {key: np.array(value_B) for key, value_B in subject.options.items()}
    for value_B in changed.values():
        value_B[0] = value_B[-1]
    runs = []
    for options, last in ((subject.options, False), (changed, True)):
        observation = subject.reset(options)
        action_B = choose_actions(vector, observation)
        action_B[0] = choose_actions(vector, observation, last=last)[0]
        runs.append((observation, *vector.step(action_B)[:4]))
    for lane in range(1, vector.num_envs):
        for before, after in zip(*runs, strict=True):
            if not is_equal(take_lane(before, lane), take_lane(after, lane)):
                raise CheckError(f"another episode in lane 0 changed lane {lane}")
    return None


def check_autoreset(subject: VectorSubject) -> str | None:
    """Play several episodes in a row in all lanes, twice."""
    mode = subject.vector.metadata.get("autoreset_mode")
    if mode != AutoresetMode.SAME_STEP:
        raise CheckError(f"metadata['autoreset_mode'] is {mode}, not AutoresetMode.SAME_STEP")
    first, second = play_in_a_row(subject), play_in_a_row(subject)
    if not is_equal([start for start, _ in first], [start for start, _ in second]):
        raise CheckError("the same seed gives other episodes after the first")
    if not first:
        return "no lane ended"
    if all(is_equal(start, final) for start, final in first):
        raise CheckError("an ended lane returns its last observation, not the next episode's start")
    return None


def play_in_a_row(subject: VectorSubject) -> list[tuple[Any, Any]]:
    """Step all lanes; return (observation, last observation of the episode) of ended lanes."""
    observation = subject.reset()
    ends = []
    steps_with_ends = 0
    for _ in range(MAXIMUM_STEPS):
        action_B = choose_actions(subject.vector, observation)
        observation, _, terminated_B, truncated_B, info = subject.vector.step(action_B)
        ended = np.flatnonzero(terminated_B | truncated_B).tolist()
        ends += [
            (take_lane(observation, lane), take_lane(info["final_obs"], lane)) for lane in ended
        ]
        steps_with_ends += bool(ended)
        if steps_with_ends == EPISODES_IN_A_ROW:
            break
    return ends


CHECKS: dict[str, Callable[[VectorSubject], str | None]] = {
    "spaces": check_spaces,
    "match_single": check_match_single,
    "lanes": check_lanes,
    "autoreset": check_autoreset,
}
