"""Checks an environment, ours or yours, under its Gymnasium id: `run_check("module:Name-v0")`.

| check            | what must hold                                                                |
| ---------------- | ----------------------------------------------------------------------------- |
| gymnasium        | Gymnasium's own `check_env`; its warnings are faults (see `ADVICE`)           |
| determinism      | equal seed and actions give equal episodes, in another instance too           |
| action_mask      | where observations hold a `mask`: some action is allowed, each allowed action |
|                  | is accepted, a masked one raises ValueError and leaves the episode as it was  |
| state_round_trip | `get_state` through JSON into `set_state` of a fresh instance: same episode   |
| ends             | never terminated and truncated at once; a step after the end is refused, or   |
|                  | changes nothing (reward 0, still ended)                                       |
| rewards          | finite; NaN exactly where a term of `info["reward_terms"]` is undefined; the  |
|                  | combination of the terms where the environment has its stack as `rewards`     |

`check_vector` (in `rlroute.envs.vector_checker`) checks a hand-batched form against the single one.

It leaves out whether the task can be learnt, rendering, and wrappers: the bare environment is
checked, without `TimeLimit`.
"""

from __future__ import annotations

import copy
import functools
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from rlroute.types import BoolArray, RLRouteError

SEEDS = range(5)
MAXIMUM_STEPS = 100
# Warnings of Gymnasium that are advice for control tasks (embeddings have no bounds, a fixed cost
# weight has equal ones), and the one on NaN rewards, which are judged below with their terms.
ADVICE = re.compile(
    r"infinity\. This is probably too|minimum values are equal|symmetric and normalized|"
    r"reward is a NaN"
)
COLOUR_CODE = re.compile(r"\x1b\[[0-9;]*m")

AnyEnv = Any  # a gymnasium.Env, with or without get_state, set_state and rewards


class CheckError(Exception):
    """What a check found, in one line; `run_check` adds the environment and the check."""


@dataclass(frozen=True)
class PlayedStep:
    """A moment of an episode: what was done (nothing at the start) and what came back."""

    action: Any
    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]

    @property
    def ended(self) -> bool:
        """Whether the episode is over."""
        return self.terminated or self.truncated


@dataclass(frozen=True)
class Subject:
    """The environment under check: two instances to play with, and how to make a fresh one."""

    first: AnyEnv
    second: AnyEnv
    make: Callable[[], AnyEnv]


def run_check(environment_id: str, arguments: Mapping[str, Any] | None = None) -> list[str]:
    """Run all checks on the environment that `gymnasium.make(environment_id, **arguments)` makes.

    Returns the names of the checks that passed, with a remark in brackets where one did not apply.

    Raises:
        RLRouteError: the environment cannot be made, or a check found a fault.
    """

    def make() -> AnyEnv:
        environment: AnyEnv = gymnasium.make(
            environment_id, disable_env_checker=True, **(arguments or {})
        )
        return environment.unwrapped

    try:
        subject = Subject(make(), make(), make)
    except RLRouteError:
        raise
    except Exception as error:  # any code of the user's may run here, and raise anything
        raise RLRouteError(f"{environment_id}: cannot be made: {flatten(error)}") from error
    return run_checks(environment_id, CHECKS, subject)


def run_checks(
    subject_name: str, checks: Mapping[str, Callable[[Any], str | None]], subject: object
) -> list[str]:
    """Run checks in order on a subject; a check returns a remark where it did not apply.

    Raises:
        RLRouteError: the first fault, with the name of the subject and of the check.
    """
    passed = []
    for name, check in checks.items():
        try:
            remark = check(subject)
        except Exception as error:  # faults, and whatever the environment under check raises
            raise RLRouteError(f"{subject_name}: {name}: {flatten(error)}") from error
        passed.append(f"{name} ({remark})" if remark else name)
    return passed


def flatten(error: Exception) -> str:
    """Return an error as one line; the name of its class tells what the message leaves open."""
    message = " ".join(COLOUR_CODE.sub("", str(error)).split())
    return message if isinstance(error, CheckError) else f"{type(error).__name__}: {message}"


def check_gymnasium(subject: Subject) -> str | None:
    """Run Gymnasium's checker; it samples actions without a mask, so they are mapped first."""
    environment = subject.make()
    replace_masked_actions(environment)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(environment, skip_render_check=True)
    texts = [COLOUR_CODE.sub("", str(warning.message)) for warning in caught]
    for text in texts:
        if text.startswith(("WARN", "ERROR")) and not ADVICE.search(text):
            raise CheckError(text.partition(": ")[2])
    return None


def replace_masked_actions(environment: AnyEnv) -> None:
    """Make an instance take the next allowed action in place of a masked one."""
    reset, step = environment.reset, environment.step
    mask_K: BoolArray | None = None

    @functools.wraps(reset)
    def reset_with_mask(**arguments: Any) -> Any:
        nonlocal mask_K
        observation, info = reset(**arguments)
        mask_K = find_mask(environment, observation)
        return observation, info

    @functools.wraps(step)
    def step_with_mask(action: Any) -> Any:
        nonlocal mask_K
        if mask_K is not None and mask_K.any():
            start, actions = environment.action_space.start, len(mask_K)
            distance_K = (np.arange(actions) - (action - start)) % actions
            action = start + np.where(mask_K, distance_K, actions).argmin()
        observation, *rest = step(action)
        mask_K = find_mask(environment, observation)
        return observation, *rest

    environment.reset, environment.step = reset_with_mask, step_with_mask


def find_mask(environment: AnyEnv, observation: Any) -> BoolArray | None:
    """Return which actions are allowed, or None where observations do not say.

    Raises:
        CheckError: the mask does not fit the actions.
    """
    if not isinstance(observation, Mapping) or "mask" not in observation:
        return None
    if not isinstance(environment.action_space, spaces.Discrete):
        return None
    mask_K = np.asarray(observation["mask"]).astype(np.bool_)
    if mask_K.shape != (environment.action_space.n,):
        actions = environment.action_space.n
        raise CheckError(f"the mask has shape {mask_K.shape} for {actions} actions")
    return mask_K


def choose_action(environment: AnyEnv, observation: Any) -> Any:
    """Draw an action from the (seeded) action space, an allowed one where there is a mask."""
    mask_K = find_mask(environment, observation)
    if mask_K is None:
        return environment.action_space.sample()
    return environment.action_space.sample(mask_K.astype(np.int8))


def play_episode(
    environment: AnyEnv,
    seed: int,
    *,
    options: dict[str, Any] | None = None,
    before_step: Callable[[AnyEnv, Any], None] | None = None,
) -> list[PlayedStep]:
    """Play an episode of random actions; seeded throughout.

    It goes to its end, to `MAXIMUM_STEPS`, or to where no action is allowed.
    """
    observation, info = environment.reset(seed=seed, options=options)
    environment.action_space.seed(seed)
    steps = [copy.deepcopy(PlayedStep(None, observation, 0.0, False, False, info))]
    while not steps[-1].ended and len(steps) <= MAXIMUM_STEPS:
        mask_K = find_mask(environment, observation)
        if mask_K is not None and not mask_K.any():
            break
        if before_step is not None:
            before_step(environment, observation)
        action = choose_action(environment, observation)
        observation, *rest = environment.step(action)
        steps.append(copy.deepcopy(PlayedStep(action, observation, *rest)))
    return steps


def replay_actions(environment: AnyEnv, steps: Sequence[PlayedStep]) -> list[PlayedStep]:
    """Take the actions of steps once more, from where the environment stands."""
    return [
        copy.deepcopy(PlayedStep(step.action, *environment.step(step.action))) for step in steps
    ]


def compare_episodes(left: Sequence[PlayedStep], right: Sequence[PlayedStep], what: str) -> None:
    """Raise a CheckError where two episodes differ (in anything but `info`)."""
    for number, (step, other) in enumerate(zip(left, right, strict=False)):
        for part in ("action", "observation", "reward", "terminated", "truncated"):
            if not is_equal(getattr(step, part), getattr(other, part)):
                raise CheckError(f"{what}: the {part} after {number} steps differs")
    if len(left) != len(right):
        raise CheckError(f"{what}: it ends after {len(left) - 1} and after {len(right) - 1} steps")


def is_equal(left: Any, right: Any) -> bool:
    """Compare nested values exactly; NaN equals NaN."""
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(is_equal(left[key], right[key]) for key in left)
    if isinstance(left, (tuple, list)):
        return len(left) == len(right) and all(map(is_equal, left, right))
    left, right = np.asarray(left), np.asarray(right)
    if left.dtype != right.dtype:
        return False
    return bool(np.array_equal(left, right, equal_nan=left.dtype.kind in "fc"))


def check_action_mask(subject: Subject) -> str | None:
    """Offer allowed and masked actions."""
    met_masked = False

    def offer_masked(environment: AnyEnv, observation: Any) -> None:
        nonlocal met_masked
        mask_K = find_mask(environment, observation)
        for index in () if mask_K is None else np.flatnonzero(~mask_K):
            met_masked = True
            offer_masked_action(environment, environment.action_space.start + index)

    if find_mask(subject.first, subject.first.reset(seed=0)[0]) is None:
        return "skipped: no mask over discrete actions in the observation"
    for seed in SEEDS:
        episode = play_episode(subject.second, seed)
        disturbed = play_episode(subject.first, seed, before_step=offer_masked)
        compare_episodes(episode, disturbed, f"seed {seed}: a refused action changed the episode")
        if not episode[-1].ended and len(episode) <= MAXIMUM_STEPS:
            raise CheckError(f"seed {seed}: no action is allowed though the episode goes on")
        mask_K = find_mask(subject.first, episode[0].observation)
        for index in () if mask_K is None else np.flatnonzero(mask_K):
            subject.first.reset(seed=seed)
            subject.first.step(subject.first.action_space.start + index)
    return None if met_masked else "no masked action was met"


def offer_masked_action(environment: AnyEnv, action: Any) -> None:
    """Raise a CheckError unless the environment refuses a masked action with a ValueError."""
    before = copy.deepcopy(environment.get_state()) if has_state(environment) else None
    try:
        environment.step(action)
    except ValueError:
        if before is not None and environment.get_state() != before:
            raise CheckError(f"the refusal of masked action {action} changed the state") from None
        return
    except Exception as error:  # the wrong class of error is what is looked for
        name = type(error).__name__
        raise CheckError(f"masked action {action} raises {name}, not ValueError") from error
    raise CheckError(f"masked action {action} is accepted, it must raise ValueError")


def check_determinism(subject: Subject) -> str | None:
    """Play each episode twice in one instance and once in another."""
    for seed in SEEDS:
        episode = play_episode(subject.first, seed)
        compare_episodes(episode, play_episode(subject.first, seed), f"seed {seed} played twice")
        other = play_episode(subject.second, seed)
        compare_episodes(episode, other, f"seed {seed} in another instance")
    return None


def has_state(environment: Any) -> bool:
    """Say whether the environment can be saved and restored."""
    return hasattr(environment, "get_state") and hasattr(environment, "set_state")


def check_state_round_trip(subject: Subject) -> str | None:
    """Cut episodes at their start and in the middle, and go on from the state elsewhere."""
    if not has_state(subject.first):
        return "skipped: the environment has no get_state and set_state"
    fresh, original = subject.make(), subject.first
    for seed in SEEDS:
        episode = play_episode(subject.second, seed)
        for cut in sorted({0, (len(episode) - 1) // 2}):
            original.reset(seed=seed)
            replay_actions(original, episode[1 : cut + 1])
            restored = fresh.set_state(
                json.loads(json.dumps(original.get_state(), allow_nan=False))
            )
            where = f"seed {seed}, restored after {cut} steps"
            if not is_equal(restored, episode[cut].observation):
                raise CheckError(f"{where}: set_state returns another observation")
            compare_episodes(episode[cut + 1 :], replay_actions(fresh, episode[cut + 1 :]), where)
    return None


def check_ends(subject: Subject) -> str | None:
    """Look at the ends of episodes and step once more behind them."""
    episodes = [play_episode(subject.first, seed) for seed in SEEDS]
    if any(step.terminated and step.truncated for episode in episodes for step in episode):
        raise CheckError("a step is both terminated and truncated")
    if not any(episode[-1].ended for episode in episodes):
        return f"no episode ended within {MAXIMUM_STEPS} steps"
    for seed in SEEDS:
        last = play_episode(subject.first, seed)[-1]
        if not last.ended:
            continue
        try:
            with warnings.catch_warnings(action="ignore"):  # Gymnasium's own warn of such a step
                _, reward, terminated, truncated, _ = subject.first.step(last.action)
        except Exception:  # refused, in whatever words
            continue
        if reward != 0 or not (terminated or truncated):
            raise CheckError(f"a step after the end is answered with reward {float(reward):g}")
    return None


def check_rewards(subject: Subject) -> str | None:
    """Compare each reward with its terms."""
    names: set[tuple[str, ...]] = set()
    for seed in SEEDS:
        episode = play_episode(subject.first, seed)
        for before, step in pairwise(episode):
            if np.isinf(step.reward):
                raise CheckError(f"the reward is {step.reward}")
            terms = step.info.get("reward_terms")
            if terms is not None:
                names.add(tuple(sorted(terms)))
                check_reward_terms(subject.first, step, before.observation)
            elif np.isnan(step.reward):
                raise CheckError("the reward is NaN, and info holds no reward_terms that say why")
    if len(names) > 1:
        raise CheckError(f"the names of reward terms change: {', '.join(map(str, sorted(names)))}")
    return None if names else "info holds no reward_terms: only finiteness was checked"


def check_reward_terms(environment: AnyEnv, step: PlayedStep, observation: Any) -> None:
    """Compare a reward with the terms beside it: undefined is not zero."""
    terms = {
        name: np.array([np.nan if value is None else value], dtype=np.float32)
        for name, value in step.info["reward_terms"].items()
    }
    undefined = [name for name, value_1 in terms.items() if np.isnan(value_1[0])]
    if undefined and not np.isnan(step.reward):
        raise CheckError(
            f"the term '{undefined[0]}' is undefined, but the reward is {step.reward:g}"
        )
    if np.isnan(step.reward) and not undefined:
        raise CheckError("the reward is NaN, but all its terms are defined")
    if not hasattr(environment, "rewards") or "cost_weight" not in observation:
        return
    weights = [np.asarray(observation["cost_weight"])]
    if "latency_weight" in observation:
        weights.append(np.asarray(observation["latency_weight"]))
    expected = environment.rewards.combine(terms, *weights)[0]
    if not np.isclose(step.reward, expected, rtol=1e-5, atol=1e-6, equal_nan=True):
        raise CheckError(f"the reward is {step.reward:g}, its terms combine to {expected:g}")


CHECKS: dict[str, Callable[[Subject], str | None]] = {
    "gymnasium": check_gymnasium,
    "determinism": check_determinism,
    "action_mask": check_action_mask,
    "state_round_trip": check_state_round_trip,
    "ends": check_ends,
    "rewards": check_rewards,
}
